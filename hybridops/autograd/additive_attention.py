"""Additive scores and additive attention as autograd Functions.

A back end gives the scores, their gradients, and the attention of a forward pass; what lies between in the backward,
the softmax and the context product, is done here by ATen calls over (B,S,T).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hybridops.autograd.double_backward import formula_gradients
from hybridops.autograd.transforms import needs_differentiable_gradients, needs_formulas
from hybridops.checks import accumulation_dtype
from hybridops.reference import additive_attention as reference


def scores(
    backend: ModuleType,
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> Tensor:
    """(B,S,T) acc"""
    if needs_formulas(backend, reference):
        return reference.additive_scores_forward(q, k, v, activation, negative_slope)
    if _needs_grad(q, k, v):
        return AdditiveScores.apply(backend, activation, negative_slope, q, k, v)
    return backend.additive_scores_forward(q, k, v, activation, negative_slope)


def attend(
    backend: ModuleType,
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    value: Tensor,  # (B,T,D)
    mask: Tensor | None,  # boolean, three dimensions, broadcastable to (B,S,T)
    score_bias: Tensor | None,  # broadcastable to (B,S,T)
    scale: float,
    activation: str,
    negative_slope: float,
    key_exponentials: tuple[Tensor, Tensor] | None,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """context (B,S,D), weights (B,S,T) or None; what a gradient does not need either, a back end may leave out."""
    if needs_formulas(backend, reference):
        scoring = (scale, activation, negative_slope)
        context, weights = reference.additive_attention_forward(q, k, v, value, mask, score_bias, *scoring)
        return context, weights if need_weights else None
    if _needs_grad(q, k, v, value, score_bias):
        options = (mask, scale, activation, negative_slope, key_exponentials)
        return AdditiveAttention.apply(backend, options, q, k, v, value, score_bias)
    arguments = (q, k, v, value, mask, score_bias, scale, activation, negative_slope, key_exponentials)
    context, weights = backend.additive_attention_forward(*arguments, need_weights)
    return context, weights if need_weights else None


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class AdditiveScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: ModuleType, activation: str, negative_slope: float, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        ctx.backend, ctx.activation, ctx.negative_slope = backend, activation, negative_slope
        ctx.save_for_backward(q, k, v)
        return backend.additive_scores_forward(q, k, v, activation, negative_slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, act = ctx.saved_tensors, (ctx.activation, ctx.negative_slope)
        if needs_differentiable_gradients(grad):
            grads = formula_gradients(
                lambda *inputs: [reference.additive_scores_forward(*inputs, *act)],
                inputs,
                ctx.needs_input_grad[3:],
                [grad],
            )
        else:
            grads = ctx.backend.additive_scores_backward(grad, *inputs, *act)
        return None, None, None, *grads


class AdditiveAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: ModuleType,
        options: tuple[Any, ...],  # mask, scale, activation, negative_slope, key_exponentials
        q: Tensor,
        k: Tensor,
        v: Tensor,
        value: Tensor,
        score_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        mask, *_ = options
        context, weights = backend.additive_attention_forward(q, k, v, value, mask, score_bias, *options[1:])
        ctx.backend, ctx.options = backend, options[1:4]
        ctx.set_materialize_grads(False)
        if not any(ctx.needs_input_grad[i] for i in (2, 3, 4, 6)):  # value alone does not reach the weights
            ctx.mark_non_differentiable(weights)
        ctx.save_for_backward(q, k, v, value, score_bias, mask, weights)
        return context, weights

    @staticmethod
    def backward(ctx: Any, grad_context: Tensor | None, grad_weights: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, mask, weights = ctx.saved_tensors
        needed, grad_outputs = ctx.needs_input_grad[2:], (grad_context, grad_weights)
        if grad_context is None and grad_weights is None:
            return (None,) * 7
        if needs_differentiable_gradients(*grad_outputs):
            grads = formula_gradients(
                lambda q, k, v, value, bias: reference.additive_attention_forward(
                    q, k, v, value, mask, bias, *ctx.options
                ),
                inputs, needed, grad_outputs,
            )  # fmt: skip
        else:
            grads = _gradients(ctx.backend, inputs, needed, mask, weights, *grad_outputs, *ctx.options)
        return None, None, *grads


def _gradients(
    backend: ModuleType,
    inputs: list[Tensor | None],
    needed: tuple[bool, ...],
    mask: Tensor | None,  # boolean, three dimensions, broadcastable to (B,S,T)
    weights: Tensor,  # (B,S,T)
    grad_context: Tensor | None,  # (B,S,D)
    grad_weights: Tensor | None,  # (B,S,T)
    scale: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor | None, ...]:
    """With dα = dcontext valueᵀ + dweights:  ds = α∘(dα - Σ_t α∘dα)  dvalue = αᵀ dcontext  (ds: also of score_bias)

    Masked places are selected, not multiplied by their weight of zero: dα may be infinite there (that of an entropy
    is), and the product NaN.
    """
    q, k, v, value, score_bias = inputs
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
            dq, dk, dv = backend.additive_scores_backward(ds, q, k, v, activation, negative_slope)
    if need_value and grad_context is not None:
        dvalue = torch.matmul(weights.transpose(1, 2), grad_context)
    return dq, dk, dv, dvalue, dbias
