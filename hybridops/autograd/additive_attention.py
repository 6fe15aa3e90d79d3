"""Additive scores as an autograd Function. Softmax and context are PyTorch's own, in hybridops/functional.py."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hybridops.autograd.double_backward import differentiable_gradients
from hybridops.reference import additive_attention as reference


def additive_scores(
    backend: ModuleType,
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> Tensor:
    """(B,S,T) acc"""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return AdditiveScores.apply(backend, activation, negative_slope, q, k, v)
    return backend.additive_scores_forward(q, k, v, activation, negative_slope)


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
        if torch.is_grad_enabled():  # create_graph=True
            grads = differentiable_gradients(
                lambda: [reference.additive_scores_forward(*inputs, *act)], inputs, ctx.needs_input_grad[3:], [grad]
            )
        else:
            grads = ctx.backend.additive_scores_backward(grad, *inputs, *act)
        return None, None, None, *grads
