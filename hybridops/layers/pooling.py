"""One vector for a sequence: (B, T, D), under a mask (B, T) with True = there is something, gives (B, D).

A row in which there is nothing has zeros. What is behind the mask may be anything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridops.checks import broadcast_mask, check_bool, check_positive_int, check_shape
from hybridops.formulas.additive_attention import masked_softmax
from hybridops.modules import FusedAdditiveAttention


def _checked(values: Tensor, mask: Tensor | None, dim: int | str = "D") -> tuple[Tensor, Tensor | None]:
    """The values with zeros behind the mask, and the mask, (B, T)."""
    check_shape("values", values, ("B", "T", dim))
    if mask is None:
        return values, None
    mask = broadcast_mask(mask, values.shape[0], 1, values.shape[1])[:, 0].expand(values.shape[:2])
    return values.masked_fill(~mask[..., None], 0.0), mask


class LastState(nn.Module):
    """values at the last step that is there."""

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        values, mask = _checked(values, mask)
        if values.shape[1] == 0:
            return values.sum(1)
        if mask is None:
            return values[:, -1]
        last = torch.where(mask, torch.arange(values.shape[1], device=values.device), 0).amax(1)
        return values.gather(1, last[:, None, None].expand(-1, 1, values.shape[2])).squeeze(1)


class MeanPooling(nn.Module):
    """The mean of those that are there."""

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        values, mask = _checked(values, mask)
        count = values.new_tensor(values.shape[1]) if mask is None else mask.sum(1, keepdim=True)
        return values.sum(1) / count.clamp(min=1)


class MaxPooling(nn.Module):
    """The maximum, channel by channel, of those that are there."""

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        values, mask = _checked(values, mask)
        if values.shape[1] == 0:
            return values.sum(1)
        if mask is None:
            return values.amax(1)
        best = values.masked_fill(~mask[..., None], -torch.inf).amax(1)
        return torch.where(mask.any(1, keepdim=True), best, 0.0)


class AttentionPooling(nn.Module):
    """A mean weighted by learned scores, Ilse et al. 2018, https://arxiv.org/abs/1802.04712.

        pooled = Σ_t a_t values_t        a = softmax_t(v · tanh(W values_t + b))
        gated:                           a = softmax_t(v · (tanh(W values_t + b) ∘ σ(U values_t + b_u)))

    Args:
        dim, attn_dim: channels D of values, A of the sum in tanh.
        gated: whether there is a gate.

    Shape: values (B, T, D), mask None or boolean (B, T), True = counts; gives (B, D), and `weights` gives a (B, T).

    Fused without a gate: `FusedAdditiveAttention`, whose query is the constant 1, projected to b.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, dim: int, attn_dim: int = 128, *, gated: bool = False) -> None:
        super().__init__()
        self.dim = check_positive_int("dim", dim)
        self.attention = FusedAdditiveAttention(1, dim, attn_dim)
        self.gate = nn.Linear(dim, attn_dim) if check_bool("gated", gated) else None

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._pool(values, mask)[0]

    def weights(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """a (B, T)."""
        return self._pool(values, mask)[1]

    def _pool(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        values, mask = _checked(values, mask, self.dim)
        attention, one = self.attention, values.new_ones(values.shape[0], 1)
        if self.gate is None:
            pooled, weights = attention(one, values, mask=mask)
            return pooled, weights
        energy = torch.tanh(attention.key_proj(values) + attention.query_proj(one)[:, None])
        weights = masked_softmax(attention.v(energy * torch.sigmoid(self.gate(values))).squeeze(2), mask)
        return (weights[:, None] @ values).squeeze(1), weights
