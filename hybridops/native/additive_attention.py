"""Additive scores in compiled code: csrc/cpu/additive_attention.cpp. Contract: reference/additive_attention.py."""

from __future__ import annotations

import torch
from torch import Tensor

_ACTIVATION = {"tanh": 0, "relu": 1, "leaky_relu": 2}


def additive_scores_forward(
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> Tensor:
    return torch.ops.hybridops.additive_scores_forward.default(q, k, v, _ACTIVATION[activation], negative_slope)


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
