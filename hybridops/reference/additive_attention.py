"""Additive attention (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473): the plain modules.

    score[b,s,t] = scale Σ_a v_a act(q[b,s,a] + k[b,t,a])     α = softmax_t(score)     context[b,s] = Σ_t α value[b,t]

Symbols: B batch, S queries, T keys, A attention channels, D value channels. Masks are boolean, True = may be attended.
Of several heads each has its equal share of the channels of q, k, v and of the value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, overload

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
from hybridops.formulas.additive_attention import activate, masked_logsumexp, masked_softmax
from hybridops.reference.unbatched import is_unbatched, of_one


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

    def reset_parameters(self) -> None:
        self.attn.reset_parameters()
        self.v.reset_parameters()

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

    reorder = index_select  # as `DecoderState` calls it

    def __getitem__(self, entries: slice) -> PreparedKeys:
        """Those of a slice of the batch."""
        if not isinstance(entries, slice):
            raise TypeError(f"PreparedKeys take a slice of the batch, got {type(entries).__name__}; or `index_select`")
        return self.index_select(torch.arange(self.key.shape[0], device=self.key.device)[entries])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PreparedKeys:
        """On another device, in another dtype."""
        mask = None if self.mask is None else self.mask.to(device)
        return PreparedKeys(self.key.to(device, dtype), self.value.to(device, dtype), mask)


Head = tuple[Tensor, "Tensor | None", "Tensor | None"]  # context (B, S, D'), weights (B, S, T), lse (B, S)


class HeadScores(nn.Module):
    """v of several heads: score[..., h] = Σ_a weight[h,a] x[..., h A' + a], A' = attn_dim / num_heads.

    Parameters: `weight` (num_heads, A'), drawn as `nn.Linear` draws a row of A'.
    """

    def __init__(
        self,
        attn_dim: int,
        num_heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, attn_dim // num_heads, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = x.unflatten(-1, self.weight.shape) * self.weight
        return product.sum(-1)


class AdditiveAttention(nn.Module):
    """Additive attention (equations above) with q = W_q query and k = W_k key.

    Args:
        query_dim, key_dim, attn_dim: channels Q of the query, K of the key, A of the sum of their projections.
        bias: whether the two projections have one.
        num_heads: heads, among which A and D are shared out evenly, as in `nn.MultiheadAttention`: head h has the h-th
            of num_heads equal parts of q, k and value, a row of v and a softmax of its own, and makes the h-th part of
            the context. There is no projection of the value or of the context.
        activation: "tanh", "relu" or "leaky_relu".
        negative_slope: of leaky_relu.
        scale: multiplies the scores.
        dropout: probability with which a weight is zeroed in training, as in `nn.MultiheadAttention`: the weights that
            are returned are those the context was made of.

    Parameters: `query_proj.weight` (A, Q), `key_proj.weight` (A, K), their biases (A) if any, `v.weight` (num_heads,
    A / num_heads).

    Shape: query (B, S, Q), key (B, T, K) or what `prepare` gave, value (B, T, D) or None (the key itself), mask None or
    boolean and broadcastable to (B, S, T), where two dimensions are (B, T). Gives (context (B, S, D), weights (B, S, T)
    or None). A query (B, Q) gives (B, D) and (B, T). Where the key is (T, K) all are without B. A row that may attend
    nothing has a zero context, zero weights and zero gradients.

    Of several heads the weights are the mean, or with `average_attn_weights=False` (B, num_heads, S, T), as those of
    `nn.MultiheadAttention`. With `need_lse=True` a third result is lse, the log-sum-exp over t of the scores: (B, S),
    or of several heads (B, num_heads, S); -inf where nothing may be attended.

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
        num_heads: int = 1,
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
        self.num_heads = check_positive_int("num_heads", num_heads)
        if self.attn_dim % self.num_heads:
            raise ValueError(f"attn_dim must be a multiple of num_heads, {self.num_heads}, got {self.attn_dim}")
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        self.negative_slope = check_number("negative_slope", negative_slope)
        self.scale = check_number("scale", scale)
        self.dropout = check_number("dropout", dropout, low=0.0, high=1.0)
        check_bool("bias", bias)
        self.query_proj = nn.Linear(self.query_dim, self.attn_dim, bias=bias, device=device, dtype=dtype)
        self.key_proj = nn.Linear(self.key_dim, self.attn_dim, bias=bias, device=device, dtype=dtype)
        self.v: nn.Linear | HeadScores
        if self.num_heads == 1:
            self.v = nn.Linear(self.attn_dim, 1, bias=False, device=device, dtype=dtype)
        else:
            self.v = HeadScores(self.attn_dim, self.num_heads, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        for part in (self.query_proj, self.key_proj, self.v):
            part.reset_parameters()

    def prepare(self, key: Tensor, value: Tensor | None = None, mask: Tensor | None = None) -> PreparedKeys:
        """Project the keys once; `forward` takes the result in place of key, value and mask."""
        return self._project(key, value, mask)

    def _project(self, key: Tensor, value: Tensor | None, mask: Tensor | None) -> PreparedKeys:
        check_shape("key", key, ("B", "T", self.key_dim))
        batch, keys = key.shape[:2]
        if value is not None:
            check_shape("value", value, (batch, keys, "D"))
        mask, name = broadcast_mask(mask, batch, None, keys), "key" if value is None else "value"
        value = key if value is None else value
        if value.shape[2] % self.num_heads:
            channels = f"a multiple of num_heads, {self.num_heads}, channels"
            raise ValueError(f"{name} must have {channels}, got {value.shape[2]}")
        return PreparedKeys(self.key_proj(key), value, mask)

    @overload
    def forward(
        self,
        query: Tensor,
        key: Tensor | PreparedKeys,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = True,
        *,
        average_attn_weights: bool = True,
        need_lse: Literal[False] = False,
    ) -> tuple[Tensor, Tensor | None]: ...
    @overload
    def forward(
        self,
        query: Tensor,
        key: Tensor | PreparedKeys,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = True,
        *,
        average_attn_weights: bool = True,
        need_lse: Literal[True],
    ) -> tuple[Tensor, Tensor | None, Tensor]: ...
    def forward(
        self,
        query: Tensor,
        key: Tensor | PreparedKeys,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = True,
        *,
        average_attn_weights: bool = True,
        need_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor]:
        if is_unbatched(key, 2):
            options = {"average_attn_weights": average_attn_weights, "need_lse": need_lse}
            found: tuple[Tensor, Tensor | None] = of_one(self.forward, query, key, value, mask, need_weights, **options)
            return found
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
        context, weights, lse = self._project_and_attend(query, key, mask, need_weights, average_attn_weights, need_lse)
        return (context, weights) if lse is None else (context, weights, lse)

    def _project_and_attend(
        self,
        query: Tensor,  # (m·B, S, Q) or (m·B, Q)
        keys: PreparedKeys,
        mask: Tensor | None,  # boolean, broadcastable to (B, S, T), or for m > 1 to (B, 1, T)
        need_weights: bool,
        average: bool,
        need_lse: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """context, weights and lse as `forward` gives them, those that are not needed None."""
        q = self.query_proj(query)  # a matrix as it is: PyTorch's product of three dimensions takes a fifth longer
        q = q.unsqueeze(1) if query.dim() == 2 else q
        (rows, count, width), batch = q.shape, keys.key.shape[0]
        q = q if rows == batch else q.reshape(batch, rows * count // batch, width)
        contexts, weights, lses = zip(*self._attend(q, keys, mask, need_weights, need_lse), strict=True)
        context = contexts[0] if self.num_heads == 1 else torch.cat(contexts, -1)
        context = context.reshape(rows, count, context.shape[-1])
        alpha, lse = (_stack_heads(parts, rows, count) for parts in (weights, lses))
        if alpha is not None and average:
            alpha = alpha.squeeze(1) if self.num_heads == 1 else alpha.mean(1)
        if lse is not None and self.num_heads == 1:
            lse = lse.squeeze(1)
        if query.dim() == 3:
            return context, alpha, lse
        alpha = None if alpha is None else alpha.squeeze(-2)
        return context.squeeze(1), alpha, None if lse is None else lse.squeeze(-1)

    def _attend(
        self,
        q: Tensor,  # (B, S, A), projected
        keys: PreparedKeys,
        mask: Tensor | None,  # boolean, broadcastable to (B, S, T)
        need_weights: bool,
        need_lse: bool,
    ) -> list[Head]:
        """Of each head."""
        energy = activate(q[:, :, None] + keys.key[:, None], self.activation, self.negative_slope)  # (B, S, T, A)
        heads: list[Head] = []
        all_scores = self.v(energy).unbind(-1)
        for scores, value in zip(all_scores, split_heads(keys.value, self.num_heads), strict=True):
            scores = self.scale * scores
            weights = F.dropout(masked_softmax(scores, mask), self.dropout, self.training)
            lse = masked_logsumexp(scores, mask) if need_lse else None
            heads.append((torch.matmul(weights, value), weights if need_weights else None, lse))
        return heads

    def extra_repr(self) -> str:
        heads = "" if self.num_heads == 1 else f"num_heads={self.num_heads}, "
        return f"{heads}activation={self.activation!r}, scale={self.scale:g}, dropout={self.dropout:g}"


def split_heads(x: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Equal parts of the channels, which are the last dimension; one is the tensor itself."""
    return (x,) if num_heads == 1 else x.chunk(num_heads, -1)


def _stack_heads(parts: tuple[Tensor | None, ...], rows: int, count: int) -> Tensor | None:
    """(m·B, heads, S, ...) of one (B, m·S, ...) for each head, or None."""
    found = [part.reshape(rows, count, *part.shape[2:]) for part in parts if part is not None]
    if not found:
        return None
    return found[0].unsqueeze(1) if len(found) == 1 else torch.stack(found, 1)
