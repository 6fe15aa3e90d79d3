"""Additive attention in compiled code: additive_attention.* in csrc/cpu and csrc/cuda. Contract:
contract.AdditiveAttentionImpl.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops.checks import ACTIVATIONS, accumulation_dtype
from hybridops.contract import Activation, AttentionInputs
from hybridops.native.library import call

takes_attended_keys = True

Prepared = tuple[Tensor, Tensor] | None


def additive_scores_forward(
    q: Tensor, k: Tensor, v: Tensor, activation: Activation, prepared: Prepared = None
) -> Tensor:
    op = torch.ops.hybridops.additive_scores_forward.default
    return call(op, q, k, v, *_numbers(activation), *(prepared or (None, None)))


def additive_attention_forward(
    inputs: AttentionInputs,
    activation: Activation,
    scale: float,
    prepared: Prepared = None,
    need_weights: bool = True,
) -> tuple[Tensor, Tensor]:
    q, k, v, value, mask, score_bias = inputs
    pairs = (q.shape[0], q.shape[1], k.shape[1])
    if mask is not None:
        mask = mask.expand(pairs)
    if score_bias is not None:
        score_bias = score_bias.to(accumulation_dtype(q.dtype)).expand(pairs)
    return call(
        torch.ops.hybridops.additive_attention_forward.default,
        q, k, v, value, mask, score_bias, scale, *_numbers(activation), *(prepared or (None, None)), need_weights,
    )  # fmt: skip


def prepare_keys(k: Tensor, kind: str) -> Prepared:
    """The exponentials of the keys and their bounds. On a GPU none: it computes an exponential in less time than it
    takes to read one.
    """
    if kind != "tanh" or k.is_cuda:
        return None
    return call(torch.ops.hybridops.additive_prepare_keys.default, k.detach())


def additive_attention_step(
    query: Tensor,  # (m·B,Q) or (m·B,S,Q), not projected
    projection: tuple[Tensor, Tensor | None],  # (A,Q), (A)
    keys: AttentionInputs,  # all but q; v (1,A); mask (B,m·S,T)
    activation: Activation,
    scale: float,
    prepared: Prepared,
    need_weights: bool,
) -> tuple[Tensor, Tensor]:
    """context (m·B,D) or (m·B,S,D), weights (m·B,T) or (m·B,S,T)"""
    _, k, v, value, mask, _ = keys
    return call(
        torch.ops.hybridops.additive_attention_step.default,
        query, *projection, k, v, value, mask, scale, *_numbers(activation), *(prepared or (None, None)), need_weights,
    )  # fmt: skip


def additive_scores_backward(
    grad_scores: Tensor, q: Tensor, k: Tensor, v: Tensor, activation: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    return call(torch.ops.hybridops.additive_scores_backward.default, grad_scores, q, k, v, *_numbers(activation))


def _numbers(activation: Activation) -> tuple[int, float]:
    return ACTIVATIONS.index(activation.kind), activation.negative_slope
