"""Additive scores and additive attention as autograd Functions.

A back end gives the scores, their gradients, and the attention of a forward pass; what lies between in the backward,
the softmax and the context product, is done here by ATen calls over (B,S,T). So is the forward where the log-sum-exp of
the scores is wanted too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridops.autograd.double_backward import formula_gradients
from hybridops.autograd.shared_gradients import SharedGradients
from hybridops.autograd.transforms import needs_differentiable_gradients, needs_formulas, refuse_forward_mode
from hybridops.checks import accumulation_dtype
from hybridops.contract import Activation, AdditiveAttentionImpl, AttentionInputs
from hybridops.formulas import additive_attention as formulas

Options = tuple[Activation, float, "tuple[Tensor, Tensor] | None"]  # activation, scale, prepared


def scores(
    impl: AdditiveAttentionImpl,
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: Activation,
) -> Tensor:
    """(B,S,T) acc"""
    if needs_formulas(impl, formulas):
        return formulas.additive_scores_forward(q, k, v, activation)
    refuse_forward_mode(q, k, v)
    if _needs_grad(q, k, v):
        return AdditiveScores.apply(impl, activation, q, k, v)
    return impl.additive_scores_forward(q, k, v, activation)


def attend(
    impl: AdditiveAttentionImpl,
    inputs: AttentionInputs,
    activation: Activation,
    scale: float,
    prepared: tuple[Tensor, Tensor] | None,
    need_weights: bool,
    need_lse: bool = False,
    shared: SharedGradients | None = None,  # of k and value
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """context (B,S,D), weights (B,S,T) or None, lse (B,S) acc or None; what a gradient does not need either, a back end
    may leave out.
    """
    q, k, v, value, mask, score_bias = inputs
    options = (activation, scale, prepared)
    if needs_formulas(impl, formulas):
        impl = formulas
    else:
        refuse_forward_mode(q, k, v, value, score_bias)
        if _needs_grad(q, k, v, value, score_bias):
            return AdditiveAttention.apply(impl, options, need_lse, shared, mask, q, k, v, value, score_bias)
    context, weights, lse = _forward(impl, inputs, options, need_weights, need_lse)
    return context, weights if need_weights else None, lse


def _forward(
    impl: AdditiveAttentionImpl, inputs: AttentionInputs, options: Options, need_weights: bool, need_lse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    if not need_lse:
        return *impl.additive_attention_forward(inputs, *options, need_weights), None
    (activation, scale, prepared), (q, k, v, value, mask, score_bias) = options, inputs
    scores = scale * impl.additive_scores_forward(q, k, v, activation, prepared)
    if score_bias is not None:
        scores = scores + score_bias.to(scores.dtype)
    weights = formulas.masked_softmax(scores, mask).to(value.dtype)
    return torch.matmul(weights, value), weights, formulas.masked_logsumexp(scores, mask)


def attend_by_location(
    impl: AdditiveAttentionImpl,
    inputs: AttentionInputs,  # no score_bias
    history: Tensor,  # (B,C,T)
    weight: Tensor,  # (A,C,K)
    activation: Activation,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """context (B,S,D), weights (B,S,T) of keys that are moved by a convolution of what was attended to before."""
    q, k, v, value, mask, _ = inputs
    if needs_formulas(impl, formulas):
        impl = formulas
    else:
        refuse_forward_mode(q, k, v, value, history, weight)
        if _needs_grad(q, k, v, value, history, weight):
            return LocationAttention.apply(impl, (activation, scale), mask, q, k, v, value, history, weight)
    return impl.additive_attention_forward(inputs._replace(k=_moved(k, history, weight)), activation, scale)


def _moved(k: Tensor, history: Tensor, weight: Tensor) -> Tensor:
    return k + F.conv1d(history, weight, padding=weight.shape[2] // 2).transpose(1, 2)


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class AdditiveScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: AdditiveAttentionImpl, activation: Activation, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        ctx.impl, ctx.activation = impl, activation
        ctx.save_for_backward(q, k, v)
        return impl.additive_scores_forward(q, k, v, activation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        if needs_differentiable_gradients(grad):

            def formula(*inputs: Any) -> list[Tensor]:
                q, k, v = inputs
                return [formulas.additive_scores_forward(q, k, v, ctx.activation)]

            grads = formula_gradients(formula, inputs, needed, [grad])
        else:
            grads = ctx.impl.additive_scores_backward(grad, *inputs, ctx.activation)
        return None, None, *grads


class AdditiveAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        impl: AdditiveAttentionImpl,
        options: Options,
        need_lse: bool,
        shared: SharedGradients | None,
        mask: Tensor | None,
        *inputs: Any,  # q, k, v, value, score_bias
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        q, k, v, value, score_bias = inputs
        given = AttentionInputs(q, k, v, value, mask, score_bias)
        context, weights, lse = _forward(impl, given, options, True, need_lse)
        ctx.impl, ctx.options, ctx.shared = impl, options[:2], shared
        ctx.set_materialize_grads(False)
        need_q, need_k, need_v, _, need_bias = ctx.needs_input_grad[5:]
        if not (need_q or need_k or need_v or need_bias):  # value alone does not reach the weights
            ctx.mark_non_differentiable(*(t for t in (weights, lse) if t is not None))
        ctx.save_for_backward(*inputs, mask, weights)
        return context, weights, lse

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, mask, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[5:]
        if all(grad is None for grad in grad_outputs):
            return (None,) * 10
        if needs_differentiable_gradients(*grad_outputs):

            def formula(*inputs: Any) -> tuple[Tensor | None, ...]:
                q, k, v, value, bias = inputs
                given, need_lse = AttentionInputs(q, k, v, value, mask, bias), grad_outputs[2] is not None
                return _forward(formulas, given, (*ctx.options, None), True, need_lse)

            grads = formula_gradients(formula, inputs, needed, grad_outputs)
        else:
            q, k, v, value, score_bias = inputs
            given = AttentionInputs(q, k, v, value, mask, score_bias)
            if ctx.shared is None or not ctx.shared.collects():
                grads = _gradients(ctx.impl, given, needed, weights, grad_outputs, *ctx.options)
            else:
                need_q, need_k, need_v, need_value, need_bias = needed
                but_value = (need_q, need_k, need_v, False, need_bias)
                dq, dk, dv, _, dbias = _gradients(ctx.impl, given, but_value, weights, grad_outputs, *ctx.options)
                if need_k and dk is not None:
                    ctx.shared.add_key(dk)
                if need_value and grad_outputs[0] is not None:
                    ctx.shared.add_value(weights, grad_outputs[0])
                grads = (dq, None, dv, None, dbias)
        return None, None, None, None, None, *grads


class LocationAttention(torch.autograd.Function):
    """The moved keys are made again in the backward: kept, those of all steps of a decoder would be (B,S,T,A)."""

    @staticmethod
    def forward(
        ctx: Any,
        impl: AdditiveAttentionImpl,
        options: tuple[Activation, float],  # activation, scale
        mask: Tensor | None,
        *inputs: Tensor,  # q, k, v, value, history, weight
    ) -> tuple[Tensor, Tensor]:
        q, k, v, value, history, weight = inputs
        given = AttentionInputs(q, _moved(k, history, weight), v, value, mask, None)
        context, weights = impl.additive_attention_forward(given, *options)
        ctx.impl, ctx.options = impl, options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, mask, weights)
        return context, weights

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, mask, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if all(grad is None for grad in grad_outputs):
            return (None,) * 9
        if needs_differentiable_gradients(*grad_outputs):

            def formula(*inputs: Tensor) -> tuple[Tensor, Tensor]:
                q, k, v, value, history, weight = inputs
                given = AttentionInputs(q, _moved(k, history, weight), v, value, mask, None)
                return formulas.additive_attention_forward(given, *ctx.options)

            return None, None, None, *formula_gradients(formula, inputs, needed, grad_outputs)
        q, k, v, value, history, weight = inputs
        need_q, need_k, need_v, need_value, need_history, need_weight = needed
        given = AttentionInputs(q, _moved(k, history, weight), v, value, mask, None)
        of_keys = (need_q, need_k or need_history or need_weight, need_v, need_value, False)
        grads = _gradients(ctx.impl, given, of_keys, weights, (*grad_outputs, None), *ctx.options)
        dq, dk, dv, dvalue, _ = grads
        dhistory = dweight = None
        if dk is not None and (need_history or need_weight):
            dhistory, dweight, _ = torch.ops.aten.convolution_backward(
                dk.transpose(1, 2), history, weight, None, [1], [weight.shape[2] // 2], [1], False, [0], 1,
                [need_history, need_weight, False],
            )  # fmt: skip
        return None, None, None, dq, dk if need_k else None, dv, dvalue, dhistory, dweight


def _gradients(
    impl: AdditiveAttentionImpl,
    inputs: AttentionInputs,
    needed: tuple[bool, ...],  # of q, k, v, value, score_bias
    weights: Tensor,  # (B,S,T)
    grads: tuple[Tensor | None, ...],  # of context (B,S,D), of weights (B,S,T), of lse (B,S)
    activation: Activation,
    scale: float,
) -> tuple[Tensor | None, ...]:
    """With dα = dcontext valueᵀ + dweights:

    ds = α∘(dα - Σ_t α∘dα) + α dlse     (of score_bias too)          dvalue = αᵀ dcontext

    Masked places are selected, not multiplied by their weight of zero: dα may be infinite there (that of an entropy
    is), and the product NaN.
    """
    (q, k, v, value, mask, score_bias), (grad_context, grad_weights, grad_lse) = inputs, grads
    need_scores, need_value, need_bias = any(needed[:3]), needed[3], needed[4]
    dq = dk = dv = dvalue = dbias = None
    if need_scores or need_bias:
        d_weights = grad_weights
        if grad_context is not None:
            d_weights = torch.matmul(grad_context, value.transpose(1, 2))
            d_weights = d_weights if grad_weights is None else d_weights + grad_weights
        acc = accumulation_dtype(weights.dtype)
        masked, alpha = None if mask is None else ~mask, weights.to(acc)
        ds: Any = None if grad_lse is None else alpha * grad_lse[..., None]
        if d_weights is not None:
            if masked is not None:
                d_weights = d_weights.masked_fill(masked, 0.0)
            of_softmax = torch.ops.aten._softmax_backward_data(d_weights.to(acc), alpha, -1, acc)
            ds = of_softmax if ds is None else ds + of_softmax
        if masked is not None:
            ds = ds.masked_fill_(masked, 0.0)
        if need_bias and score_bias is not None:
            dbias = ds.sum_to_size(score_bias.shape).to(score_bias.dtype)
        if need_scores:
            ds = ds if scale == 1.0 else ds * scale
            dq, dk, dv = impl.additive_scores_backward(ds, q, k, v, activation)
    if need_value and grad_context is not None:
        dvalue = torch.matmul(weights.transpose(1, 2), grad_context)
    return dq, dk, dv, dvalue, dbias
