"""Additive scores in compiled code: additive_attention.* in csrc/cpu and csrc/cuda. Contract: that of reference/."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.native import refuse_forward_mode

_ACTIVATION = {"tanh": 0, "relu": 1, "leaky_relu": 2}
# Where attention is one op, context included. Elsewhere its product with the values is the library's.
IN_ONE_KERNEL = ("cuda",)


def additive_scores_forward(
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> Tensor:
    refuse_forward_mode(q, k, v)
    return torch.ops.hybridops.additive_scores_forward.default(
        q, k, v, _ACTIVATION[activation], negative_slope, None, None
    )


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
) -> tuple[Tensor, Tensor]:
    arguments = (q, k, v, value, mask, score_bias, scale, activation, negative_slope)
    if q.device.type in IN_ONE_KERNEL:
        return _in_one_kernel(*arguments, True)
    refuse_forward_mode(q, k, v, value, score_bias)
    weights = torch.ops.hybridops.additive_weights_forward.default(
        q, k, v, *_expanded(q, k, mask, score_bias), scale,
        _ACTIVATION[activation], negative_slope, *(key_exponentials or (None, None)),
    )  # fmt: skip
    return torch.matmul(weights, value), weights


def additive_context_forward(
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
) -> Tensor:
    """The context (B,S,D) alone: on a GPU nothing of the size (B,S,T) is written."""
    arguments = (q, k, v, value, mask, score_bias, scale, activation, negative_slope)
    if q.device.type in IN_ONE_KERNEL:
        return _in_one_kernel(*arguments, False)[0]
    return additive_attention_forward(*arguments, key_exponentials)[0]


def _in_one_kernel(q, k, v, value, mask, score_bias, scale, activation, negative_slope, need_weights):
    """context (B,S,D), and the weights (B,S,T) if needed, else (0,S,T)."""
    refuse_forward_mode(q, k, v, value, score_bias)
    return torch.ops.hybridops.additive_attention_forward.default(
        q, k, v, value, *_expanded(q, k, mask, score_bias), scale, _ACTIVATION[activation], negative_slope, need_weights
    )


def _expanded(
    q: Tensor, k: Tensor, mask: Tensor | None, score_bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """mask and score_bias, the latter acc, as (B,S,T)"""
    pairs = (q.shape[0], q.shape[1], k.shape[1])
    if score_bias is not None:
        score_bias = score_bias.to(accumulation_dtype(q.dtype)).expand(pairs)
    return None if mask is None else mask.expand(pairs), score_bias


def prepare_keys(k: Tensor, activation: str) -> tuple[Tensor, Tensor] | None:
    """The exponentials of the keys and their bounds, which the forward otherwise computes at every call. On a GPU none:
    it computes an exponential in less time than it takes to read one.
    """
    if activation != "tanh" or k.device.type in IN_ONE_KERNEL:
        return None
    return torch.ops.hybridops.additive_prepare_keys.default(k.detach())


def additive_scores_backward(
    grad_scores: Tensor,  # (B,S,T) acc
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.hybridops.additive_scores_backward.default(
        grad_scores, q, k, v, _ACTIVATION[activation], negative_slope
    )
