"""ConvLSTM recurrences in Triton. Contract: contract.ConvLSTMImpl.

A step is one kernel: an implicit GEMM of patches (pixels × channels) and weights, with the gates as its epilogue. A
program has the sums of all four gates for a block of pixels and hidden channels, in registers. The backward's GEMM is
the transposed convolution of da_{t+1}, and its epilogue the backward of the gates at t. A sequence is one op, which
launches one kernel a step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridops import flops
from hybridops.checks import accumulation_dtype
from hybridops.contract import ConvLSTMInputs, ConvLSTMStates, Save, StateGradients
from hybridops.formulas import recurrence
from hybridops.formulas.conv_lstm import gates_from_states, input_gradient, weight_gradients
from hybridops.triton.arguments import Image
from hybridops.triton.launch import Config, launch, op
from hybridops.triton.math import cast, offset, precision, product, sigmoid, tanh
from hybridops.triton.sizes import check_convolution, check_sizes

__all__ = [
    "conv_lstm_backward",
    "conv_lstm_forward",
    "input_gradient",
    "weight_gradients",
]

# All configurations of the kernels, by how they multiply: on tensor cores in half precision or tf32, or in float32 and
# float64 without. BLOCK_M pixels, BLOCK_N hidden channels, BLOCK_K channels that are summed over. The first of a list
# is taken whose BLOCK_N divides the hidden channels and that makes MIN_PROGRAMS; else the last. A thread has up to 64
# sums in the forward, and 16 in the backward, whose epilogue needs more registers. `python -m hybridops.triton.check`
# shows that none spills; none was timed on a GPU yet.
FORWARD = {
    "half": [
        Config({"BLOCK_M": 128, "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=8, num_stages=3),
        Config({"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=4, num_stages=3),
        Config({"BLOCK_M": 64, "BLOCK_N": 16, "BLOCK_K": 32}, num_warps=4, num_stages=4),
        Config({"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 32}, num_warps=2, num_stages=3),
    ],
    "tf32": [
        Config({"BLOCK_M": 128, "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=8, num_stages=2, max_registers=255),
        Config({"BLOCK_M": 64, "BLOCK_N": 16, "BLOCK_K": 32}, num_warps=4, num_stages=3),
        Config({"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 32}, num_warps=4, num_stages=3),
    ],
    "ieee": [
        Config({"BLOCK_M": 64, "BLOCK_N": 16, "BLOCK_K": 16}, num_warps=8),
        Config({"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16}, num_warps=2),
    ],
    "float64": [Config({"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16}, num_warps=4)],
}
BACKWARD = {
    "half": [
        Config({"BLOCK_M": 128, "BLOCK_N": 32, "BLOCK_K": 64}, num_warps=8, num_stages=3, max_registers=255),
        Config({"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 64}, num_warps=4, num_stages=3),
        Config({"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 64}, num_warps=2, num_stages=3),
    ],
    "tf32": [
        Config({"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=8, num_stages=3, max_registers=255),
        Config({"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 32}, num_warps=2, num_stages=3, max_registers=255),
    ],
    "ieee": [
        Config({"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 16}, num_warps=4, max_registers=255),
        Config({"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16}, num_warps=2, max_registers=255),
    ],
    "float64": [Config({"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16}, num_warps=4)],
}
# About one program for each multiprocessor of a large GPU (an H100 has 132).
MIN_PROGRAMS = 128


# --------------------------------------------------------------------------------------------------- what is here


def conv_lstm_forward(inputs: ConvLSTMInputs, save: Save) -> ConvLSTMStates:
    hs, cs, gates = _forward(*inputs, save != Save.NOTHING, save == Save.GATES)
    return ConvLSTMStates(hs, cs, gates if save == Save.GATES else None)


def conv_lstm_backward(
    grads: StateGradients, inputs: ConvLSTMInputs, states: ConvLSTMStates, need_dh0: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gates that were not saved come back by the library's convolution."""
    gates = gates_from_states(inputs, states) if states.gates is None else states.gates
    da, dh0, dc0 = _backward(*grads, gates, states.cs, inputs.c0, inputs.w_hh, inputs.peephole, need_dh0)
    return da, dh0 if need_dh0 else None, dc0


# ------------------------------------------------------------------------------------------------------------ ops


def _forward_fake(x, h0, c0, w_ih, w_hh, bias, peephole, save_cells, save_gates):
    steps, batch, *space, _ = x.shape
    hidden, acc = w_hh.shape[1], accumulation_dtype(x.dtype)
    hs = x.new_empty(steps, batch, *space, hidden)
    cs = x.new_empty(steps if save_cells else 1, batch, *space, hidden, dtype=acc)
    return hs, cs, x.new_empty(steps if save_gates else 0, batch, *space, 4 * hidden)


@op(
    "conv_lstm_forward(Tensor x, Tensor? h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? bias, Tensor? peephole, "
    "bool save_cells, bool save_gates) -> (Tensor, Tensor, Tensor)",
    _forward_fake,
    flops.conv_lstm_forward,
)
def _forward(
    x: Tensor,  # (T,B,Y,X,C) any strides
    h0: Tensor | None,  # (B,Y,X,H)
    c0: Tensor | None,  # (B,Y,X,H) acc
    w_ih: Tensor,  # (4H,C,KY,KX)
    w_hh: Tensor,  # (4H,H,KY,KX)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3,H) or (3,Y,X,H)
    save_cells: bool,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """hs (T,B,Y,X,H), cs (T or 1,B,Y,X,H) acc, gates (T or 0,B,Y,X,4H) after their nonlinearity."""
    check_sizes(x=(x, ("T", "B", "Y", "X", "C")))
    steps, batch, *space, channels = x.shape
    hidden = check_convolution(w_hh, peephole, (batch, *space), h0=h0, c0=c0)
    check_sizes(w_ih=(w_ih, (4 * hidden, channels, *w_hh.shape[2:])), bias=(bias, (4 * hidden,)))
    hs, cs, gates = _forward_fake(x, h0, c0, w_ih, w_hh, bias, peephole, save_cells, save_gates)
    pixels = hs[0, ..., 0].numel()
    config = _config(FORWARD, x, pixels, hidden)
    hoisted = _hoisted(x, w_ih) if _hoists(config, x, pixels, hidden) else None
    w_x, w_h = (w.unflatten(0, (4, hidden)).permute(3, 4, 2, 0, 1).contiguous() for w in (w_ih, w_hh))  # (KY,KX,C,4,H)
    h, c = _dense(h0), _dense(c0)
    constants = {
        "C": channels, "H": hidden, "KY": w_hh.shape[2], "KX": w_hh.shape[3],
        "PEEPHOLE_PER_PIXEL": peephole is not None and peephole.dim() > 2, "PRECISION": precision(x),
    }  # fmt: skip
    peephole = _dense(peephole, cs.dtype)
    grid = (_programs(config, pixels, hidden),)
    for t in range(steps):
        c_out = cs[t if save_cells else 0]
        launch(
            step_kernel, grid, config,
            _image(x[t] if hoisted is None else None), h, c, None if hoisted is None else hoisted[t], w_x, w_h, bias,
            peephole, hs[t], c_out, gates[t] if save_gates else None, (batch, *space), **constants,
        )  # fmt: skip
        h, c = hs[t], c_out
    return hs, cs, gates


def _backward_fake(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0):
    steps, batch, *space, hidden = cs.shape
    da = gates.new_empty(steps, batch, *space, 4 * hidden)
    return da, cs.new_empty(batch if need_dh0 else 0, *space, hidden), cs.new_empty(batch, *space, hidden)


@op(
    "conv_lstm_backward(Tensor? grad_hs, Tensor? grad_hn, Tensor? grad_cn, Tensor gates, Tensor cs, Tensor? c0, "
    "Tensor w_hh, Tensor? peephole, bool need_dh0) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
    flops.conv_lstm_backward,
)
def _backward(
    grad_hs: Tensor | None,  # (T,B,Y,X,H) any strides
    grad_hn: Tensor | None,  # (B,Y,X,H)
    grad_cn: Tensor | None,  # (B,Y,X,H)
    gates: Tensor,  # (T,B,Y,X,4H)
    cs: Tensor,  # (T,B,Y,X,H) acc
    c0: Tensor | None,  # (B,Y,X,H) acc
    w_hh: Tensor,  # (4H,H,KY,KX)
    peephole: Tensor | None,  # (3,H) or (3,Y,X,H)
    need_dh0: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """da (T,B,Y,X,4H), dh0 (B,Y,X,H) acc (no element unless needed), dc0 (B,Y,X,H) acc."""
    check_sizes(cs=(cs, ("T", "B", "Y", "X", "H")))
    steps, batch, *space, _ = cs.shape
    hidden = check_convolution(w_hh, peephole, (batch, *space), grad_hn=grad_hn, grad_cn=grad_cn, c0=c0)
    states = (steps, batch, *space, hidden)
    check_sizes(cs=(cs, states), grad_hs=(grad_hs, states), gates=(gates, (*states[:-1], 4 * hidden)))
    da, dh0, dc0 = _backward_fake(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0)
    gates, cs = gates.contiguous(), cs.contiguous()
    cells = [_dense(c0), *cs.unbind(0)]
    w_h = w_hh.permute(2, 3, 0, 1).contiguous()  # (KY,KX,4H,H)
    constants = {
        "H": hidden, "KY": w_hh.shape[2], "KX": w_hh.shape[3],
        "PEEPHOLE_PER_PIXEL": peephole is not None and peephole.dim() > 2, "PRECISION": precision(gates),
    }  # fmt: skip
    peephole = _dense(peephole, cs.dtype)
    config = _config(BACKWARD, gates, dc0[..., 0].numel(), hidden)
    grid = (_programs(config, dc0[..., 0].numel(), hidden),)
    da_next, dh, dc = None, _dense(grad_hn), _dense(grad_cn)
    for t in reversed(range(steps)):
        launch(
            step_backward_kernel, grid, config,
            da_next, w_h, dh, _image(None if grad_hs is None else grad_hs[t]), gates[t], cells[t + 1], cells[t], dc,
            peephole, da[t], dc0, None, (batch, *space), **constants,
        )  # fmt: skip
        da_next, dh, dc = da[t], None, dc0
    if need_dh0:
        launch(
            step_backward_kernel, grid, config,
            da_next, w_h, dh, _image(None), *(None,) * 7, dh0, (batch, *space), **constants,
        )  # fmt: skip
    return da, dh0, dc0


# -------------------------------------------------------------------------------------------------------- choices


def _config(table: dict[str, list[Config]], x: Tensor, pixels: int, hidden: int) -> Config:
    kinds = {torch.float64: "float64", torch.float32: precision(x)}
    configs = table[kinds.get(x.dtype, "half")]
    enough = (
        config for config in configs
        if hidden % config.blocks["BLOCK_N"] == 0 and _programs(config, pixels, hidden) >= MIN_PROGRAMS
    )  # fmt: skip
    return next(enough, configs[-1])


def _programs(config: Config, pixels: int, hidden: int) -> int:
    return triton.cdiv(pixels, config.blocks["BLOCK_M"]) * triton.cdiv(hidden, config.blocks["BLOCK_N"])


def _hoists(config: Config, x: Tensor, pixels: int, hidden: int) -> bool:
    """Whether W_ih * x is computed for all steps by one library convolution, ahead of the recurrence.

    If the programs of a step do not fill the GPU, a step takes as long as the loop of one program. Then W_ih * x is
    taken out of that loop, because for all T steps at once it does fill the GPU. Otherwise it is the same work in
    either place, but ahead it goes through memory: 4H channels a pixel and step, written and read. This is a model, not
    measured. In float32, the input is hoisted only if the library rounds as the kernel does.
    """
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    library = "tf32" if convolutions.fp32_precision == "tf32" else "ieee"  # it may also say "none"
    return (x.dtype != torch.float32 or library == precision(x)) and _programs(config, pixels, hidden) < MIN_PROGRAMS


def _hoisted(x: Tensor, w_ih: Tensor) -> Tensor:
    """W_ih * x (T,B,Y,X,4H)"""
    return recurrence.convolve(x.flatten(0, 1), w_ih).contiguous().unflatten(0, x.shape[:2])


def _dense(t: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if t is None else t.to(dtype or t.dtype).contiguous()


def _image(x: Tensor | None) -> Image:
    """Of (B,Y,X,C)"""
    return Image(None, 0, 0, 0, 0) if x is None else Image(x, *x.stride())


# -------------------------------------------------------------------------------------------------------- kernels
# A program has BLOCK_M pixels m = (b,y,x), counted through, and BLOCK_N hidden channels n. Neighbouring programs have
# the same pixels and other channels: the cache then holds what they read of the images. `p_x` is a block of pointers
# into the tensor x, and `b_x` a block of its values. `b_gates` is a tuple of four blocks, for the gates f, i, g, o.


@triton.jit
def step_kernel(
    image, h_ptr, c_ptr, hoisted_ptr, w_x_ptr, w_h_ptr, bias_ptr, peephole_ptr, h_out_ptr, c_out_ptr, gates_ptr, sizes,
    C: tl.constexpr, H: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    PEEPHOLE_PER_PIXEL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h_out, c_out (B,Y,X,H) and, if wanted, the gates (B,Y,X,4H) of a step.

    From the image x_t (B,C,Y,X), or `hoisted` = W_ih * x_t (B,Y,X,4H), and h, c (B,Y,X,H). `sizes` is (B,Y,X).
    """
    m, n, b, y, x, inside = block_of_pixels(sizes, H, KY, BLOCK_M, BLOCK_N)
    acc: tl.constexpr = c_out_ptr.dtype.element_ty
    at = m[:, None] * H + n[None]
    at_gates = m[:, None] * (4 * H) + n[None]
    b_c = tl.zeros((BLOCK_M, BLOCK_N), acc)
    b_gates = (b_c, b_c, b_c, b_c)
    if image.ptr is not None:
        p_x = image.ptr + (offset(b, image.b) + offset(y, image.y) + offset(x, image.x))[:, None]
        strides = (image.y, image.x, image.c)
        b_gates = convolve(p_x, strides, w_x_ptr, b_gates, y, x, n, sizes, C, H, KY, KX, PRECISION, BLOCK_K)
    if h_ptr is not None:
        p_h = h_ptr + (m * H)[:, None]
        strides = (offset(sizes[2], H), H, 1)
        b_gates = convolve(p_h, strides, w_h_ptr, b_gates, y, x, n, sizes, H, H, KY, KX, PRECISION, BLOCK_K)
    if hoisted_ptr is not None:
        b_gates = sums_of_gates(b_gates, load_gates(hoisted_ptr + at_gates, inside, H, acc))
    if bias_ptr is not None:
        b_gates = sums_of_gates(b_gates, load_gates((bias_ptr + n)[None], (n < H)[None], H, acc))

    b_f, b_i, b_g, b_o = b_gates
    if c_ptr is not None:
        b_c = tl.load(c_ptr + at, inside, 0.0)
    if peephole_ptr is not None:
        b_p_f, b_p_i, b_p_o = load_peepholes(peephole_ptr, y, x, n, sizes, inside, H, PEEPHOLE_PER_PIXEL)
        b_f += b_p_f * b_c
        b_i += b_p_i * b_c
    b_f, b_i, b_g = sigmoid(b_f), sigmoid(b_i), tanh(b_g)
    b_c = b_f * b_c + b_i * b_g
    if peephole_ptr is not None:
        b_o += b_p_o * b_c
    b_o = sigmoid(b_o)
    tl.store(c_out_ptr + at, b_c, inside)
    tl.store(h_out_ptr + at, cast(b_o * tanh(b_c), h_out_ptr.dtype.element_ty), inside)
    if gates_ptr is not None:
        store_gates(gates_ptr + at_gates, (b_f, b_i, b_g, b_o), inside, H, h_out_ptr.dtype.element_ty)


@triton.jit
def step_backward_kernel(
    da_next_ptr, w_h_ptr, dh_ptr, grad_h, gates_ptr, c_ptr, c_prev_ptr, dc_ptr, peephole_ptr,
    da_ptr, dc_out_ptr, dh_out_ptr, sizes,
    H: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    PEEPHOLE_PER_PIXEL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """da (B,Y,X,4H) of a step and dc_out (B,Y,X,H), the gradient of the cell before it; or dh_out (B,Y,X,H) alone.

    The gradient of the step's output is W_hhᵀ * da_next, or dh if it is given, plus grad_h, an image (B,H,Y,X). dc is
    the gradient of its cell from the next step. If dh_out is given, nothing else is computed. `sizes` is (B,Y,X).
    """
    m, n, b, y, x, inside = block_of_pixels(sizes, H, KY, BLOCK_M, BLOCK_N)
    if dh_out_ptr is not None:
        acc: tl.constexpr = dh_out_ptr.dtype.element_ty
    else:
        acc: tl.constexpr = dc_out_ptr.dtype.element_ty  # type: ignore[no-redef]
    at = m[:, None] * H + n[None]
    at_gates = m[:, None] * (4 * H) + n[None]
    b_dh = tl.zeros((BLOCK_M, BLOCK_N), acc)
    if da_next_ptr is not None:
        p_da = da_next_ptr + (m * (4 * H))[:, None]
        b_dh = convolve_transposed(p_da, w_h_ptr, b_dh, y, x, n, sizes, H, KY, KX, PRECISION, BLOCK_K)
    if dh_ptr is not None:
        b_dh += tl.load(dh_ptr + at, inside, 0.0).to(acc)
    if dh_out_ptr is not None:
        tl.store(dh_out_ptr + at, b_dh, inside)
    else:
        if grad_h.ptr is not None:
            p_grad_h = (offset(b, grad_h.b) + offset(y, grad_h.y) + offset(x, grad_h.x))[:, None]
            p_grad_h = grad_h.ptr + (p_grad_h + offset(n, grad_h.c)[None])
            b_dh += tl.load(p_grad_h, inside, 0.0).to(acc)
        b_f, b_i, b_g, b_o = load_gates(gates_ptr + at_gates, inside, H, acc)
        b_c_prev = tl.zeros((BLOCK_M, BLOCK_N), acc)
        if c_prev_ptr is not None:
            b_c_prev = tl.load(c_prev_ptr + at, inside, 0.0)
        b_dc = tl.zeros((BLOCK_M, BLOCK_N), acc)
        if dc_ptr is not None:
            b_dc = tl.load(dc_ptr + at, inside, 0.0).to(acc)

        b_tanh_c = tanh(tl.load(c_ptr + at, inside, 0.0))
        b_da_o = b_dh * b_tanh_c * b_o * (1 - b_o)
        b_dc += b_dh * b_o * (1 - b_tanh_c * b_tanh_c)
        if peephole_ptr is not None:
            b_p_f, b_p_i, b_p_o = load_peepholes(peephole_ptr, y, x, n, sizes, inside, H, PEEPHOLE_PER_PIXEL)
            b_dc += b_p_o * b_da_o
        b_da_f = b_dc * b_c_prev * b_f * (1 - b_f)
        b_da_i = b_dc * b_g * b_i * (1 - b_i)
        b_da_g = b_dc * b_i * (1 - b_g * b_g)
        b_dc = b_dc * b_f
        if peephole_ptr is not None:
            b_dc += b_p_f * b_da_f + b_p_i * b_da_i
        tl.store(dc_out_ptr + at, b_dc, inside)
        store_gates(da_ptr + at_gates, (b_da_f, b_da_i, b_da_g, b_da_o), inside, H, da_ptr.dtype.element_ty)


@triton.jit
def block_of_pixels(sizes, H: tl.constexpr, KY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Pixels m, channels n, m as b, y, x, and which (m,n) exist. m has 64 bits, because offsets are multiples of it."""
    B, Y, X = sizes
    blocks: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    m = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    within = m < B * Y * X
    y = tl.where(within, m // X % Y, -KY)  # past the last image: from there no tap of the kernel reaches into it
    return m.to(tl.int64), n, m // (X * Y), y, m % X, within[:, None] & (n < H)[None]


@triton.jit
def convolve(
    p_x, strides, w_ptr, b_gates, y, x, n, sizes,
    C: tl.constexpr, H: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """b_gates + W * x, of images with C channels and strides (y, x, c), whose pixels p_x points to; W (KY,KX,C,4H)"""
    blocks: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    for step in range(KY * KX * blocks):
        tap = step // blocks
        c = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        b_patch = load_patch(p_x, strides, y, x, sizes, c, tap // KX - KY // 2, tap % KX - KX // 2, C)
        p_w = w_ptr + offset(tap * C + c, 4 * H)[:, None] + n[None]
        b_gates = products_of_gates(b_patch, p_w, (c < C)[:, None] & (n < H)[None], b_gates, H, PRECISION)
    return b_gates


@triton.jit
def convolve_transposed(
    p_da, w_ptr, b_dh, y, x, n, sizes, H: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """b_dh + Wᵀ * da, of images (B,Y,X,4H) whose pixels p_da points to; W (KY,KX,4H,H)"""
    blocks: tl.constexpr = (4 * H + BLOCK_K - 1) // BLOCK_K
    strides = (offset(sizes[2], 4 * H), 4 * H, 1)
    for step in range(KY * KX * blocks):
        tap = step // blocks
        c = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        b_patch = load_patch(p_da, strides, y, x, sizes, c, KY // 2 - tap // KX, KX // 2 - tap % KX, 4 * H)
        p_w = w_ptr + offset(tap * 4 * H + c, H)[:, None] + n[None]
        b_w = tl.load(p_w, (c < 4 * H)[:, None] & (n < H)[None], 0.0)
        b_dh = product(b_patch, b_w, b_dh, PRECISION)
    return b_dh


@triton.jit
def load_patch(p_x, strides, y, x, sizes, c, dy, dx, C: tl.constexpr):
    """The channels c of the pixels (dy,dx) away from those that p_x points to: zeros outside of the image."""
    inside = (y + dy >= 0) & (y + dy < sizes[1]) & (x + dx >= 0) & (x + dx < sizes[2])
    p_x += offset(dy, strides[0]) + offset(dx, strides[1])
    return tl.load(p_x + offset(c, strides[2])[None], inside[:, None] & (c < C)[None], 0.0)


@triton.jit
def load_peepholes(peephole_ptr, y, x, n, sizes, inside, H: tl.constexpr, PER_PIXEL: tl.constexpr):
    """p_f, p_i, p_o, from (3,H) or (3,Y,X,H)"""
    if PER_PIXEL:
        p_peephole = peephole_ptr + offset(y * sizes[2] + x, H)[:, None] + n[None]
        size = offset(sizes[1] * sizes[2], H)
    else:
        p_peephole = peephole_ptr + n[None]
        size = H
        inside = (n < H)[None]
    return [tl.load(p_peephole + row * size, inside, 0.0) for row in (0, 1, 2)]


# Of the four gates, which stand H channels apart.


@triton.jit
def products_of_gates(b_x, p_w, inside, b_gates, H: tl.constexpr, PRECISION: tl.constexpr):
    """b_gates + x W"""
    return [product(b_x, tl.load(p_w + k * H, inside, 0.0), b_gates[k], PRECISION) for k in (0, 1, 2, 3)]


@triton.jit
def sums_of_gates(b_one, b_other):
    return [b_one[k] + b_other[k] for k in (0, 1, 2, 3)]


@triton.jit
def load_gates(p_gates, inside, H: tl.constexpr, dtype: tl.constexpr):
    return [tl.load(p_gates + k * H, inside, 0.0).to(dtype) for k in (0, 1, 2, 3)]


@triton.jit
def store_gates(p_gates, b_gates, inside, H: tl.constexpr, dtype: tl.constexpr):
    for k in tl.static_range(4):
        tl.store(p_gates + k * H, cast(b_gates[k], dtype), inside)
