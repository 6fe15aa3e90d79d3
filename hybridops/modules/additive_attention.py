"""FusedConcatAttention and FusedAdditiveAttention: the plain modules' parameters and calls on fused functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.modules.parts import are_plain, plain_is_faster, reason_not_plain, recompute_weights
from hybridops.reference.additive_attention import AdditiveAttention, ConcatAttention, PreparedKeys, masked_softmax

_LINEAR = (nn.Linear,)


@dataclass(frozen=True, eq=False)
class FusedPreparedKeys(PreparedKeys):
    """PreparedKeys with what else the back end computes once of the keys, where it has a use for it."""

    exponentials: HF.PreparedExponentials | None = None


class FusedConcatAttention(ConcatAttention):
    __doc__ = f"""{ConcatAttention.__doc__}
    Fused: W [hidden; encoder_outputs] is taken apart into a query and keys, scored by `functional.additive_scores`.
    `backend` (keyword) names a back end, None takes the fastest. Where `attn` or `v` is more than a linear map (another
    class, hooks, ...), the plain forward runs. Where one encoder output serves many steps,
    `FusedAdditiveAttention.prepare` saves projecting it at each.
    """

    backend: str | None = None  # a class attribute too: `fuse` makes this class of modules whose __init__ knew none

    def __init__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = backend

    def _weights(self, hidden: Tensor, encoder_outputs: Tensor, mask: Tensor | None) -> Tensor:
        attn, v = self.attn, self.v
        if not are_plain(self.backend, _LINEAR, attn=attn, v=v) or not _is_one_row(v):
            return super()._weights(hidden, encoder_outputs, mask)
        if plain_is_faster("additive_attention", self.backend, hidden):
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

    def __init__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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
        if not are_plain(self.backend, _LINEAR, v=v) or not _is_one_row(v):
            return super()._attend(q, keys, mask, need_weights)
        if plain_is_faster("additive_attention", self.backend, q):
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


def _is_one_row(v: nn.Linear) -> bool:
    """Whether v·x is all that it computes, as it was made."""
    return v.bias is None and v.weight.shape[0] == 1
