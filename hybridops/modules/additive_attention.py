"""FusedConcatAttention and FusedAdditiveAttention: the plain modules' parameters and calls on fused functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.formulas.additive_attention import masked_softmax
from hybridops.modules.parts import check_backend, reason_not_plain, recompute_weights, runs_plain, settings
from hybridops.reference.additive_attention import (
    AdditiveAttention,
    ConcatAttention,
    Head,
    HeadScores,
    PreparedKeys,
    split_heads,
)

_LINEAR = (nn.Linear,)


@dataclass(frozen=True, eq=False)
class FusedPreparedKeys(PreparedKeys):
    """PreparedKeys with what else the back end computes once of the keys, where it has a use for it."""

    exponentials: tuple[HF.PreparedExponentials | None, ...] = (None,)  # of each head
    shared: HF.SharedKeys | None = None  # for the gradients of many steps; of one head alone

    def index_select(self, index: Tensor) -> FusedPreparedKeys:
        """Those at `index` of the batch."""
        exponentials = tuple(None if each is None else each.index_select(index) for each in self.exponentials)
        keys = super().index_select(index)
        return FusedPreparedKeys(keys.key, keys.value, keys.mask, exponentials)

    reorder = index_select


class FusedConcatAttention(ConcatAttention):
    """Attention weights of one decoder state over the encoder's outputs, scored over their concatenation.

        α = softmax_t(v · tanh(W [hidden; encoder_outputs_t] + b))        (Bahdanau et al. 2015,
                                                                           https://arxiv.org/abs/1409.0473)

    Args:
        hidden_dim: channels H of hidden and of encoder_outputs.
        backend: "reference", "native", "triton", or None for the fastest that takes the inputs.

    Parameters: those of `reference.ConcatAttention`, and the same state dict: `attn.weight` (H, 2H) with the columns of
    hidden first, `attn.bias` (H), `v.weight` (1, H).

    Shape: hidden (B, H), encoder_outputs (B, T, H), mask None or boolean, broadcastable to (B, T); weights (B, T).
    A row whose mask is False everywhere has zero weights and zero gradients.

    Fused: W [hidden; encoder_outputs] is taken apart into a query and keys, scored by `functional.additive_scores`.
    Where `attn` or `v` is more than a linear map (another class, hooks, ...), the plain forward runs. Where one encoder
    output serves many steps, `FusedAdditiveAttention.prepare` saves projecting it at each.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
        RuntimeError: a back end was named that is not here, or does not take the inputs.
    """

    backend: str | None = None  # a class attribute too: `fuse` makes this class of modules whose __init__ knew none

    def __init__(
        self,
        hidden_dim: int,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_dim, device=device, dtype=dtype)
        self.backend = check_backend(backend)

    def extra_repr(self) -> str:
        return settings(super().extra_repr(), backend=self.backend)

    def _weights(self, hidden: Tensor, encoder_outputs: Tensor, mask: Tensor | None) -> Tensor:
        attn, v = self.attn, self.v
        reasons = {"attn": reason_not_plain(attn, _LINEAR), "v": reason_not_a_row(v)}
        if runs_plain("additive_attention", self.backend, hidden, reasons):
            return super()._weights(hidden, encoder_outputs, mask)
        recompute_weights(attn, v)
        w_query, w_key = attn.weight.split(self.hidden_dim, dim=1)
        query = F.linear(hidden, w_query, attn.bias).unsqueeze(1)
        scores = HF.additive_scores(query, F.linear(encoder_outputs, w_key), v.weight[0], backend=self.backend)
        return masked_softmax(scores.squeeze(1), mask)


class FusedAdditiveAttention(AdditiveAttention):
    """Additive attention (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473), fused.

        score[b,s,t] = scale v · act(W_q query[b,s] + W_k key[b,t])
        α = softmax_t(score) where mask is True, 0 elsewhere          context[b,s] = Σ_t α[b,s,t] value[b,t]

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
        backend: "reference", "native", "triton", or None for the fastest that takes the inputs.

    Parameters: those of `reference.AdditiveAttention`, and the same state dict: `query_proj.weight` (A, Q),
    `key_proj.weight` (A, K), their biases (A) if any, `v.weight` (num_heads, A / num_heads).

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

    Fused: `functional.additive_attention` runs it, a head at a time, and no (B, S, T, A) tensor is made. Where `v` is
    more than its weight (another class, hooks, ...), the plain forward runs; the projections are called in any case,
    but for decoding steps of one head with a plain `query_proj`.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
        RuntimeError: a back end was named that is not here, or does not take the inputs.
    """

    backend: str | None = None

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
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            query_dim, key_dim, attn_dim, bias=bias, num_heads=num_heads, activation=activation,
            negative_slope=negative_slope, scale=scale, dropout=dropout, device=device, dtype=dtype,
        )  # fmt: skip
        self.backend = check_backend(backend)

    def extra_repr(self) -> str:
        return settings(super().extra_repr(), backend=self.backend)

    def prepare(self, key: Tensor, value: Tensor | None = None, mask: Tensor | None = None) -> PreparedKeys:
        """Project the keys and take their exponentials, once; `forward` takes the result in place of the three.

        What is prepared depends on the keys and `key_proj` alone: `query_proj` and `v` count as they are at each step.
        """
        keys = self._project(key, value, mask)
        exponentials = tuple(
            HF.prepare_exponentials(key, activation=self.activation, backend=self.backend)
            for key in split_heads(keys.key, self.num_heads)
        )
        shared = HF.share_keys(keys.key, keys.value) if self.num_heads == 1 else None
        return FusedPreparedKeys(keys.key, keys.value, keys.mask, exponentials, shared)

    def _project_and_attend(
        self,
        query: Tensor,
        keys: PreparedKeys,
        mask: Tensor | None,
        need_weights: bool,
        average: bool,
        need_lse: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        projection, v = self.query_proj, self.v
        if (
            isinstance(keys, FusedPreparedKeys)
            and not (self.dropout and self.training)
            and average
            and not need_lse
            and are_as_they_stand(projection, v)
        ):
            out = HF.additive_attention_step(
                query, projection.weight, projection.bias, keys.key, keys.value, v.weight, mask=mask, scale=self.scale,
                activation=self.activation, negative_slope=self.negative_slope, return_weights=need_weights,
                prepared=exponentials_of(keys, 1)[0], backend=self.backend,
            )  # fmt: skip
            if out is not None:
                return *out, None
        return super()._project_and_attend(query, keys, mask, need_weights, average, need_lse)

    def _attend(
        self, q: Tensor, keys: PreparedKeys, mask: Tensor | None, need_weights: bool, need_lse: bool
    ) -> list[Head]:
        v, count = self.v, self.num_heads
        reason = reason_not_a_row(v) if count == 1 else reason_not_plain(v, (HeadScores,))
        if runs_plain("additive_attention", self.backend, q, {"v": reason}):
            return super()._attend(q, keys, mask, need_weights, need_lse)
        recompute_weights(v)
        heads: list[Head] = []
        shared = keys.shared if isinstance(keys, FusedPreparedKeys) else None
        parts = (*(split_heads(t, count) for t in (q, keys.key, keys.value)), v.weight, exponentials_of(keys, count))
        for query, key, value, v_row, exponentials in zip(*parts, strict=True):
            out = HF.additive_attention(
                query, key, value, v_row, mask=mask, scale=self.scale, activation=self.activation,
                negative_slope=self.negative_slope, dropout_p=self.dropout if self.training else 0.0,
                return_weights=need_weights, return_lse=need_lse, prepared=exponentials, shared=shared,
                backend=self.backend,
            )  # fmt: skip
            context, *others = out if isinstance(out, tuple) else (out,)
            lse = others.pop() if need_lse else None
            heads.append((context, others.pop() if need_weights else None, lse))
        return heads


def exponentials_of(keys: PreparedKeys, num_heads: int) -> tuple[HF.PreparedExponentials | None, ...]:
    """What was prepared beside the keys, of each head."""
    return keys.exponentials if isinstance(keys, FusedPreparedKeys) else (None,) * num_heads


def are_as_they_stand(*parts: nn.Module) -> bool:
    """Whether they may be read, and no hook computes a weight."""
    return all(reason_not_plain(part, _LINEAR) is None and not part._forward_pre_hooks for part in parts)


def reason_not_a_row(v: nn.Module) -> str | None:
    """Whether v·x is all that v computes, as it was made."""
    reason = reason_not_plain(v, _LINEAR)
    if reason is None and v.bias is not None:
        return "has a bias"
    if reason is None and v.out_features != 1:
        return f"has {v.out_features} outputs, not 1"
    return reason
