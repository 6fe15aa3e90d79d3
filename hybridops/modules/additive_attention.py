"""FusedConcatAttention and FusedAdditiveAttention: the plain modules' parameters and calls on fused functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.modules.parts import reason_not_plain, recompute_weights, runs_plain
from hybridops.reference.additive_attention import AdditiveAttention, ConcatAttention, PreparedKeys, masked_softmax

_LINEAR = (nn.Linear,)


@dataclass(frozen=True, eq=False)
class FusedPreparedKeys(PreparedKeys):
    """PreparedKeys with what else the back end computes once of the keys, where it has a use for it."""

    exponentials: HF.PreparedExponentials | None = None

    def index_select(self, index: Tensor) -> FusedPreparedKeys:
        """Those at `index` of the batch."""
        exponentials = None if self.exponentials is None else self.exponentials.index_select(index)
        return replace(super().index_select(index), exponentials=exponentials)


class FusedConcatAttention(ConcatAttention):
    __doc__ = f"""{ConcatAttention.__doc__}
    Fused: W [hidden; encoder_outputs] is taken apart into a query and keys, scored by `functional.additive_scores`.
    `backend` (keyword) names a back end, None takes the fastest. Where `attn` or `v` is more than a linear map (another
    class, hooks, ...), the plain forward runs. Where one encoder output serves many steps,
    `FusedAdditiveAttention.prepare` saves projecting it at each.
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
        self.backend = backend

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
    __doc__ = f"""{AdditiveAttention.__doc__}
    Fused: `functional.additive_attention` runs it, and no (B, S, T, A) tensor is made. `backend` (keyword) names a back
    end, None takes the fastest. Where `v` is more than a linear map (another class, hooks, ...), the plain forward
    runs; the projections are called in any case, but for decoding steps of a plain `query_proj`.
    """

    backend: str | None = None

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
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            query_dim, key_dim, attn_dim, bias=bias, activation=activation, negative_slope=negative_slope, scale=scale,
            dropout=dropout, device=device, dtype=dtype,
        )  # fmt: skip
        self.backend = backend

    def prepare(self, key: Tensor, value: Tensor | None = None, mask: Tensor | None = None) -> PreparedKeys:
        """Project the keys and take their exponentials, once; `forward` takes the result in place of the three.

        What is prepared depends on the keys and `key_proj` alone: `query_proj` and `v` count as they are at each step.
        """
        keys = self._project(key, value, mask)
        exponentials = HF.prepare_exponentials(keys.key, activation=self.activation, backend=self.backend)
        return FusedPreparedKeys(keys.key, keys.value, keys.mask, exponentials)

    def _project_and_attend(
        self, query: Tensor, keys: PreparedKeys, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        projection, v = self.query_proj, self.v
        if (
            isinstance(keys, FusedPreparedKeys)
            and not (self.dropout and self.training)
            and _are_as_they_stand(projection, v)
        ):
            out = HF.additive_attention_step(
                query, projection.weight, projection.bias, keys.key, keys.value, v.weight, mask=mask, scale=self.scale,
                activation=self.activation, negative_slope=self.negative_slope, return_weights=need_weights,
                prepared=keys.exponentials, backend=self.backend,
            )  # fmt: skip
            if out is not None:
                return out
        return super()._project_and_attend(query, keys, mask, need_weights)

    def _attend(
        self, q: Tensor, keys: PreparedKeys, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        v = self.v
        if runs_plain("additive_attention", self.backend, q, {"v": reason_not_a_row(v)}):
            return super()._attend(q, keys, mask, need_weights)
        recompute_weights(v)
        out = HF.additive_attention(
            q, keys.key, keys.value, v.weight[0], mask=mask, scale=self.scale,
            activation=self.activation, negative_slope=self.negative_slope,
            dropout_p=self.dropout if self.training else 0.0, return_weights=need_weights,
            prepared=getattr(keys, "exponentials", None), backend=self.backend,
        )  # fmt: skip
        return out if need_weights else (out, None)


def _are_as_they_stand(*parts: nn.Linear) -> bool:
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
