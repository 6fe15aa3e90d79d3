"""The attention decoder over all steps of a sequence as an autograd Function.

A back end runs what is sequential. With da, da', dq, du and dβ (gradients of the gates' two parts, of the queries, of
the contexts before the gate, of the gate before its σ) known for all steps, what follows is one product each:

    dW_ih = daᵀ [x; c']   dx = da W_x   dW_hh = da'ᵀ h_{s-1}   dW_q = dqᵀ h'   dW_β = dβᵀ h'   dvalue = (α keep)ᵀ du
    dkey, dv: the scores' gradients over all steps, of which the queries are known by then
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridops.autograd.double_backward import formula_gradients
from hybridops.autograd.transforms import needs_differentiable_gradients, needs_formulas, refuse_forward_mode
from hybridops.checks import accumulation_dtype
from hybridops.contract import (
    AdditiveAttentionImpl,
    AttentionDecoderImpl,
    DecoderGradients,
    DecoderInputs,
    DecoderOptions,
    DecoderStates,
    DecoderUpstreamGrads,
)
from hybridops.formulas import attention_decoder as formulas

Outputs = tuple[Tensor, Tensor, "Tensor | None", Tensor, Tensor]  # output, h_n, cell_n (acc), context, weights


class Weights(NamedTuple):
    """What has a gradient; of one dtype, but for cell0 and score_bias (acc)."""

    x: Tensor  # (B,S,E)
    key: Tensor  # (B,T,A)
    value: Tensor  # (B,T,D)
    v: Tensor  # (A)
    h0: Tensor  # (B,H)
    cell0: Tensor | None  # (B,H) acc, None: a GRU
    context0: Tensor | None  # (B,D)
    weight_q: Tensor  # (A,H)
    bias_q: Tensor | None  # (A)
    weight_ih: Tensor  # (GH,E+D)
    weight_hh: Tensor  # (GH,H)
    bias_ih: Tensor | None  # (GH)
    bias_hh: Tensor | None  # (GH)
    weight_gate: Tensor | None  # (D,H)
    bias_gate: Tensor | None  # (D)
    score_bias: Tensor | None  # (B,S,T) acc
    location: Tensor | None = None  # (A,C,K)


class Selection(NamedTuple):
    """What has none."""

    mask: Tensor | None  # (B,T) boolean
    keep: Tensor | None  # (B,S,T)
    lengths: Tensor | None  # (B) int64


class StepwiseDecoder:
    """The loop of the formulas on a back end's scores and products, for what no back end's op does: a location."""

    def __init__(self, attention: AdditiveAttentionImpl, linear_map: Callable[[Tensor], formulas.LinearMap]) -> None:
        self.additive_scores_backward = attention.additive_scores_backward
        self.parts = formulas.Parts(attention.additive_scores_forward, attention.additive_scores_backward, linear_map)

    def attention_decoder_forward(self, inputs: DecoderInputs, options: DecoderOptions, save: bool) -> DecoderStates:
        return formulas.attention_decoder_forward(inputs, options, save, self.parts)

    def attention_decoder_backward(
        self, grads: DecoderUpstreamGrads, inputs: DecoderInputs, options: DecoderOptions, states: DecoderStates
    ) -> DecoderGradients:
        return formulas.attention_decoder_backward(grads, inputs, options, states, self.parts)


def run(impl: AttentionDecoderImpl, weights: Weights, selection: Selection, options: DecoderOptions) -> Outputs:
    """Of at least one step. What comes is no view."""
    if needs_formulas(impl, formulas):
        return _outputs(formulas, weights, selection, options)
    refuse_forward_mode(*weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in weights):
        return AttentionDecoder.apply(impl, options, selection, *weights)
    return _outputs(impl, weights, selection, options)


def _outputs(impl: AttentionDecoderImpl, weights: Weights, selection: Selection, options: DecoderOptions) -> Outputs:
    inputs = _op_inputs(_x_gates(weights, options), weights, selection, options)
    return impl.attention_decoder_forward(inputs, options, False)[:5]


def step(
    impl: Any,  # an AttentionDecoderImpl that packs weights
    weights: Weights,
    selection: Selection,
    options: DecoderOptions,
    key_exponentials: tuple[Tensor, Tensor] | None,
    packed: Tensor,
    x_gates: Tensor,
) -> Outputs:
    """A forward without gradients on what the back end prepared."""
    inputs = _op_inputs(x_gates, weights, selection, options)
    return impl.attention_decoder_forward(inputs, options, False, key_exponentials, packed)[:5]


def _x_gates(w: Weights, options: DecoderOptions) -> Tensor:
    """The part of x in the gates, for all steps."""
    return F.linear(w.x, w.weight_ih[:, : w.x.shape[2]], bias_of_x(w.bias_ih, w.bias_hh, options.cell))


def bias_of_x(bias_ih: Tensor | None, bias_hh: Tensor | None, cell: str) -> Tensor | None:
    """Of an LSTM the sum of both; of a GRU, that of h stays by itself."""
    if cell == "gru" or bias_hh is None:
        return bias_ih
    return bias_hh if bias_ih is None else bias_ih + bias_hh


def _op_inputs(x_gates: Tensor, w: Weights, selection: Selection, options: DecoderOptions) -> DecoderInputs:
    return DecoderInputs(
        x_gates, w.key, w.value, w.v, w.h0, w.cell0, w.context0, w.weight_q, w.bias_q,
        w.weight_ih[:, w.x.shape[2] :], w.weight_hh, None if options.cell == "lstm" else w.bias_hh,
        w.weight_gate, w.bias_gate, selection.mask, w.score_bias, selection.keep, selection.lengths, w.location,
    )  # fmt: skip


class AttentionDecoder(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: AttentionDecoderImpl, options: DecoderOptions, selection: Selection, *weights: Any
    ) -> Outputs:
        inputs = _op_inputs(_x_gates(Weights(*weights), options), Weights(*weights), selection, options)
        states = impl.attention_decoder_forward(inputs, options, True)
        ctx.impl, ctx.options = impl, options
        ctx.set_materialize_grads(False)
        # the last states are read by no backward, and may be written into
        ctx.save_for_backward(*weights, *selection, states.output, None, None, *states[3:])
        return states[:5]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if all(grad is None for grad in grads):
            return (None,) * (3 + len(needed))
        weights, saved = Weights(*saved[: len(needed)]), saved[len(needed) :]
        selection, states = Selection(*saved[:3]), DecoderStates(*saved[3:])
        if needs_differentiable_gradients(*grads):
            found = formula_gradients(
                lambda *weights: _outputs(formulas, Weights(*weights), selection, ctx.options), weights, needed, grads
            )
        else:
            upstream = DecoderUpstreamGrads(*grads)
            found = _gradients(ctx.impl, ctx.options, weights, selection, Weights(*needed), upstream, states)
        return None, None, None, *found


def _gradients(
    impl: AttentionDecoderImpl,
    options: DecoderOptions,
    w: Weights,
    selection: Selection,
    needed: Weights,  # of bools
    grads: DecoderUpstreamGrads,
    states: DecoderStates,
) -> tuple[Tensor | None, ...]:
    assert states.gates is not None
    assert states.queries is not None
    # in place of x_gates, of which a backward reads no value
    inputs, width = _op_inputs(states.gates, w, selection, options), w.x.shape[2]
    found: DecoderGradients = impl.attention_decoder_backward(grads, inputs, options, states)
    da, da_h, dq = (t.flatten(0, 1) for t in (found.da, found.da_h, found.dq))
    previous = options.query == "previous"
    before = _one_step_later(states.output, w.h0).flatten(0, 1)
    asking = before if previous else states.output.flatten(0, 1)  # h'
    fed = states.context if previous else _one_step_later(states.context, w.context0)
    dscores, dbeta = found.dscores, None if found.dbeta is None else found.dbeta.flatten(0, 1)
    dbias = _sum(da) if needed.bias_ih or needed.bias_hh else None
    dkey, dv = found.dkey, found.dv
    if w.location is None and (needed.key or needed.v):
        _, dkey, dv = impl.additive_scores_backward(
            dscores if options.scale == 1.0 else options.scale * dscores, states.queries, w.key, w.v, options.activation
        )
    return (
        (da @ w.weight_ih[:, :width]).view(w.x.shape) if needed.x else None,
        dkey if needed.key else None,
        torch.bmm(states.weights.transpose(1, 2), found.dcontext) if needed.value else None,
        dv if needed.v else None,
        found.dh0 if needed.h0 else None,
        found.dcell0 if needed.cell0 else None,
        found.dcontext0 if needed.context0 else None,
        dq.T @ asking if needed.weight_q else None,
        _sum(dq) if needed.bias_q else None,
        da.T @ torch.cat([w.x, fed], 2).flatten(0, 1) if needed.weight_ih else None,
        da_h.T @ before if needed.weight_hh else None,
        dbias if needed.bias_ih else None,
        (dbias if options.cell == "lstm" else _sum(da_h)) if needed.bias_hh else None,
        dbeta.T @ asking if dbeta is not None and needed.weight_gate else None,
        _sum(dbeta) if dbeta is not None and needed.bias_gate else None,
        dscores if needed.score_bias else None,
        found.dlocation if needed.location else None,
    )


def _one_step_later(states: Tensor, first: Tensor | None) -> Tensor:
    """(B,S,·): what each step began with, given what each gave; `first` None: zeros."""
    first = torch.zeros_like(states[:, 0]) if first is None else first
    return torch.cat([first[:, None], states[:, :-1]], 1)


def _sum(rows: Tensor) -> Tensor:
    return rows.sum(0, dtype=accumulation_dtype(rows.dtype)).to(rows.dtype)
