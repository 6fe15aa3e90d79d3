"""The ConvLSTM over a sequence as an autograd Function.

A back end runs the two recurrences, and the gradients of a convolution's two factors. With da, the gradient of the
pre-activations, known for many steps, what follows from it is batched over them:

    dW_ih, dx: of W_ih * x     dW_hh: of W_hh * h_{t-1}     db: sums of da     dp: sums of da∘c
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hybridops.autograd.double_backward import formula_gradients
from hybridops.autograd.transforms import needs_differentiable_gradients, needs_formulas
from hybridops.reference import conv_lstm as reference

# The backward goes through the sequence in chunks of whole steps whose da has about so many values, so that it (and,
# where they are recomputed, the gates) exists for one chunk at a time. A chunk prepares the weights anew, which takes
# as long on a CPU as some 500 pixels do, whatever the channels; any other device must be filled by one.
VALUES_PER_CHUNK_ON_CPU, VALUES_PER_CHUNK = 2**20, 2**26
PIXELS_PER_CHUNK_ON_CPU = 4096


def run(
    backend: ModuleType,
    x: Tensor,  # (B,T,C,S*), T > 0
    h0: Tensor | None,  # (B,H,S*)
    c0: Tensor | None,  # (B,H,S*) acc
    w_ih: Tensor,  # (4H,C,K*)
    w_hh: Tensor,  # (4H,H,K*)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3,H) or (3,H,S*)
    save: str,  # "gates" | "recompute"
    want_h_n: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """output (B,T,H,S*), h_n (B,H,S*) if wanted, c_n (B,H,S*) acc; none is a view, of another or of what is saved."""
    inputs = (x, h0, c0, w_ih, w_hh, bias, peephole)
    if needs_formulas(backend, reference):
        hs, h_n, c_n = _states(*inputs)
        return hs.transpose(0, 1), h_n if want_h_n else None, c_n
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return ConvLSTM.apply(backend, save, want_h_n, *inputs)
    hs, cs, _ = backend.conv_lstm_forward(*inputs, "nothing")
    return _no_view(hs.transpose(0, 1)), hs[-1].clone() if want_h_n else None, _no_view(cs[-1])


def _no_view(t: Tensor) -> Tensor:
    """The same memory and version, but no view to autograd, which would refuse to have one written into that a Function
    made. While a graph is captured it stays the view: `detach` would be in the graph, and end its gradients.
    """
    captured = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return t if captured else t.detach()


class ConvLSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: ModuleType, save: str, want_h_n: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        hs, cs, gates = backend.conv_lstm_forward(*inputs, "gates" if save == "gates" else "cells")
        ctx.backend = backend
        ctx.set_materialize_grads(False)
        # The backward of one step reads no h, so that a step's may be written into, as that of `nn.LSTMCell`.
        read = save == "recompute" or len(hs) > 1
        ctx.save_for_backward(*inputs, hs if read else hs.new_empty(()).expand(hs.shape), cs, gates)
        return _no_view(hs.transpose(0, 1)), hs[-1].clone() if want_h_n else None, cs[-1].clone()

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_hn: Tensor | None, grad_cn: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *inputs, hs, cs, gates = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if grad_output is None and grad_hn is None and grad_cn is None:
            return (None,) * 10
        grad_hs = None if grad_output is None else grad_output.transpose(0, 1)
        if needs_differentiable_gradients(grad_output, grad_hn, grad_cn):
            grads = formula_gradients(_states, inputs, needed, (grad_hs, grad_hn, grad_cn))
        else:
            gradients = _gradients_as_one_op if torch.compiler.is_compiling() else _gradients
            grads = gradients(ctx.backend, inputs, needed, hs, cs, gates, grad_hs, grad_hn, grad_cn)
        return None, None, None, *grads


def _states(*inputs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    hs, cs, _ = reference.conv_lstm_forward(*inputs, "nothing")
    return hs, hs[-1], cs[-1]


def _gradients(
    backend: ModuleType,
    inputs: list[Tensor | None],
    needed: tuple[bool, ...],
    hs: Tensor,  # (T,B,H,S*)
    cs: Tensor,  # (T,B,H,S*) acc
    gates: Tensor | None,  # (T,B,4H,S*)
    grad_hs: Tensor | None,  # (T,B,H,S*)
    dh: Tensor | None,  # (B,H,S*): of h_n, then carried from chunk to chunk
    dc: Tensor | None,  # (B,H,S*): of c_n, likewise
) -> tuple[Tensor | None, ...]:
    x, h0, c0, w_ih, w_hh, bias, peephole = inputs
    need_x, need_h0, need_c0, need_w_ih, need_w_hh, need_bias, need_peephole = needed
    steps, length = len(hs), _steps_per_chunk(hs)
    dx = _time_major_channels_last(x) if need_x else None
    dw_ih, dw_hh = (_zeros(w, cs.dtype) if need else None for w, need in ((w_ih, need_w_ih), (w_hh, need_w_hh)))
    db = dp = None
    for end in range(steps, 0, -length):
        start = max(0, end - length)
        chunk = slice(start, end)
        x_chunk, cs_chunk = x[:, chunk], cs[chunk]
        h_before, c_before = (hs[start - 1], cs[start - 1]) if start else (h0, c0)
        upstream_grads = (None if grad_hs is None else grad_hs[chunk], dh, dc)
        need_dh = start > 0 or need_h0
        if gates is None:
            da, dh, dc = backend.conv_lstm_backward_from_states(
                *upstream_grads, x_chunk, h_before, hs[chunk], cs_chunk, c_before, w_ih, w_hh, bias, peephole, need_dh
            )
        else:
            da, dh, dc = backend.conv_lstm_backward(
                *upstream_grads, gates[chunk], cs_chunk, c_before, w_hh, peephole, need_dh
            )
        if need_x:
            backend.input_gradient(da, w_ih, dx[chunk])
        _add_weight_gradients(backend, da, x_chunk.transpose(0, 1), h0, hs[:end], dw_ih, dw_hh)
        if need_bias:
            db = _add(db, da.sum([0, 1, *range(3, da.dim())], dtype=cs.dtype))
        if need_peephole:
            dp = _add(dp, _peephole_gradient(da, c_before, cs_chunk, peephole))
        del da  # before that of the next chunk is made
    return (
        dx.transpose(0, 1) if need_x else None,
        dh.to(h0.dtype) if need_h0 else None,
        dc if need_c0 else None,
        dw_ih.to(w_ih.dtype) if need_w_ih else None,
        dw_hh.to(w_hh.dtype) if need_w_hh else None,
        db.to(bias.dtype) if need_bias else None,
        dp.to(peephole.dtype) if need_peephole else None,
    )


def _steps_per_chunk(hs: Tensor) -> int:  # (T,B,H,S*)
    _, batch, hidden, *space = hs.shape
    pixels = max(1, batch * math.prod(space))
    if hs.device.type != "cpu":
        return max(1, VALUES_PER_CHUNK // (4 * hidden * pixels))
    return max(1, VALUES_PER_CHUNK_ON_CPU // (4 * hidden * pixels), PIXELS_PER_CHUNK_ON_CPU // pixels)


def _time_major_channels_last(x: Tensor) -> Tensor:
    """Empty (T,B,C,S*) for x (B,T,C,S*), images contiguous in time: as the gradients of the chunks come."""
    return x.new_empty(x.shape[1], x.shape[0], *x.shape[3:], x.shape[2]).movedim(-1, 2)


def _zeros(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(weight, dtype=dtype, memory_format=torch.contiguous_format)


def _add_weight_gradients(
    backend: ModuleType,
    da: Tensor,  # (t,B,4H,S*)
    x: Tensor,  # (t,B,C,S*)
    h0: Tensor | None,  # (B,H,S*), None = zeros
    hs: Tensor,  # (T,B,H,S*), T >= t
    dw_ih: Tensor | None,  # (4H,C,K*) acc, None = not wanted
    dw_hh: Tensor | None,  # (4H,H,K*) acc, likewise
) -> None:
    """Adds those of the last steps of hs, which are the steps of da and x: W_hh is beside h one step earlier."""
    start = len(hs) - len(da)
    if start:
        parts = [(da, x, hs[start - 1 : -1])]
    else:
        parts = [(da[:1], x[:1], None if h0 is None else h0[None]), (da[1:], x[1:], hs[:-1])]
    for da_part, *factors in parts:
        wanted = [(f, dw) for f, dw in zip(factors, (dw_ih, dw_hh), strict=True) if f is not None and dw is not None]
        if wanted and da_part.numel():
            backend.weight_gradients(da_part, *zip(*wanted, strict=True))


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _peephole_gradient(da: Tensor, c_before: Tensor | None, cs: Tensor, peephole: Tensor) -> Tensor:
    """dp_f, dp_i = Σ da_f∘c_{t-1}, Σ da_i∘c_{t-1}; dp_o = Σ da_o∘c_t: over time and batch, and space if it has none."""
    da_f, da_i, _, da_o = da.to(cs.dtype).chunk(4, dim=2)
    c_before = torch.zeros_like(cs[0]) if c_before is None else c_before
    cs_prev = torch.cat([c_before[None], cs[:-1]])
    over = [0, 1] if peephole.dim() > 2 else [0, 1, *range(3, cs.dim())]
    return torch.stack([(a * c).sum(over) for a, c in ((da_f, cs_prev), (da_i, cs_prev), (da_o, cs))])


# ------------------------------------------------------------------------------------------ in a graph of torch.compile
# The loop over chunks is one op there. Traced, it would be unrolled, and anew for every number of steps and images.

_OP = "hybridops::conv_lstm_gradients"
torch.library.define(
    _OP,
    "(str backend, Tensor?[] inputs, bool[] needed, Tensor hs, Tensor cs, Tensor? gates, Tensor? grad_hs, "
    "Tensor? grad_hn, Tensor? grad_cn) -> Tensor[]",
)


def _gradients_as_one_op(
    backend: ModuleType, inputs: list[Tensor | None], needed: tuple[bool, ...], *tensors: Tensor | None
) -> tuple[Tensor | None, ...]:
    grads = iter(torch.ops.hybridops.conv_lstm_gradients.default(backend.__name__, inputs, needed, *tensors))
    return tuple(next(grads) if need else None for need in needed)


@torch.library.impl(_OP, "CompositeExplicitAutograd")
def _(backend: str, inputs: list[Tensor | None], needed: list[bool], *tensors: Tensor | None) -> list[Tensor]:
    """The gradients that are needed; contiguous, but for dx, which is as `_gradients` makes it."""
    dx, *others = _gradients(sys.modules[backend], inputs, needed, *tensors)
    return [grad for grad in (dx, *(g if g is None else g.contiguous() for g in others)) if grad is not None]


@torch.library.register_fake(_OP)
def _(backend: str, inputs: list[Tensor | None], needed: list[bool], *tensors: Tensor | None) -> list[Tensor]:
    wanted = [t for t, need in zip(inputs[1:], needed[1:], strict=True) if need]
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in wanted]
    return [_time_major_channels_last(inputs[0]).transpose(0, 1), *grads] if needed[0] else grads
