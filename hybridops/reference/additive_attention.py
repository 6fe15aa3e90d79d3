"""Additive attention (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473): the plain modules.

    score[b,s,t] = scale Σ_a v_a act(q[b,s,a] + k[b,t,a])     α = softmax_t(score)     context[b,s] = Σ_t α value[b,t]

Symbols: B batch, S queries, T keys, A attention channels, D value channels. Masks are boolean, True = may be attended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.checks import (
    ACTIVATIONS,
    broadcast_mask,
    check_bool,
    check_choice,
    check_number,
    check_positive_int,
    check_shape,
)
from hybridops.formulas.additive_attention import activate, masked_softmax


class ConcatAttention(nn.Module):
    """Attention weights of one decoder state over the encoder's outputs, scored over their concatenation.

        α = softmax_t(v · tanh(W [hidden; encoder_outputs_t] + b))

    Parameters: `attn.weight` (H, 2H) with the columns of hidden first, `attn.bias` (H), `v.weight` (1, H).

    Shape: hidden (B, H), encoder_outputs (B, T, H), mask None or boolean, broadcastable to (B, T); weights (B, T).
    A row whose mask is False everywhere has zero weights and zero gradients.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self, hidden_dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        self.attn = nn.Linear(2 * self.hidden_dim, self.hidden_dim, device=device, dtype=dtype)
        self.v = nn.Linear(self.hidden_dim, 1, bias=False, device=device, dtype=dtype)

    def forward(self, hidden: Tensor, encoder_outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        check_shape("hidden", hidden, ("B", self.hidden_dim))
        check_shape("encoder_outputs", encoder_outputs, (hidden.shape[0], "T", self.hidden_dim))
        if mask is not None:
            mask = broadcast_mask(mask, hidden.shape[0], 1, encoder_outputs.shape[1])[:, 0]
        return self._weights(hidden, encoder_outputs, mask)

    def _weights(self, hidden: Tensor, encoder_outputs: Tensor, mask: Tensor | None) -> Tensor:
        """weights (B, T) of checked inputs, mask (B, T) or None."""
        hidden = hidden.unsqueeze(1).repeat(1, encoder_outputs.shape[1], 1)
        energy = torch.tanh(self.attn(torch.cat((hidden, encoder_outputs), dim=2)))
        return masked_softmax(self.v(energy).squeeze(2), mask)


@dataclass(frozen=True, eq=False)
class PreparedKeys:
    """What `AdditiveAttention.prepare` projects once, for `forward` to take in place of key, value and mask."""

    key: Tensor  # (B, T, A), projected
    value: Tensor  # (B, T, D)
    mask: Tensor | None  # boolean, three dimensions, broadcastable to (B, S, T)

    def index_select(self, index: Tensor) -> PreparedKeys:
        """Those at `index` of the batch."""
        mask = self.mask
        if mask is not None and mask.shape[0] == self.key.shape[0]:
            mask = mask.index_select(0, index)
        return replace(self, key=self.key.index_select(0, index), value=self.value.index_select(0, index), mask=mask)


class AdditiveAttention(nn.Module):
    """Additive attention (equations above) with q = W_q query and k = W_k key.

    Args:
        query_dim, key_dim, attn_dim: channels Q of the query, K of the key, A of the sum of their projections.
        bias: whether the two projections have one.
        activation: "tanh", "relu" or "leaky_relu".
        negative_slope: of leaky_relu.
        scale: multiplies the scores.
        dropout: probability with which a weight is zeroed in training, as in `nn.MultiheadAttention`: the weights that
            are returned are those the context was made of.

    Parameters: `query_proj.weight` (A, Q), `key_proj.weight` (A, K), their biases (A) if any, `v.weight` (1, A).

    Shape: query (B, S, Q), key (B, T, K) or what `prepare` gave, value (B, T, D) or None (the key itself), mask None or
    boolean and broadcastable to (B, S, T), where two dimensions are (B, T). Gives (context (B, S, D), weights (B, S, T)
    or None). A query (B, Q) gives (B, D) and (B, T). A row that may attend nothing has a zero context, zero weights and
    zero gradients.

    In a beam search the queries may be m times as many, (m·B, S, Q) or (m·B, Q), the m of a batch entry next to each
    other as `repeat_interleave` puts them: they share its keys, which are not repeated. A mask is then the same for all
    queries of an entry.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        attn_dim: int,
        *,
        bias: bool = False,
        activation: str = "tanh",
        negative_slope: float = 0.01,
        scale: float = 1.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.query_dim = check_positive_int("query_dim", query_dim)
        self.key_dim = check_positive_int("key_dim", key_dim)
        self.attn_dim = check_positive_int("attn_dim", attn_dim)
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        self.negative_slope = check_number("negative_slope", negative_slope)
        self.scale = check_number("scale", scale)
        self.dropout = check_number("dropout", dropout, low=0.0, high=1.0)
        check_bool("bias", bias)
        self.query_proj = nn.Linear(self.query_dim, self.attn_dim, bias=bias, device=device, dtype=dtype)
        self.key_proj = nn.Linear(self.key_dim, self.attn_dim, bias=bias, device=device, dtype=dtype)
        self.v = nn.Linear(self.attn_dim, 1, bias=False, device=device, dtype=dtype)

    def prepare(self, key: Tensor, value: Tensor | None = None, mask: Tensor | None = None) -> PreparedKeys:
        """Project the keys once; `forward` takes the result in place of key, value and mask."""
        return self._project(key, value, mask)

    def _project(self, key: Tensor, value: Tensor | None, mask: Tensor | None) -> PreparedKeys:
        check_shape("key", key, ("B", "T", self.key_dim))
        batch, keys = key.shape[:2]
        if value is not None:
            check_shape("value", value, (batch, keys, "D"))
        mask = broadcast_mask(mask, batch, None, keys)
        return PreparedKeys(self.key_proj(key), key if value is None else value, mask)

    def forward(
        self,
        query: Tensor,
        key: Tensor | PreparedKeys,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        if not isinstance(key, PreparedKeys):
            key = self._project(key, value, mask)
        elif value is not None or mask is not None:
            raise ValueError("value and mask must be None where key is PreparedKeys, which holds them already")
        batch, keys = key.key.shape[:2]
        one_query = isinstance(query, Tensor) and query.dim() == 2
        check_shape("query", query, ("m·B", self.query_dim) if one_query else ("m·B", "S", self.query_dim))
        count = query.shape[0]
        if count != batch and (batch == 0 or count % batch or count == 0):
            raise ValueError(f"query must have the batch size of key, {batch}, or a multiple of it, got {count}")

        # the m queries of an entry are so many more queries of its keys
        mask = broadcast_mask(key.mask, batch, 1 if one_query or count != batch else query.shape[1], keys)
        return self._project_and_attend(query, key, mask, need_weights)

    def _project_and_attend(
        self,
        query: Tensor,  # (m·B, S, Q) or (m·B, Q)
        keys: PreparedKeys,
        mask: Tensor | None,  # boolean, broadcastable to (B, S, T), or for m > 1 to (B, 1, T)
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """context (m·B, S, D) or (m·B, D) and weights (m·B, S, T) or (m·B, T), or None if not needed."""
        q = self.query_proj(query)  # a matrix as it is: PyTorch's product of three dimensions takes a fifth longer
        q = q.unsqueeze(1) if query.dim() == 2 else q
        batch, shared = keys.key.shape[0], query.shape[0] != keys.key.shape[0]
        context, weights = self._attend(
            q.flatten(0, 1).unflatten(0, (batch, -1)) if shared else q, keys, mask, need_weights
        )
        if shared:
            context = context.reshape(*q.shape[:2], -1)
            weights = None if weights is None else weights.reshape(*q.shape[:2], -1)
        if query.dim() == 2:
            return context.squeeze(1), None if weights is None else weights.squeeze(1)
        return context, weights

    def _attend(
        self,
        q: Tensor,  # (B, S, A), projected
        keys: PreparedKeys,
        mask: Tensor | None,  # boolean, broadcastable to (B, S, T)
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """context (B, S, D) and weights (B, S, T), or None if not needed."""
        energy = activate(q[:, :, None] + keys.key[:, None], self.activation, self.negative_slope)  # (B, S, T, A)
        weights = masked_softmax(self.scale * self.v(energy).squeeze(-1), mask)
        weights = F.dropout(weights, self.dropout, self.training)
        return torch.matmul(weights, keys.value), weights if need_weights else None

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, scale={self.scale:g}, dropout={self.dropout:g}"
