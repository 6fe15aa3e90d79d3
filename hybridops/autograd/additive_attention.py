"""Additive scores and additive attention as autograd Functions.

A back end gives the scores, their gradients, and the attention of a forward pass; what lies between in the backward,
the softmax and the context product, is done here by ATen calls over (B,S,T).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridops.autograd.double_backward import formula_gradients
from hybridops.autograd.transforms import needs_differentiable_gradients, needs_formulas, refuse_forward_mode
from hybridops.checks import accumulation_dtype
from hybridops.contract import Activation, AdditiveAttentionImpl, AttentionInputs
from hybridops.formulas import additive_attention as formulas


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
) -> tuple[Tensor, Tensor | None]:
    """context (B,S,D), weights (B,S,T) or None; what a gradient does not need either, a back end may leave out."""
    q, k, v, value, mask, score_bias = inputs
    if needs_formulas(impl, formulas):
        context, weights = formulas.additive_attention_forward(inputs, activation, scale)
        return context, weights if need_weights else None
    refuse_forward_mode(q, k, v, value, score_bias)
    if _needs_grad(q, k, v, value, score_bias):
        return AdditiveAttention.apply(impl, (activation, scale, prepared), mask, q, k, v, value, score_bias)
    context, weights = impl.additive_attention_forward(inputs, activation, scale, prepared, need_weights)
    return context, weights if need_weights else None


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

            def formula(*inputs: Tensor) -> list[Tensor]:
                return [formulas.additive_scores_forward(*inputs, ctx.activation)]

            grads = formula_gradients(formula, inputs, needed, [grad])
        else:
            grads = ctx.impl.additive_scores_backward(grad, *inputs, ctx.activation)
        return None, None, *grads


class AdditiveAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        impl: AdditiveAttentionImpl,
        options: tuple[Activation, float, tuple[Tensor, Tensor] | None],  # activation, scale, prepared
        mask: Tensor | None,
        *inputs: Tensor | None,  # q, k, v, value, score_bias
    ) -> tuple[Tensor, Tensor]:
        q, k, v, value, score_bias = inputs
        context, weights = impl.additive_attention_forward(AttentionInputs(q, k, v, value, mask, score_bias), *options)
        ctx.impl, ctx.options = impl, options[:2]
        ctx.set_materialize_grads(False)
        need_q, need_k, need_v, _, need_bias = ctx.needs_input_grad[3:]
        if not (need_q or need_k or need_v or need_bias):  # value alone does not reach the weights
            ctx.mark_non_differentiable(weights)
        ctx.save_for_backward(*inputs, mask, weights)
        return context, weights

    @staticmethod
    def backward(ctx: Any, grad_context: Tensor | None, grad_weights: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, mask, weights = ctx.saved_tensors
        needed, grad_outputs = ctx.needs_input_grad[3:], (grad_context, grad_weights)
        if grad_context is None and grad_weights is None:
            return (None,) * 8
        if needs_differentiable_gradients(*grad_outputs):

            def formula(q: Tensor, k: Tensor, v: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
                given = AttentionInputs(q, k, v, value, mask, bias)
                return formulas.additive_attention_forward(given, *ctx.options)

            grads = formula_gradients(formula, inputs, needed, grad_outputs)
        else:
            q, k, v, value, score_bias = inputs
            given = AttentionInputs(q, k, v, value, mask, score_bias)
            grads = _gradients(ctx.impl, given, needed, weights, grad_outputs, *ctx.options)
        return None, None, None, *grads


def _gradients(
    impl: AdditiveAttentionImpl,
    inputs: AttentionInputs,
    needed: tuple[bool, ...],  # of q, k, v, value, score_bias
    weights: Tensor,  # (B,S,T)
    grads: tuple[Tensor | None, Tensor | None],  # of context (B,S,D), of weights (B,S,T)
    activation: Activation,
    scale: float,
) -> tuple[Tensor | None, ...]:
    """With dα = dcontext valueᵀ + dweights:  ds = α∘(dα - Σ_t α∘dα)  dvalue = αᵀ dcontext  (ds: also of score_bias)

    Masked places are selected, not multiplied by their weight of zero: dα may be infinite there (that of an entropy
    is), and the product NaN.
    """
    (q, k, v, value, mask, score_bias), (grad_context, grad_weights) = inputs, grads
    need_scores, need_value, need_bias = any(needed[:3]), needed[3], needed[4]
    dq = dk = dv = dvalue = dbias = None
    if need_scores or need_bias:
        if grad_context is not None:
            d_weights = torch.matmul(grad_context, value.transpose(1, 2))
            d_weights = d_weights if grad_weights is None else d_weights + grad_weights
        else:
            d_weights = grad_weights
        acc = accumulation_dtype(weights.dtype)
        masked = None if mask is None else ~mask
        if masked is not None:
            d_weights = d_weights.masked_fill(masked, 0.0)
        ds = torch.ops.aten._softmax_backward_data(d_weights.to(acc), weights.to(acc), -1, acc)
        if masked is not None:
            ds = ds.masked_fill_(masked, 0.0)
        if need_bias:
            dbias = ds.sum_to_size(score_bias.shape).to(score_bias.dtype)
        if need_scores:
            ds = ds if scale == 1.0 else ds * scale
            dq, dk, dv = impl.additive_scores_backward(ds, q, k, v, activation)
    if need_value and grad_context is not None:
        dvalue = torch.matmul(weights.transpose(1, 2), grad_context)
    return dq, dk, dv, dvalue, dbias
