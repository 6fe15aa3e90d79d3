"""ConvLSTM recurrences in Triton. The contract is that of reference/conv_lstm.py.

A step is one kernel: the convolution as a product of patches (pixels × channels) and weights, whose sums for the four
gates of a block of pixels and hidden channels go through the gates in registers; in the backward, the transposed
convolution of da_{t+1}, whose sums go through the backward of the gates at t. A sequence is one op, a loop of launches.

Inside, images stand channels-last with two spatial dimensions: (B,Y,X,H).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.native import refuse_forward_mode
from hybridops.reference.conv_lstm import gates_from_states, input_gradient, weight_gradients
from hybridops.triton.launch import Config, launch, op
from hybridops.triton.math import cast, offset, precision, product, sigmoid, tanh
from hybridops.triton.sizes import check_convolution, check_sizes

__all__ = [
    "conv_lstm_backward",
    "conv_lstm_backward_from_states",
    "conv_lstm_forward",
    "input_gradient",
    "weight_gradients",
]

# The block sizes that the kernels run with, all there are, by what multiplies: tensor cores in half precision or tf32,
# or the units for float32 and float64. BLOCK_M pixels, BLOCK_N hidden channels, BLOCK_K channels that are summed over.
# The first of a list whose BLOCK_N divides the hidden channels and that makes enough programs is taken, else the last.
# A thread has up to 64 sums in the forward and, where the gates' backward needs more besides, 16 in the backward.
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
# Programs that give each multiprocessor of a large GPU one (an H100 has 132).
MIN_PROGRAMS = 128


# --------------------------------------------------------------------------------------------------- what is here


def conv_lstm_forward(
    x: Tensor,  # (B,T,C,S*) any strides
    h0: Tensor | None,  # (B,H,S*)
    c0: Tensor | None,  # (B,H,S*) acc
    w_ih: Tensor,  # (4H,C,K*)
    w_hh: Tensor,  # (4H,H,K*)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3,H) or (3,H,S*)
    save: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    refuse_forward_mode(x, h0, c0, w_ih, w_hh, bias, peephole)
    images = (_with_rows(t, w_hh) for t in (x, h0, c0, w_ih, w_hh))
    hs, cs, gates = _forward(*images, bias, _with_rows(peephole, w_hh), save != "nothing", save == "gates")
    hs, cs, gates = (_without_rows(t.movedim(-1, 2), w_hh) for t in (hs, cs, gates))
    return hs, cs, gates if save == "gates" else None


def conv_lstm_backward(
    grad_hs: Tensor | None,  # (T,B,H,S*)
    grad_hn: Tensor | None,  # (B,H,S*)
    grad_cn: Tensor | None,  # (B,H,S*)
    gates: Tensor,  # (T,B,4H,S*)
    cs: Tensor,  # (T,B,H,S*) acc
    c0: Tensor | None,  # (B,H,S*) acc
    w_hh: Tensor,  # (4H,H,K*)
    peephole: Tensor | None,  # (3,H) or (3,H,S*)
    need_dh0: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    images = (_with_rows(t, w_hh) for t in (grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole))
    da, dh0, dc0 = _backward(*images, need_dh0)
    da, dh0, dc0 = (_without_rows(t.movedim(-1, -3), w_hh) for t in (da, dh0, dc0))
    return da, dh0 if need_dh0 else None, dc0


def conv_lstm_backward_from_states(
    grad_hs: Tensor | None,  # (T,B,H,S*)
    grad_hn: Tensor | None,  # (B,H,S*)
    grad_cn: Tensor | None,  # (B,H,S*)
    x: Tensor,  # (B,T,C,S*) any strides
    h0: Tensor | None,  # (B,H,S*)
    hs: Tensor,  # (T,B,H,S*)
    cs: Tensor,  # (T,B,H,S*) acc
    c0: Tensor | None,  # (B,H,S*) acc
    w_ih: Tensor,  # (4H,C,K*)
    w_hh: Tensor,  # (4H,H,K*)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3,H) or (3,H,S*)
    need_dh0: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gates come back by the library's convolution."""
    gates = gates_from_states(x, h0, hs, cs, c0, w_ih, w_hh, bias, peephole)
    return conv_lstm_backward(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0)


def _with_rows(tensor: Tensor | None, weight: Tensor) -> Tensor | None:
    """One spatial dimension (X), if the weight (4H,H,K*) has but one, as two (1,X)."""
    per_channel = tensor is None or tensor.dim() == 2
    return tensor if per_channel or weight.dim() == 4 else tensor.unsqueeze(-2)


def _without_rows(tensor: Tensor, weight: Tensor) -> Tensor:
    return tensor if weight.dim() == 4 else tensor.squeeze(-2)


# ------------------------------------------------------------------------------------------------------------ ops


def _forward_fake(x, h0, c0, w_ih, w_hh, bias, peephole, save_cells, save_gates):
    batch, steps, _, *space = x.shape
    hidden, acc = w_hh.shape[1], accumulation_dtype(x.dtype)
    hs = x.new_empty(steps, batch, *space, hidden)
    cs = x.new_empty(steps if save_cells else 1, batch, *space, hidden, dtype=acc)
    return hs, cs, x.new_empty(steps if save_gates else 0, batch, *space, 4 * hidden)


@op(
    "conv_lstm_forward(Tensor x, Tensor? h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? bias, Tensor? peephole, "
    "bool save_cells, bool save_gates) -> (Tensor, Tensor, Tensor)",
    _forward_fake,
)
def _forward(
    x: Tensor,  # (B,T,C,Y,X) any strides
    h0: Tensor | None,  # (B,H,Y,X)
    c0: Tensor | None,  # (B,H,Y,X) acc
    w_ih: Tensor,  # (4H,C,KY,KX)
    w_hh: Tensor,  # (4H,H,KY,KX)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3,H) or (3,H,Y,X)
    save_cells: bool,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """hs (T,B,Y,X,H), cs (T or 1,B,Y,X,H) acc, gates (T or 0,B,Y,X,4H) after their nonlinearity."""
    check_sizes(x=(x, ("B", "T", "C", "Y", "X")))
    hidden = check_convolution(w_hh, peephole, x.shape[0], tuple(x.shape[3:]), h0=h0, c0=c0)
    check_sizes(w_ih=(w_ih, (4 * hidden, x.shape[2], *w_hh.shape[2:])), bias=(bias, (4 * hidden,)))
    hs, cs, gates = _forward_fake(x, h0, c0, w_ih, w_hh, bias, peephole, save_cells, save_gates)
    batch, steps, channels, *space = x.shape
    pixels = hs[0, ..., 0].numel()
    config = _config(FORWARD, x, pixels, hidden)
    hoisted = _hoisted(x, w_ih) if _hoists(config, x, pixels, hidden) else None
    w_x, w_h = (w.unflatten(0, (4, hidden)).permute(3, 4, 2, 0, 1).contiguous() for w in (w_ih, w_hh))  # (KY,KX,C,4,H)
    h, c = _channels_last(h0), _channels_last(c0)
    constants = {
        "C": channels, "H": hidden, "KY": w_hh.shape[2], "KX": w_hh.shape[3],
        "PEEPHOLE_PER_PIXEL": peephole is not None and peephole.dim() > 2, "PRECISION": precision(x),
    }  # fmt: skip
    peephole = _peephole(peephole, cs.dtype)
    grid = (_programs(config, pixels, hidden),)
    for t in range(steps):
        c_out = cs[t if save_cells else 0]
        launch(
            step_kernel, grid, config,
            x[:, t] if hoisted is None else None, h, c, None if hoisted is None else hoisted[t], w_x, w_h, bias,
            peephole, hs[t], c_out, gates[t] if save_gates else None,
            batch, *space, x.stride(0), x.stride(3), x.stride(4), x.stride(2),
            **constants,
        )  # fmt: skip
        h, c = hs[t], c_out
    return hs, cs, gates


def _backward_fake(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0):
    steps, batch, hidden, *space = cs.shape
    da = gates.new_empty(steps, batch, *space, 4 * hidden)
    return da, cs.new_empty(batch if need_dh0 else 0, *space, hidden), cs.new_empty(batch, *space, hidden)


@op(
    "conv_lstm_backward(Tensor? grad_hs, Tensor? grad_hn, Tensor? grad_cn, Tensor gates, Tensor cs, Tensor? c0, "
    "Tensor w_hh, Tensor? peephole, bool need_dh0) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
def _backward(
    grad_hs: Tensor | None,  # (T,B,H,Y,X) any strides
    grad_hn: Tensor | None,  # (B,H,Y,X)
    grad_cn: Tensor | None,  # (B,H,Y,X)
    gates: Tensor,  # (T,B,4H,Y,X)
    cs: Tensor,  # (T,B,H,Y,X) acc
    c0: Tensor | None,  # (B,H,Y,X) acc
    w_hh: Tensor,  # (4H,H,KY,KX)
    peephole: Tensor | None,  # (3,H) or (3,H,Y,X)
    need_dh0: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """da (T,B,Y,X,4H), dh0 (B,Y,X,H) acc (no element unless needed), dc0 (B,Y,X,H) acc."""
    check_sizes(cs=(cs, ("T", "B", "H", "Y", "X")))
    steps, batch, _, *space = cs.shape
    hidden = check_convolution(w_hh, peephole, batch, tuple(space), grad_hn=grad_hn, grad_cn=grad_cn, c0=c0)
    states = (steps, batch, hidden, *space)
    check_sizes(cs=(cs, states), grad_hs=(grad_hs, states), gates=(gates, (steps, batch, 4 * hidden, *space)))
    da, dh0, dc0 = _backward_fake(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0)
    gates, cs = (t.movedim(2, -1).contiguous() for t in (gates, cs))
    cells = [_channels_last(c0), *cs.unbind(0)]
    w_h = w_hh.permute(2, 3, 0, 1).contiguous()  # (KY,KX,4H,H)
    constants = {
        "H": hidden, "KY": w_hh.shape[2], "KX": w_hh.shape[3],
        "PEEPHOLE_PER_PIXEL": peephole is not None and peephole.dim() > 2, "PRECISION": precision(gates),
    }  # fmt: skip
    peephole = _peephole(peephole, cs.dtype)
    strides = (0,) * 4 if grad_hs is None else tuple(grad_hs.stride(dim) for dim in (1, 3, 4, 2))
    config = _config(BACKWARD, gates, dc0[..., 0].numel(), hidden)
    grid = (_programs(config, dc0[..., 0].numel(), hidden),)
    da_next, dh, dc = None, _channels_last(grad_hn), _channels_last(grad_cn)
    for t in reversed(range(steps)):
        launch(
            step_backward_kernel, grid, config,
            da_next, w_h, dh, None if grad_hs is None else grad_hs[t], gates[t], cells[t + 1], cells[t], dc, peephole,
            da[t], dc0, None, batch, *space, *strides, **constants,
        )  # fmt: skip
        da_next, dh, dc = da[t], None, dc0
    if need_dh0:
        launch(
            step_backward_kernel, grid, config,
            da_next, w_h, dh, *(None,) * 8, dh0, batch, *space, *(0,) * 4, **constants,
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

    The model: where a step's programs do not fill the GPU, its time is the length of one program's loop, and the part
    of it that is the input's is worth taking out, since over all T at once it does fill the GPU. Where they do, it is
    the same work in either place, but ahead it goes through memory: 4H channels a pixel and step, written and read.
    In float32 only where the library rounds as the kernel does.
    """
    library = "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"  # it may also say "none"
    return (x.dtype != torch.float32 or library == precision(x)) and _programs(config, pixels, hidden) < MIN_PROGRAMS


def _hoisted(x: Tensor, w_ih: Tensor) -> Tensor:
    """W_ih * x (T,B,Y,X,4H)"""
    images = x.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    a = F.conv2d(images, w_ih, padding=(w_ih.shape[2] // 2, w_ih.shape[3] // 2))
    return a.movedim(1, -1).contiguous().unflatten(0, (x.shape[1], x.shape[0]))


def _channels_last(state: Tensor | None) -> Tensor | None:
    """(B,H,Y,X) -> (B,Y,X,H)"""
    return None if state is None else state.movedim(1, -1).contiguous()


def _peephole(peephole: Tensor | None, acc: torch.dtype) -> Tensor | None:
    """(3,H), or (3,H,Y,X) -> (3,Y,X,H)"""
    return None if peephole is None else peephole.to(acc).movedim(1, -1).contiguous()


# -------------------------------------------------------------------------------------------------------- kernels
# A program has BLOCK_M pixels m = (b,y,x), counted through, and BLOCK_N hidden channels n. Those of neighbouring
# programs have the same pixels, which the cache then holds. <image>_b, _y, _x, _c are the strides of an image.


@triton.jit
def step_kernel(
    x_ptr, h_ptr, c_ptr, hoisted_ptr, w_x_ptr, w_h_ptr, bias_ptr, peephole_ptr, h_out_ptr, c_out_ptr, gates_ptr,
    B, Y, X, x_b, x_y, x_x, x_c,
    C: tl.constexpr, H: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    PEEPHOLE_PER_PIXEL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From x_t (B,C,Y,X), or W_ih * x_t (B,Y,X,4H), and h, c (B,Y,X,H) to those of the next step, and the gates."""
    m, n, b, y, x, inside = block_of_pixels(B, Y, X, H, KY, BLOCK_M, BLOCK_N)
    acc: tl.constexpr = c_out_ptr.dtype.element_ty
    at = m[:, None] * H + n[None]
    at_gates = m[:, None] * (4 * H) + n[None]
    f = tl.zeros((BLOCK_M, BLOCK_N), acc)
    i = tl.zeros((BLOCK_M, BLOCK_N), acc)
    g = tl.zeros((BLOCK_M, BLOCK_N), acc)
    o = tl.zeros((BLOCK_M, BLOCK_N), acc)
    if x_ptr is not None:
        x_ptr += (offset(b, x_b) + offset(y, x_y) + offset(x, x_x))[:, None]
        f, i, g, o = convolve(
            x_ptr, w_x_ptr, f, i, g, o, y, x, n, Y, X, x_y, x_x, x_c, C, H, KY, KX, PRECISION, BLOCK_K
        )
    if h_ptr is not None:
        h_ptr += (m * H)[:, None]
        f, i, g, o = convolve(
            h_ptr, w_h_ptr, f, i, g, o, y, x, n, Y, X, offset(X, H), H, 1, H, H, KY, KX, PRECISION, BLOCK_K
        )
    if hoisted_ptr is not None:
        f += tl.load(hoisted_ptr + at_gates, inside, 0.0).to(acc)
        i += tl.load(hoisted_ptr + at_gates + H, inside, 0.0).to(acc)
        g += tl.load(hoisted_ptr + at_gates + 2 * H, inside, 0.0).to(acc)
        o += tl.load(hoisted_ptr + at_gates + 3 * H, inside, 0.0).to(acc)
    if bias_ptr is not None:
        f += tl.load(bias_ptr + n, n < H, 0.0).to(acc)[None]
        i += tl.load(bias_ptr + n + H, n < H, 0.0).to(acc)[None]
        g += tl.load(bias_ptr + n + 2 * H, n < H, 0.0).to(acc)[None]
        o += tl.load(bias_ptr + n + 3 * H, n < H, 0.0).to(acc)[None]

    c = tl.zeros((BLOCK_M, BLOCK_N), acc)
    if c_ptr is not None:
        c = tl.load(c_ptr + at, inside, 0.0)
    if peephole_ptr is not None:
        p_f, p_i, p_o = peepholes(peephole_ptr, y, x, n, Y, X, H, PEEPHOLE_PER_PIXEL, inside)
        f += p_f * c
        i += p_i * c
    f, i, g = sigmoid(f), sigmoid(i), tanh(g)
    c = f * c + i * g
    if peephole_ptr is not None:
        o += p_o * c
    o = sigmoid(o)
    dtype: tl.constexpr = h_out_ptr.dtype.element_ty
    tl.store(c_out_ptr + at, c, inside)
    tl.store(h_out_ptr + at, cast(o * tanh(c), dtype), inside)
    if gates_ptr is not None:
        tl.store(gates_ptr + at_gates, cast(f, dtype), inside)
        tl.store(gates_ptr + at_gates + H, cast(i, dtype), inside)
        tl.store(gates_ptr + at_gates + 2 * H, cast(g, dtype), inside)
        tl.store(gates_ptr + at_gates + 3 * H, cast(o, dtype), inside)


@triton.jit
def step_backward_kernel(
    da_next_ptr, w_h_ptr, dh_ptr, grad_h_ptr, gates_ptr, c_ptr, c_prev_ptr, dc_ptr, peephole_ptr,
    da_ptr, dc_out_ptr, dh_out_ptr, B, Y, X, grad_b, grad_y, grad_x, grad_c,
    H: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    PEEPHOLE_PER_PIXEL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dh = W_hhᵀ * da_{t+1}, or as it is given, and grad_h_t; with dc, to da_t and dc of the step before.

    All (B,Y,X,·), but grad_h (B,H,Y,X) by its strides. Where dh_out is given, dh is all that is wanted.
    """
    m, n, b, y, x, inside = block_of_pixels(B, Y, X, H, KY, BLOCK_M, BLOCK_N)
    if dh_out_ptr is not None:
        acc: tl.constexpr = dh_out_ptr.dtype.element_ty
    else:
        acc: tl.constexpr = dc_out_ptr.dtype.element_ty
    at = m[:, None] * H + n[None]
    dh = tl.zeros((BLOCK_M, BLOCK_N), acc)
    if da_next_ptr is not None:
        dh = convolve_transposed(
            da_next_ptr + (m * (4 * H))[:, None], w_h_ptr, dh, y, x, n, Y, X, H, KY, KX, PRECISION, BLOCK_K
        )
    if dh_ptr is not None:
        dh += tl.load(dh_ptr + at, inside, 0.0).to(acc)
    if dh_out_ptr is not None:
        tl.store(dh_out_ptr + at, dh, inside)
    else:
        if grad_h_ptr is not None:
            grad_h_ptr += (offset(b, grad_b) + offset(y, grad_y) + offset(x, grad_x))[:, None] + offset(n, grad_c)[None]
            dh += tl.load(grad_h_ptr, inside, 0.0).to(acc)
        gates_ptr += m[:, None] * (4 * H) + n[None]
        f = tl.load(gates_ptr, inside, 0.0).to(acc)
        i = tl.load(gates_ptr + H, inside, 0.0).to(acc)
        g = tl.load(gates_ptr + 2 * H, inside, 0.0).to(acc)
        o = tl.load(gates_ptr + 3 * H, inside, 0.0).to(acc)
        c_prev = tl.zeros((BLOCK_M, BLOCK_N), acc)
        if c_prev_ptr is not None:
            c_prev = tl.load(c_prev_ptr + at, inside, 0.0)
        dc = tl.zeros((BLOCK_M, BLOCK_N), acc)
        if dc_ptr is not None:
            dc = tl.load(dc_ptr + at, inside, 0.0).to(acc)

        tanh_c = tanh(tl.load(c_ptr + at, inside, 0.0))
        da_o = dh * tanh_c * o * (1 - o)
        dc += dh * o * (1 - tanh_c * tanh_c)
        if peephole_ptr is not None:
            p_f, p_i, p_o = peepholes(peephole_ptr, y, x, n, Y, X, H, PEEPHOLE_PER_PIXEL, inside)
            dc += p_o * da_o
        da_f = dc * c_prev * f * (1 - f)
        da_i = dc * g * i * (1 - i)
        da_g = dc * i * (1 - g * g)
        dc = dc * f
        if peephole_ptr is not None:
            dc += p_f * da_f + p_i * da_i
        tl.store(dc_out_ptr + at, dc, inside)
        da_ptr += m[:, None] * (4 * H) + n[None]
        dtype: tl.constexpr = da_ptr.dtype.element_ty
        tl.store(da_ptr, cast(da_f, dtype), inside)
        tl.store(da_ptr + H, cast(da_i, dtype), inside)
        tl.store(da_ptr + 2 * H, cast(da_g, dtype), inside)
        tl.store(da_ptr + 3 * H, cast(da_o, dtype), inside)


@triton.jit
def block_of_pixels(B, Y, X, H: tl.constexpr, KY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Pixels m, channels n, what m is as b, y, x, and which (m,n) there are. m is to be multiplied: 64 bits."""
    blocks: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    m = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    within = m < B * Y * X
    y = tl.where(within, m // X % Y, -KY)  # beyond the last image: no tap of the kernel reaches into it
    return m.to(tl.int64), n, m // (X * Y), y, m % X, within[:, None] & (n < H)[None]


@triton.jit
def convolve(
    x_ptr, w_ptr, f, i, g, o, y, x, n, Y, X, x_y, x_x, x_c,
    C: tl.constexpr, H: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """f, i, g, o + W * x, of an image with C channels whose pixels x_ptr points to; W (KY,KX,C,4H)"""
    blocks: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    for step in range(KY * KX * blocks):
        tap = step // blocks
        c = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        patch = load_patch(x_ptr, y, x, Y, X, c, tap // KX - KY // 2, tap % KX - KX // 2, x_y, x_x, x_c, C)
        w_block_ptr = w_ptr + offset(tap * C + c, 4 * H)[:, None] + n[None]
        inside = (c < C)[:, None] & (n < H)[None]
        f = product(patch, tl.load(w_block_ptr, inside, 0.0), f, PRECISION)
        i = product(patch, tl.load(w_block_ptr + H, inside, 0.0), i, PRECISION)
        g = product(patch, tl.load(w_block_ptr + 2 * H, inside, 0.0), g, PRECISION)
        o = product(patch, tl.load(w_block_ptr + 3 * H, inside, 0.0), o, PRECISION)
    return f, i, g, o


@triton.jit
def convolve_transposed(
    da_ptr, w_ptr, dh, y, x, n, Y, X, H: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dh + Wᵀ * da, of an image with 4H channels whose pixels da_ptr points to; W (KY,KX,4H,H)"""
    blocks: tl.constexpr = (4 * H + BLOCK_K - 1) // BLOCK_K
    for step in range(KY * KX * blocks):
        tap = step // blocks
        c = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        dy, dx = KY // 2 - tap // KX, KX // 2 - tap % KX
        patch = load_patch(da_ptr, y, x, Y, X, c, dy, dx, offset(X, 4 * H), 4 * H, 1, 4 * H)
        w_block_ptr = w_ptr + offset(tap * 4 * H + c, H)[:, None] + n[None]
        weight = tl.load(w_block_ptr, (c < 4 * H)[:, None] & (n < H)[None], 0.0)
        dh = product(patch, weight, dh, PRECISION)
    return dh


@triton.jit
def load_patch(x_ptr, y, x, Y, X, c, dy, dx, x_y, x_x, x_c, C: tl.constexpr):
    """The channels c of the pixels (dy,dx) away from those x_ptr points to: zeros outside of the image."""
    inside = (y + dy >= 0) & (y + dy < Y) & (x + dx >= 0) & (x + dx < X)
    x_ptr += offset(dy, x_y) + offset(dx, x_x)
    return tl.load(x_ptr + offset(c, x_c)[None], inside[:, None] & (c < C)[None], 0.0)


@triton.jit
def peepholes(peephole_ptr, y, x, n, Y, X, H: tl.constexpr, PER_PIXEL: tl.constexpr, inside):
    """p_f, p_i, p_o, from (3,H) or (3,Y,X,H)"""
    if PER_PIXEL:
        peephole_ptr += offset(y * X + x, H)[:, None] + n[None]
        size = offset(Y * X, H)
    else:
        peephole_ptr += n[None]
        size = H
        inside = (n < H)[None]
    return (
        tl.load(peephole_ptr, inside, 0.0),
        tl.load(peephole_ptr + size, inside, 0.0),
        tl.load(peephole_ptr + 2 * size, inside, 0.0),
    )
