"""The ConvLSTM over a sequence as an autograd Function.

A back end runs the two recurrences, and the gradients of a convolution's two factors; recurrence.py goes through the
backward in chunks. What is left for the LSTM is

    db: sums of da        dp_f, dp_i = Σ da_f∘c_{t-1}, Σ da_i∘c_{t-1}        dp_o = Σ da_o∘c_t

Outside, tensors have the layout of the public functions, (B,T,C,S*); inside, that of layouts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridops.autograd.double_backward import formula_gradients
from hybridops.autograd.recurrence import Deferred, add, chunks, gradients_as_one_op
from hybridops.autograd.transforms import needs_differentiable_gradients, needs_formulas, refuse_forward_mode
from hybridops.contract import ConvLSTMImpl, ConvLSTMInputs, ConvLSTMStates, Save, StateGradients
from hybridops.formulas import conv_lstm as formulas
from hybridops.layouts import image_inside, image_outside, sequence_inside, sequence_outside, weight_inside


def run(impl: ConvLSTMImpl, inputs: ConvLSTMInputs, save: Save, want_h_n: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """output (B,T,H,S*), h_n (B,H,S*) if wanted, c_n (B,H,S*) acc; none is a view, of another or of what is saved.

    Args:
        inputs: in the layout outside, x (B,T,C,S*), T > 0, states (B,H,S*), peephole (3,H) or (3,H,S*).
    """
    if needs_formulas(impl, formulas):
        output, h_n, c_n = _formula(*inputs)
        return output, h_n if want_h_n else None, c_n
    refuse_forward_mode(*inputs)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return ConvLSTM.apply(impl, save, want_h_n, *inputs)
    states = impl.conv_lstm_forward(inside(*inputs), Save.NOTHING)
    output, last_h, c_n = outside(states, inputs.x.dim() - 3, want_h_n)
    return _no_view(output), None if last_h is None else last_h.clone(), _no_view(c_n)


def inside(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
) -> ConvLSTMInputs:
    h0, c0 = (None if state is None else image_inside(state) for state in (h0, c0))
    if peephole is not None and peephole.dim() > 2:
        peephole = image_inside(peephole)
    return ConvLSTMInputs(sequence_inside(x), h0, c0, weight_inside(w_ih), weight_inside(w_hh), bias, peephole)


def outside(states: ConvLSTMStates, spatial_dims: int, want_h_n: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
    """output, h_n if wanted, c_n: views"""
    h_n = image_outside(states.hs[-1], spatial_dims) if want_h_n else None
    return sequence_outside(states.hs, spatial_dims), h_n, image_outside(states.cs[-1], spatial_dims)


def _no_view(t: Tensor) -> Tensor:
    """The same memory and version, but no view to autograd, which would refuse to have one written into that a Function
    made. While a graph is captured it stays the view: `detach` would be in the graph, and end its gradients.
    """
    captured = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return t if captured else t.detach()


def _formula(x: Tensor, *others: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    """`run`, differentiable as it stands"""
    return outside(formulas.conv_lstm_forward(inside(x, *others), Save.NOTHING), x.dim() - 3)


class ConvLSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: ConvLSTMImpl, save: Save, want_h_n: bool, x: Tensor, *others: Any
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        states = impl.conv_lstm_forward(inside(x, *others), save)
        hs, cs, gates = states
        ctx.impl = impl
        ctx.set_materialize_grads(False)
        # The backward of one step reads no h, so that a step's may be written into, as that of `nn.LSTMCell`.
        read = save == Save.CELLS or len(hs) > 1
        ctx.save_for_backward(x, *others, hs if read else hs.new_empty(()).expand(hs.shape), cs, gates)
        output, h_n, c_n = outside(states, x.dim() - 3, want_h_n)
        return _no_view(output), None if h_n is None else h_n.clone(), c_n.clone()

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_hn: Tensor | None, grad_cn: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *inputs, hs, cs, gates = ctx.saved_tensors  # asked for once: checkpointing gives them once
        states = (hs, cs, gates)
        needed, grads = ctx.needs_input_grad[3:], (grad_output, grad_hn, grad_cn)
        if all(grad is None for grad in grads):
            return (None,) * 10
        if needs_differentiable_gradients(*grads):
            found = formula_gradients(_formula, inputs, needed, grads)
        elif torch.compiler.is_compiling():
            found = gradients_as_one_op(__name__, ctx.impl, inputs, needed, states, grads)
        else:
            found = gradients(ctx.impl, inputs, needed, states, grads)
        return None, None, None, *found


def gradients(
    impl: ConvLSTMImpl,
    inputs: Sequence[Any],  # as `run` takes them
    needed: Sequence[bool],
    states: Sequence[Any],  # ConvLSTMStates
    grads: Sequence[Tensor | None],  # of output, h_n, c_n
) -> tuple[Tensor | None, ...]:
    """Of each input, None where it is not needed."""
    outer, (hs, cs, gates) = ConvLSTMInputs(*inputs), states
    inner, spatial_dims = inside(*outer), outer.x.dim() - 3
    grad_hs = None if grads[0] is None else sequence_inside(grads[0])
    dh, dc = (None if state is None else image_inside(state) for state in grads[1:])
    need_x, need_h0, _, need_w_ih, need_w_hh, need_bias, need_peephole = needed
    need_factors = (need_x, need_w_ih, need_w_hh)
    deferred = Deferred(impl, inner.x, inner.h0, hs, (inner.w_ih, inner.w_hh), need_factors, cs.dtype)
    db = dp = None
    for steps in chunks(hs, gates=4):
        h, c = (hs[steps.start - 1], cs[steps.start - 1]) if steps.start else (inner.h0, inner.c0)
        kept = ConvLSTMStates(hs[steps], cs[steps], None if gates is None else gates[steps])
        upstream = StateGradients(None if grad_hs is None else grad_hs[steps], dh, dc)
        chunk = inner._replace(x=inner.x[steps], h0=h, c0=c)
        da, dh, dc = impl.conv_lstm_backward(upstream, chunk, kept, steps.start > 0 or need_h0)
        deferred.add(steps, da, da)
        if need_bias:
            db = add(db, _bias_gradient(da, cs.dtype))
        if need_peephole and inner.peephole is not None:
            dp = add(dp, _peephole_gradient(da, c, cs[steps], per_position=inner.peephole.dim() > 2))
        del da  # before that of the next chunk is made

    def image(inside: Tensor | None) -> Tensor | None:
        return None if inside is None else image_outside(inside, spatial_dims)

    found = (
        None if deferred.dx is None else sequence_outside(deferred.dx, spatial_dims),
        image(dh),
        image(dc),
        None if deferred.dw_ih is None else deferred.dw_ih.reshape(outer.w_ih.shape),
        None if deferred.dw_hh is None else deferred.dw_hh.reshape(outer.w_hh.shape),
        db,
        image(dp) if dp is not None and dp.dim() > 2 else dp,
    )
    return tuple(
        grad.to(of.dtype) if need and grad is not None else None
        for grad, of, need in zip(found, inputs, needed, strict=True)
    )


def _bias_gradient(da: Tensor, dtype: torch.dtype) -> Tensor:
    """(GH). On a CPU, `sum` first copies all that it sums to another dtype: here, as much as stays in the cache."""
    rows = da.flatten(0, -2)
    if da.device.type != "cpu" or da.dtype == dtype:
        return rows.sum(0, dtype=dtype)
    parts = rows.split(max(1, 2**17 // da.shape[-1]))
    return torch.stack([part.sum(0, dtype=dtype) for part in parts]).sum(0)


def _peephole_gradient(da: Tensor, c_before: Tensor | None, cs: Tensor, per_position: bool) -> Tensor:
    """(3,H) or (3,S*,H): summed over time and batch, and over space if the peephole has none."""
    da_f, da_i, _, da_o = da.to(cs.dtype).chunk(4, dim=-1)
    cs_before = formulas.one_step_later(c_before, cs)
    over = [0, 1] if per_position else [*range(cs.dim() - 1)]
    return torch.stack([(a * c).sum(over) for a, c in ((da_f, cs_before), (da_i, cs_before), (da_o, cs))])
