"""The ConvLSTM over a sequence as an autograd Function.

A back end runs the two recurrences, and the gradients of a convolution's two factors; recurrence.py goes through the
backward in chunks. What is left for the LSTM is

    db: sums of da        dp_f, dp_i = Σ da_f∘c_{t-1}, Σ da_i∘c_{t-1}        dp_o = Σ da_o∘c_t

Outside, tensors have the layout of the public functions, (B,T,C,S*); inside, that of layouts.py.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from hybridops.autograd.double_backward import formula_gradients
from hybridops.autograd.recurrence import Deferred, add, chunks
from hybridops.autograd.transforms import needs_differentiable_gradients, needs_formulas, refuse_forward_mode
from hybridops.contract import ConvLSTMImpl, ConvLSTMInputs, ConvLSTMStates, Save, StateGradients
from hybridops.formulas import conv_lstm as formulas
from hybridops.layouts import image_inside, image_outside, sequence_inside, sequence_outside, weight_inside


def run(
    impl: ConvLSTMImpl,
    x: Tensor,  # (B,T,C,S*), T > 0
    h0: Tensor | None,  # (B,H,S*)
    c0: Tensor | None,  # (B,H,S*) acc
    w_ih: Tensor,  # (4H,C,K*)
    w_hh: Tensor,  # (4H,H,K*)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3,H) or (3,H,S*)
    save: Save,
    want_h_n: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """output (B,T,H,S*), h_n (B,H,S*) if wanted, c_n (B,H,S*) acc; none is a view, of another or of what is saved."""
    inputs = (x, h0, c0, w_ih, w_hh, bias, peephole)
    if needs_formulas(impl, formulas):
        output, h_n, c_n = _formula(*inputs)
        return output, h_n if want_h_n else None, c_n
    refuse_forward_mode(*inputs)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return ConvLSTM.apply(impl, save, want_h_n, *inputs)
    states = impl.conv_lstm_forward(inside(*inputs), Save.NOTHING)
    output, h_n, c_n = outside(states, x.dim() - 3, want_h_n)
    return _no_view(output), None if h_n is None else h_n.clone(), _no_view(c_n)


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


def _formula(*inputs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`run`, differentiable as it stands"""
    states = formulas.conv_lstm_forward(inside(*inputs), Save.NOTHING)
    return outside(states, inputs[0].dim() - 3)


class ConvLSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: ConvLSTMImpl, save: Save, want_h_n: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        states = impl.conv_lstm_forward(inside(*inputs), save)
        hs, cs, gates = states
        ctx.impl = impl
        ctx.set_materialize_grads(False)
        # The backward of one step reads no h, so that a step's may be written into, as that of `nn.LSTMCell`.
        read = save == Save.CELLS or len(hs) > 1
        ctx.save_for_backward(*inputs, hs if read else hs.new_empty(()).expand(hs.shape), cs, gates)
        output, h_n, c_n = outside(states, inputs[0].dim() - 3, want_h_n)
        return _no_view(output), None if h_n is None else h_n.clone(), c_n.clone()

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_hn: Tensor | None, grad_cn: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *inputs, hs, cs, gates = ctx.saved_tensors
        needed, grads = ctx.needs_input_grad[3:], (grad_output, grad_hn, grad_cn)
        if all(grad is None for grad in grads):
            return (None,) * 10
        if needs_differentiable_gradients(*grads):
            found = formula_gradients(_formula, inputs, needed, grads)
        else:
            gradients = _gradients_as_one_op if torch.compiler.is_compiling() else _gradients
            found = gradients(ctx.impl, inputs, needed, (hs, cs, gates), grads)
        return None, None, None, *found


def _gradients(
    impl: ConvLSTMImpl,
    inputs: list[Tensor | None],  # as `run` takes them
    needed: tuple[bool, ...],
    states: tuple[Tensor, Tensor, Tensor | None],  # ConvLSTMStates
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],  # of output, h_n, c_n
) -> tuple[Tensor | None, ...]:
    spatial_dims = inputs[0].dim() - 3
    x, h0, c0, w_ih, w_hh, bias, peephole = canonical = inside(*inputs)
    (hs, cs, gates), (grad_hs, dh, dc) = states, grads
    grad_hs = None if grad_hs is None else sequence_inside(grad_hs)
    dh, dc = (None if state is None else image_inside(state) for state in (dh, dc))
    need_x, need_h0, need_c0, need_w_ih, need_w_hh, need_bias, need_peephole = needed
    deferred = Deferred(impl, x, h0, hs, (w_ih, w_hh), (need_x, need_w_ih, need_w_hh), cs.dtype)
    db = dp = None
    for steps in chunks(hs, gates=4):
        before = (hs[steps.start - 1], cs[steps.start - 1]) if steps.start else (h0, c0)
        chunk = canonical._replace(x=x[steps], h0=before[0], c0=before[1])
        kept = ConvLSTMStates(hs[steps], cs[steps], None if gates is None else gates[steps])
        upstream = StateGradients(None if grad_hs is None else grad_hs[steps], dh, dc)
        da, dh, dc = impl.conv_lstm_backward(upstream, chunk, kept, steps.start > 0 or need_h0)
        deferred.add(steps, da, da)
        if need_bias:
            db = add(db, da.sum([*range(da.dim() - 1)], dtype=cs.dtype))
        if need_peephole:
            dp = add(dp, _peephole_gradient(da, before[1], cs[steps], peephole))
        del da  # before that of the next chunk is made

    def of_weight(dw: Tensor | None, weight: Tensor) -> Tensor | None:
        return None if dw is None else dw.reshape(weight.shape).to(weight.dtype)

    return (
        None if deferred.dx is None else sequence_outside(deferred.dx, spatial_dims),
        image_outside(dh, spatial_dims).to(h0.dtype) if need_h0 else None,
        image_outside(dc, spatial_dims) if need_c0 else None,
        of_weight(deferred.dw_ih, inputs[3]),
        of_weight(deferred.dw_hh, inputs[4]),
        db.to(bias.dtype) if need_bias else None,
        (dp if dp.dim() == 2 else image_outside(dp, spatial_dims)).to(peephole.dtype) if need_peephole else None,
    )


def _peephole_gradient(da: Tensor, c_before: Tensor | None, cs: Tensor, peephole: Tensor) -> Tensor:
    """(3,H) or (3,S*,H): summed over time and batch, and over space if the peephole has none."""
    da_f, da_i, _, da_o = da.to(cs.dtype).chunk(4, dim=-1)
    cs_before = formulas.one_step_later(c_before, cs)
    over = [0, 1] if peephole.dim() > 2 else [*range(cs.dim() - 1)]
    return torch.stack([(a * c).sum(over) for a, c in ((da_f, cs_before), (da_i, cs_before), (da_o, cs))])


# ------------------------------------------------------------------------------------------ in a graph of torch.compile
# The loop over chunks is one op there. Traced, it would be unrolled, and anew for every number of steps and images.

_OP = "hybridops::conv_lstm_gradients"
torch.library.define(
    _OP,
    "(str impl, Tensor?[] inputs, bool[] needed, Tensor hs, Tensor cs, Tensor? gates, Tensor? grad_output, "
    "Tensor? grad_hn, Tensor? grad_cn) -> Tensor[]",
)


def _gradients_as_one_op(
    impl: ConvLSTMImpl,
    inputs: list[Tensor | None],
    needed: tuple[bool, ...],
    states: tuple[Tensor | None, ...],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    found = iter(torch.ops.hybridops.conv_lstm_gradients.default(impl.__name__, inputs, needed, *states, *grads))
    return tuple(next(found) if need else None for need in needed)


@torch.library.impl(_OP, "CompositeExplicitAutograd")
def _(impl: str, inputs: list[Tensor | None], needed: list[bool], *tensors: Tensor | None) -> list[Tensor]:
    """The gradients that are needed; contiguous, but for dx, which is as `_gradients` makes it."""
    dx, *others = _gradients(sys.modules[impl], inputs, needed, tensors[:3], tensors[3:])
    return [grad for grad in (dx, *(g if g is None else g.contiguous() for g in others)) if grad is not None]


@torch.library.register_fake(_OP)
def _(impl: str, inputs: list[Tensor | None], needed: list[bool], *tensors: Tensor | None) -> list[Tensor]:
    wanted = [t for t, need in zip(inputs[1:], needed[1:], strict=True) if need]
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in wanted]
    if not needed[0]:
        return grads
    x = inputs[0]
    return [sequence_outside(x.new_empty(sequence_inside(x).shape), x.dim() - 3), *grads]
