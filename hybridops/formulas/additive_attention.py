"""The explicit formulas of additive attention (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473).

    score[b,s,t] = scale Σ_a v_a act(q[b,s,a] + k[b,t,a])     α = softmax_t(score)     context[b,s] = Σ_t α value[b,t]
    lse[b,s] = log Σ_t exp score[b,s,t]

They are what every back end is held to, and the back end "reference". Symbols: B batch, S queries, T keys, A attention
channels, D value channels. Masks are boolean, True = may be attended. The contract of the functions is that of
contract.AdditiveAttentionImpl.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.contract import Activation, AttentionInputs


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension of the positions where mask (broadcastable to scores) is True.

    A masked position has weight exactly 0 whatever its score. A row with no position left is all zeros, with zero
    gradients. Elsewhere NaN and infinite scores do what they do in `torch.softmax`.
    """
    if mask is None:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(_filled(scores, mask), dim=-1).masked_fill(~mask, 0.0)


def masked_logsumexp(scores: Tensor, mask: Tensor | None) -> Tensor:
    """log Σ exp over the last dimension of the positions where mask (broadcastable to scores) is True.

    A row with no position left is -inf, with zero gradients.
    """
    if mask is None:
        return torch.logsumexp(scores, dim=-1)
    return torch.logsumexp(_filled(scores, mask), dim=-1).masked_fill(~mask.any(dim=-1), float("-inf"))


def _filled(scores: Tensor, mask: Tensor) -> Tensor:
    """-inf where masked; but 0 in a row that has nothing else, where softmax and its backward would be NaN of -inf."""
    empty = ~mask.any(dim=-1, keepdim=True)
    fill = torch.where(empty, 0.0, float("-inf")).to(scores.dtype)
    return torch.where(mask, scores, fill)


def additive_scores_forward(
    q: Tensor, k: Tensor, v: Tensor, activation: Activation, prepared: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The oracle may allocate (B, S, T, A)."""
    energy = activate(_pair_sums(q, k), *activation)
    return torch.matmul(energy, v.to(energy.dtype))


def additive_attention_forward(
    inputs: AttentionInputs,
    activation: Activation,
    scale: float,
    prepared: tuple[Tensor, Tensor] | None = None,
    need_weights: bool = True,
) -> tuple[Tensor, Tensor]:
    q, k, v, value, mask, score_bias = inputs
    scores = scale * additive_scores_forward(q, k, v, activation)
    if score_bias is not None:
        scores = scores + score_bias.to(scores.dtype)
    weights = masked_softmax(scores, mask).to(value.dtype)
    return torch.matmul(weights, value), weights


def prepare_keys(k: Tensor, kind: str) -> tuple[Tensor, Tensor] | None:
    return None


def additive_scores_backward(
    grad_scores: Tensor, q: Tensor, k: Tensor, v: Tensor, activation: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    """w[b,s,t,a] = grad_scores[b,s,t] v_a act'(q[b,s,a] + k[b,t,a])

    dq = Σ_t w          dk = Σ_s w          dv_a = Σ_{b,s,t} grad_scores[b,s,t] act(q[b,s,a] + k[b,t,a])
    """
    z = _pair_sums(q, k)
    grad_scores = grad_scores.to(z.dtype)[..., None]
    w = grad_scores * v.to(z.dtype) * _activation_slope(z, *activation)
    dv = (grad_scores * activate(z, *activation)).sum((0, 1, 2))
    return w.sum(2).to(q.dtype), w.sum(1).to(k.dtype), dv.to(v.dtype)


def activate(z: Tensor, activation: str, negative_slope: float) -> Tensor:
    if activation == "tanh":
        return torch.tanh(z)
    return F.relu(z) if activation == "relu" else F.leaky_relu(z, negative_slope)


def _activation_slope(z: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act'(z), and at the kink, and for NaN, what autograd takes it to be."""
    if activation == "tanh":
        return 1 - torch.tanh(z).square()
    if activation == "relu":
        return torch.ones_like(z).masked_fill(z <= 0, 0.0)
    return torch.ones_like(z).masked_fill(~(z > 0), negative_slope)


def _pair_sums(q: Tensor, k: Tensor) -> Tensor:
    """q[b,s,a] + k[b,t,a] as (B, S, T, A) in the accumulation dtype."""
    acc = accumulation_dtype(q.dtype)
    return q[:, :, None].to(acc) + k[:, None].to(acc)
