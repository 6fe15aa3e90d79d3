"""Additive scores in compiled code: additive_attention.* in csrc/cpu and csrc/cuda. Contract: that of reference/."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.native import call, refuse_forward_mode

_ACTIVATION = {"tanh": 0, "relu": 1, "leaky_relu": 2}


def additive_scores_forward(
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> Tensor:
    refuse_forward_mode(q, k, v)
    act = (_ACTIVATION[activation], negative_slope)
    return call(torch.ops.hybridops.additive_scores_forward.default, q, k, v, *act, None, None)


def additive_attention_forward(
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    value: Tensor,  # (B,T,D)
    mask: Tensor | None,  # boolean, broadcastable to (B,S,T)
    score_bias: Tensor | None,  # broadcastable to (B,S,T)
    scale: float,
    activation: str,
    negative_slope: float,
    key_exponentials: tuple[Tensor, Tensor] | None = None,
    need_weights: bool = True,
) -> tuple[Tensor, Tensor]:
    refuse_forward_mode(q, k, v, value, score_bias)
    pairs = (q.shape[0], q.shape[1], k.shape[1])
    if mask is not None:
        mask = mask.expand(pairs)
    if score_bias is not None:
        score_bias = score_bias.to(accumulation_dtype(q.dtype)).expand(pairs)
    options = (mask, score_bias, scale, _ACTIVATION[activation], negative_slope, *(key_exponentials or (None, None)))
    return call(torch.ops.hybridops.additive_attention_forward.default, q, k, v, value, *options, need_weights)


def prepare_keys(k: Tensor, activation: str) -> tuple[Tensor, Tensor] | None:
    """The exponentials of the keys and their bounds, which the forward otherwise computes at every call. On a GPU none:
    it computes an exponential in less time than it takes to read one.
    """
    if activation != "tanh" or k.is_cuda:
        return None
    return call(torch.ops.hybridops.additive_prepare_keys.default, k.detach())


def additive_attention_step(
    query: Tensor,  # (m·B,Q) or (m·B,S,Q), not projected
    projection: Tensor,  # (A,Q)
    projection_bias: Tensor | None,  # (A,)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (1,A)
    value: Tensor,  # (B,T,D)
    mask: Tensor | None,  # boolean (B,m·S,T)
    scale: float,
    activation: str,
    negative_slope: float,
    key_exponentials: tuple[Tensor, Tensor] | None,
    need_weights: bool,
) -> tuple[Tensor, Tensor]:
    """context (m·B,D) or (m·B,S,D), weights (m·B,T) or (m·B,S,T)"""
    refuse_forward_mode(query)
    return call(
        torch.ops.hybridops.additive_attention_step.default,
        query, projection, projection_bias, k, v, value, mask, scale, _ACTIVATION[activation], negative_slope,
        *(key_exponentials or (None, None)), need_weights,
    )  # fmt: skip


def additive_scores_backward(
    grad_scores: Tensor,  # (B,S,T) acc
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    act = (_ACTIVATION[activation], negative_slope)
    return call(torch.ops.hybridops.additive_scores_backward.default, grad_scores, q, k, v, *act)
