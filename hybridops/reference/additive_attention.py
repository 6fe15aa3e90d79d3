"""Additive attention (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473): the plain modules, the explicit formulas.

    score[b,s,t] = scale Σ_a v_a act(q[b,s,a] + k[b,t,a])     α = softmax_t(score)     context[b,s] = Σ_t α value[b,t]

Symbols: B batch, S queries, T keys, A attention channels, D value channels. Masks are boolean, True = may be attended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.checks import (
    accumulation_dtype,
    check_bool,
    check_choice,
    check_number,
    check_positive_int,
    check_shape,
)

ACTIVATIONS = ("tanh", "relu", "leaky_relu")


# ------------------------------------------------------------------------------------------------ the plain modules


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
            context, weights = (None if t is None else t.reshape(*q.shape[:2], -1) for t in (context, weights))
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


def broadcast_mask(mask: Tensor | None, batch: int, queries: int | None, keys: int) -> Tensor | None:
    """A view of the mask with three dimensions, broadcastable to (batch, queries, keys); queries None: any number.

    Two dimensions are (B, T): padding is by far the most common mask.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a boolean tensor (True = may be attended), got {came}")
    view = mask.unsqueeze(1) if mask.dim() == 2 else mask
    view = view[(None,) * (3 - view.dim())]
    wanted = (batch, queries, keys)
    fits = view.dim() == 3
    for got, want in zip(view.shape, wanted, strict=False):
        fits = fits and (got == 1 or want in (None, got))
    if not fits:
        shape = ", ".join("S" if size is None else str(size) for size in wanted)
        raise ValueError(f"mask must be ({batch}, {keys}) or broadcastable to ({shape}), got {tuple(mask.shape)}")
    return view


# -------------------------------------------------------------------------------------------- the explicit formulas


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension of the positions where mask (broadcastable to scores) is True.

    A masked position has weight exactly 0 whatever its score. A row with no position left is all zeros, with zero
    gradients. Elsewhere NaN and infinite scores do what they do in `torch.softmax`.
    """
    if mask is None:
        return torch.softmax(scores, dim=-1)
    # An empty row is filled with 0, not -inf: the softmax of -inf alone is NaN, and so is its backward.
    empty = ~mask.any(dim=-1, keepdim=True)
    fill = torch.where(empty, 0.0, float("-inf")).to(scores.dtype)
    return torch.softmax(torch.where(mask, scores, fill), dim=-1).masked_fill(~mask, 0.0)


def additive_scores_forward(
    q: Tensor,  # (B, S, A)
    k: Tensor,  # (B, T, A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> Tensor:
    """Σ_a v_a act(q[b,s,a] + k[b,t,a]), (B, S, T) in the accumulation dtype. The oracle may allocate (B, S, T, A)."""
    energy = activate(_pair_sums(q, k), activation, negative_slope)
    return torch.matmul(energy, v.to(energy.dtype))


def additive_attention_forward(
    q: Tensor,  # (B, S, A)
    k: Tensor,  # (B, T, A)
    v: Tensor,  # (A,)
    value: Tensor,  # (B, T, D)
    mask: Tensor | None,  # boolean, three dimensions, broadcastable to (B, S, T)
    score_bias: Tensor | None,  # broadcastable to (B, S, T)
    scale: float,
    activation: str,
    negative_slope: float,
    key_exponentials: tuple[Tensor, Tensor] | None = None,  # for the back ends that have a use for them
    need_weights: bool = True,
) -> tuple[Tensor, Tensor]:
    """context (B, S, D) and weights (B, S, T), in the dtype of value; weights that are not needed may be anything."""
    scores = scale * additive_scores_forward(q, k, v, activation, negative_slope)
    if score_bias is not None:
        scores = scores + score_bias.to(scores.dtype)
    weights = masked_softmax(scores, mask).to(value.dtype)
    return torch.matmul(weights, value), weights


def prepare_keys(k: Tensor, activation: str) -> tuple[Tensor, Tensor] | None:
    """What `additive_attention_forward` takes as key_exponentials: nothing here."""
    return None


def additive_scores_backward(
    grad_scores: Tensor,  # (B, S, T) accumulation dtype
    q: Tensor,  # (B, S, A)
    k: Tensor,  # (B, T, A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, each in its own dtype.

    w[b,s,t,a] = grad_scores[b,s,t] v_a act'(q[b,s,a] + k[b,t,a])

        dq = Σ_t w          dk = Σ_s w          dv_a = Σ_{b,s,t} grad_scores[b,s,t] act(q[b,s,a] + k[b,t,a])
    """
    z = _pair_sums(q, k)
    grad_scores = grad_scores.to(z.dtype)[..., None]
    w = grad_scores * v.to(z.dtype) * _activation_slope(z, activation, negative_slope)
    dv = (grad_scores * activate(z, activation, negative_slope)).sum((0, 1, 2))
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
