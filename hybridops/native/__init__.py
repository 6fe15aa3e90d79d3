"""The compiled back end: loading its libraries, what it takes, the shapes its ops give (fakes, for torch.compile)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hybridops.checks import accumulation_dtype

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPS = (
    "conv_lstm_forward", "conv_lstm_backward", "conv_lstm_backward_from_states",
    "conv_input_gradient", "conv_weight_gradient",
    "additive_prepare_keys", "additive_scores_forward", "additive_attention_forward",
    "additive_attention_step", "additive_scores_backward",
    "attention_decoder_pack", "attention_decoder_forward", "attention_decoder_backward", "cpu_isa",
)  # fmt: skip
BUILD = "build it with `pip install --no-build-isolation -e .` or `python setup.py build_ext --inplace`"


def _load(name: str) -> str | None:
    """Load the library of that name; None, or why it could not be."""
    folder = Path(__file__).parent.parent
    found = [path for pattern in (f"{name}.*so", f"{name}.*pyd") for path in sorted(folder.glob(pattern))]
    if not found:
        left_out = folder / "left_out.txt"  # by setup.py, in an installed package
        because = f" ({left_out.read_text()})" if name == "_C" and left_out.exists() else ""
        return f"hybridops.{name} is not compiled{because}: {BUILD}"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"{found[0]} does not load ({error.__cause__ or error}): {BUILD}"
    if not all(hasattr(torch.ops.hybridops, op) for op in OPS):
        return f"{found[0]} was compiled from another version: {BUILD}"
    return None


def _load_cuda() -> str | None:
    if torch.version.cuda is None:  # it could not load: its symbols are in libtorch_cuda
        return "this torch is built without CUDA"
    return _unavailable["cpu"] or _load("_C_cuda")  # the ops are defined in _C


# By device type: None where the compiled ops are here, else why not.
_unavailable: dict[str, str | None] = {"cpu": _load("_C")}
_unavailable["cuda"] = _load_cuda()


def unavailable_reason(device_type: str = "cpu") -> str | None:
    """None where the compiled ops are here for that device; else why not. For none are they without the CPU's."""
    return _unavailable[device_type]


def unsupported_reason(family: str, x: Tensor, spatial_dims: int) -> str | None:
    """None if the compiled ops take tensors like x, else what they do not take."""
    if x.device.type not in _unavailable:
        return f"the compiled ops run on the CPU and on CUDA, not on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"the compiled ops do not take {x.dtype}"
    if family == "conv_lstm" and spatial_dims > 2:
        return f"the compiled ConvLSTM takes 1 or 2 spatial dimensions, not {spatial_dims}"
    if family == "attention_decoder" and x.device.type != "cpu":
        return f"the compiled attention decoder runs on the CPU, not on {x.device.type}"
    return _unavailable[x.device.type]  # last: only who would have the compiled ops hears that they are missing


def refuse_forward_mode(*tensors: Tensor | None) -> None:
    """The compiled ops have no forward-mode derivative, and would drop a tangent without a word."""
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError("the compiled ops have no forward-mode derivative: use backend='reference'")


def call(op: torch._ops.OpOverload, *args: Any) -> Any:
    """The op, for those who see to its gradients themselves. Its own derivative (autograd/raw_ops.py), in Python, is
    passed by, since that would take longer than the smallest calls; not in a graph of torch.compile, nor where one
    might be asked for.
    """
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op._op(*args)  # as op() does, a call later


def cpu_isa() -> str:
    """The instruction set the CPU kernels run on; the environment variable HYBRIDOPS_CPU_ISA can lower it."""
    return ("portable", "avx2", "avx512", "avx512_bf16")[torch.ops.hybridops.cpu_isa()]


if unavailable_reason() is None:

    @torch.library.register_fake("hybridops::conv_lstm_forward")
    def _(x, h0, c0, w_ih, w_hh, bias, peephole, save, winograd):
        batch, steps, _, *space = x.shape
        hidden, acc = w_hh.shape[1], accumulation_dtype(x.dtype)
        hs = x.new_empty(steps, batch, *space, hidden)
        cs = x.new_empty(steps if save else 1, batch, *space, hidden, dtype=acc)
        return hs, cs, x.new_empty(steps if save == 2 else 0, batch, *space, 4 * hidden)

    @torch.library.register_fake("hybridops::conv_lstm_backward")
    def _(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0, winograd):
        return _backward_shapes(gates.dtype, cs, need_dh0)

    @torch.library.register_fake("hybridops::conv_lstm_backward_from_states")
    def _(grad_hs, grad_hn, grad_cn, x, h0, hs, cs, c0, w_ih, w_hh, bias, peephole, need_dh0, winograd):
        return _backward_shapes(hs.dtype, cs, need_dh0)

    def _backward_shapes(dtype: torch.dtype, cs: Tensor, need_dh0: bool) -> tuple[Tensor, Tensor, Tensor]:
        steps, batch, *space, hidden = cs.shape
        da = cs.new_empty(steps, batch, *space, 4 * hidden, dtype=dtype)
        return da, cs.new_empty(batch if need_dh0 else 0, *space, hidden), cs.new_empty(batch, *space, hidden)

    @torch.library.register_fake("hybridops::conv_input_gradient")
    def _(da, weight, winograd, dx):
        return None

    @torch.library.register_fake("hybridops::conv_weight_gradient")
    def _(da, x, h, winograd, dw_x, dw_h):
        return None

    @torch.library.register_fake("hybridops::additive_scores_forward")
    def _(q, k, v, activation, negative_slope, key_exponentials, key_bounds):
        return q.new_empty(q.shape[0], q.shape[1], k.shape[1], dtype=accumulation_dtype(q.dtype))

    @torch.library.register_fake("hybridops::additive_attention_forward")
    def _(q, k, v, value, mask, score_bias, scale, activation, negative_slope, exponentials, bounds, need_weights):
        context = q.new_empty(q.shape[0], q.shape[1], value.shape[2])
        return context, q.new_empty(q.shape[0], q.shape[1], k.shape[1] if need_weights else 0)

    @torch.library.register_fake("hybridops::additive_prepare_keys")
    def _(k):
        acc = accumulation_dtype(k.dtype)
        group = _lanes(acc, vectors=4)
        padded = -(-k.shape[2] // group) * group
        return k.new_empty(*k.shape[:2], padded, dtype=acc), k.new_empty(k.shape[:2], dtype=acc)

    @torch.library.register_fake("hybridops::additive_attention_step")
    def _(query, projection, bias, k, v, value, mask, scale, activation, slope, exponentials, bounds, need_weights):
        rows = query.shape[:-1]
        return query.new_empty(*rows, value.shape[2]), query.new_empty(*rows, k.shape[1] if need_weights else 0)

    def _lanes(dtype: torch.dtype, vectors: int) -> int:
        return vectors * (16, 32, 64, 64)[torch.ops.hybridops.cpu_isa()] // dtype.itemsize

    @torch.library.register_fake("hybridops::additive_scores_backward")
    def _(grad, q, k, v, activation, negative_slope):
        return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))

    @torch.library.register_fake("hybridops::attention_decoder_pack")
    def _(w_q, w_c, w_h, w_beta, cell):
        # for each weight whole groups of outputs, whole operands of inputs: packed_product_kernels.h
        isa = torch.ops.hybridops.cpu_isa()
        acc = accumulation_dtype(w_q.dtype)
        dot_product = w_q.dtype == torch.bfloat16 and isa == 3
        depth, size = (2, 2) if dot_product else (1, acc.itemsize)

        def packed(outputs: int, inputs: int, vectors: int) -> int:
            width = _lanes(acc, vectors)
            bytes = -(-outputs // width) * width * -(-inputs // depth) * depth * size
            return -(-bytes // 64) * 64

        (width, hidden), channels, plain = w_q.shape, w_c.shape[1], 4 if isa >= 2 else 2
        gates, units = 4 if cell == 0 else 3, -(-hidden // _lanes(acc, 1)) * _lanes(acc, 1)
        total = packed(width, hidden, plain) + (0 if w_beta is None else packed(channels, hidden, plain))
        total += packed(gates * units, channels, gates) + packed(gates * units, hidden, gates)
        return w_q.new_empty(64 + total, dtype=torch.uint8)

    @torch.library.register_fake("hybridops::attention_decoder_forward")
    def _(
        x_gates, key, value, v, h0, cell0, context0, w_q, b_q, w_c, w_h, b_h, w_beta, b_beta, mask, score_bias, keep,
        lengths, exponentials, bounds, packed, scale, activation, slope, cell, query, save,
    ):  # fmt: skip
        new, lstm, gated = x_gates.new_empty, cell == 0, save and w_beta is not None
        batch, steps, hidden, acc = *x_gates.shape[:2], h0.shape[1], accumulation_dtype(x_gates.dtype)

        def rows(wanted: bool, width: int, dtype: torch.dtype | None = None) -> Tensor:
            return new(batch, steps, width, dtype=dtype) if wanted else new(0, dtype=dtype)

        context, weights = rows(True, value.shape[2]), rows(True, key.shape[1])
        cell_n = new(batch, hidden, dtype=acc) if lstm else new(0, dtype=acc)
        saved = (
            rows(save and lstm, hidden, acc), rows(save, x_gates.shape[2]), rows(save and not lstm, hidden),
            rows(save, key.shape[2]), rows(save and keep is not None, key.shape[1]),
            rows(gated, value.shape[2]), rows(gated, value.shape[2]),
        )  # fmt: skip
        return rows(True, hidden), new(batch, hidden), cell_n, context, weights, *saved

    @torch.library.register_fake("hybridops::attention_decoder_backward")
    def _(
        grad_output, grad_h_n, grad_cell_n, grad_context, grad_weights, key, value, v, h0, cell0, w_q, w_c, w_h, w_beta,
        mask, keep, lengths, exponentials, bounds, output, cells, gates, hidden_n, queries, alpha, beta, ungated,
        scale, activation, slope, cell, query,
    ):  # fmt: skip
        new, lstm, acc = gates.new_empty, cell == 0, accumulation_dtype(gates.dtype)
        batch, steps, _ = gates.shape
        return (
            new(gates.shape), new(0) if lstm else new(gates.shape), new(queries.shape),
            new(batch, steps, value.shape[2]), new(batch, steps, key.shape[1], dtype=acc),
            new(0) if w_beta is None else new(batch, steps, value.shape[2]),
            new(h0.shape), new(h0.shape if lstm else (0,), dtype=acc),
            new(0) if query == 0 else new(batch, value.shape[2]),
        )  # fmt: skip
