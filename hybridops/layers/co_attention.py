"""Attention of two modalities to each other: v (B, N, V), the regions of an image say, and q (B, T, Q), a text's words.

Masks are boolean, True = may be attended; what is behind them may be anything. A row without anything gives zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridops.checks import check_choice, check_positive_int, check_shape
from hybridops.formulas.additive_attention import masked_softmax
from hybridops.layers.masks import mask_padding
from hybridops.layers.pooling import AttentionPooling
from hybridops.modules import FusedAdditiveAttention


class Attended(NamedTuple):
    """What co-attention gives of each modality: a mean of its vectors, and their weights."""

    v: Tensor  # (B, V)
    q: Tensor  # (B, Q)
    v_weights: Tensor  # (B, N)
    q_weights: Tensor  # (B, T)


class CrossModalAttention(nn.Module):
    """One vector q looks at the other modality: v̂ = Σ_i α_i v_i.

        score="bilinear":  α = softmax_i(qᵀ W v_i)
        score="additive":  α = softmax_i(w · tanh(W_q q + W_v v_i))        as the question looks at a video's frames in
                                                                           Jang et al. 2017, arxiv.org/abs/1704.04497
    Args:
        v_dim, q_dim: channels V, Q.
        score: which; the additive one is `FusedAdditiveAttention`.
        attn_dim: channels of the additive score.

    Shape: v (B, N, V), q (B, Q), v_mask None or (B, N); gives v̂ (B, V), α (B, N).

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, v_dim: int, q_dim: int, *, score: str = "bilinear", attn_dim: int = 128) -> None:
        super().__init__()
        self.v_dim, self.q_dim = check_positive_int("v_dim", v_dim), check_positive_int("q_dim", q_dim)
        self.bilinear = self.additive = None
        if check_choice("score", score, ("bilinear", "additive")) == "bilinear":
            self.bilinear = nn.Linear(q_dim, v_dim, bias=False)
        else:
            self.additive = FusedAdditiveAttention(q_dim, v_dim, attn_dim)

    def forward(self, v: Tensor, q: Tensor, v_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = mask_padding("v", v, v_mask, self.v_dim)
        check_shape("q", q, (v.shape[0], self.q_dim))
        if self.additive is not None:
            context, weights = self.additive(q, v, mask=v_mask)
            return context, weights
        assert self.bilinear is not None
        weights = masked_softmax((v @ self.bilinear(q)[..., None]).squeeze(2), v_mask)
        return (weights[:, None] @ v).squeeze(1), weights


class CoAttention(nn.Module):
    """Parallel co-attention, Lu et al. 2016, https://arxiv.org/abs/1606.00061.

        C   = tanh(Q W_b Vᵀ)                                       (T, N), the affinity of each word and region
        H_v = tanh(V W_v + Cᵀ (Q W_q))      a_v = softmax(H_v w_v)      v̂ = Σ_i a_v,i v_i
        H_q = tanh(Q W_q + C (V W_v))       a_q = softmax(H_q w_q)      q̂ = Σ_t a_q,t q_t

    Args:
        v_dim, q_dim, attn_dim: channels V, Q, and A of H.

    Shape: v (B, N, V), q (B, T, Q), v_mask None or (B, N), q_mask None or (B, T); gives `Attended`. What is padded has
    no share in the affinities either.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, v_dim: int, q_dim: int, attn_dim: int = 128) -> None:
        super().__init__()
        self.v_dim, self.q_dim = check_positive_int("v_dim", v_dim), check_positive_int("q_dim", q_dim)
        check_positive_int("attn_dim", attn_dim)
        # No biases: then a vector of zeros has the affinity 0, and adds nothing to the other side.
        self.affinity = nn.Linear(v_dim, q_dim, bias=False)
        self.v_proj, self.q_proj = nn.Linear(v_dim, attn_dim, bias=False), nn.Linear(q_dim, attn_dim, bias=False)
        self.v_score, self.q_score = nn.Linear(attn_dim, 1, bias=False), nn.Linear(attn_dim, 1, bias=False)

    def forward(self, v: Tensor, q: Tensor, v_mask: Tensor | None = None, q_mask: Tensor | None = None) -> Attended:
        v, q = mask_padding("v", v, v_mask, self.v_dim), mask_padding("q", q, q_mask, self.q_dim)
        check_shape("q", q, (v.shape[0], "T", self.q_dim))
        affinity = torch.tanh(q @ self.affinity(v).transpose(1, 2))  # (B, T, N)
        v_proj, q_proj = self.v_proj(v), self.q_proj(q)
        v_hidden = torch.tanh(v_proj + affinity.transpose(1, 2) @ q_proj)
        q_hidden = torch.tanh(q_proj + affinity @ v_proj)
        v_weights = masked_softmax(self.v_score(v_hidden).squeeze(2), v_mask)
        q_weights = masked_softmax(self.q_score(q_hidden).squeeze(2), q_mask)
        return Attended((v_weights[:, None] @ v).squeeze(1), (q_weights[:, None] @ q).squeeze(1), v_weights, q_weights)


class AlternatingCoAttention(nn.Module):
    """Alternating co-attention, Lu et al. 2016: three additive attentions, one after the other.

        A(X, g) = Σ_i a_i x_i      a = softmax_i(w · tanh(W_x x_i + W_g g))
        s = A(Q, 0)                v̂ = A(V, s)                q̂ = A(Q, v̂)

    Each has weights of its own; the first, which is asked nothing, has a bias in place of W_g g.

    Arguments, shapes and errors are those of `CoAttention`. Fused: all three are `FusedAdditiveAttention`.
    """

    def __init__(self, v_dim: int, q_dim: int, attn_dim: int = 128) -> None:
        super().__init__()
        self.v_dim, self.q_dim = check_positive_int("v_dim", v_dim), check_positive_int("q_dim", q_dim)
        self.summary = AttentionPooling(q_dim, attn_dim)
        self.v_attention = FusedAdditiveAttention(q_dim, v_dim, attn_dim)
        self.q_attention = FusedAdditiveAttention(v_dim, q_dim, attn_dim)

    def forward(self, v: Tensor, q: Tensor, v_mask: Tensor | None = None, q_mask: Tensor | None = None) -> Attended:
        v, q = mask_padding("v", v, v_mask, self.v_dim), mask_padding("q", q, q_mask, self.q_dim)
        check_shape("q", q, (v.shape[0], "T", self.q_dim))
        v_attended, v_weights = self.v_attention(self.summary(q, q_mask), v, mask=v_mask)
        q_attended, q_weights = self.q_attention(v_attended, q, mask=q_mask)
        return Attended(v_attended, q_attended, v_weights, q_weights)
