"""FusedConcatAttention and FusedAdditiveAttention: the plain modules' parameters and calls on fused functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

import hybridops.functional as HF
from hybridops.modules.decoding import DecodingStep, prepare_step
from hybridops.modules.recomputed import recompute_weights
from hybridops.reference.additive_attention import AdditiveAttention, ConcatAttention, PreparedKeys, masked_softmax


@dataclass(frozen=True, eq=False)
class FusedPreparedKeys(PreparedKeys):
    """PreparedKeys with what else the back end computes once, where it has a use for it."""

    exponentials: HF.PreparedExponentials | None = None
    step: DecodingStep | None = None


class FusedConcatAttention(ConcatAttention):
    __doc__ = f"""{ConcatAttention.__doc__}
    Fused: W [hidden; encoder_outputs] is taken apart into a query and keys, scored by `functional.additive_scores`.
    `backend` (keyword) names a back end, None takes the fastest. Where one encoder output serves many steps,
    `FusedAdditiveAttention.prepare` saves projecting it at each.
    """

    backend: str | None = None  # a class attribute too: `fuse` makes this class of modules whose __init__ knew none

    def __init__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = backend

    def _weights(self, hidden: Tensor, encoder_outputs: Tensor, mask: Tensor | None) -> Tensor:
        recompute_weights(self.attn, self.v)
        w_query, w_key = self.attn.weight.split(self.hidden_dim, dim=1)
        query = F.linear(hidden, w_query, self.attn.bias).unsqueeze(1)
        scores = HF.additive_scores(query, F.linear(encoder_outputs, w_key), self.v.weight[0], backend=self.backend)
        return masked_softmax(scores.squeeze(1), mask)


class FusedAdditiveAttention(AdditiveAttention):
    __doc__ = f"""{AdditiveAttention.__doc__}
    Fused: `functional.additive_attention` runs it, and no (B, S, T, A) tensor is made. `backend` (keyword) names a back
    end, None takes the fastest.
    """

    backend: str | None = None

    def __init__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = backend

    def prepare(self, key: Tensor, value: Tensor | None = None, mask: Tensor | None = None) -> PreparedKeys:
        """Project the keys and take their exponentials, once; `forward` takes the result in place of the three."""
        keys = self._project(key, value, mask)
        exponentials = HF.prepare_exponentials(keys.key, activation=self.activation, backend=self.backend)
        step = prepare_step(self, keys, exponentials and exponentials.tensors)
        return FusedPreparedKeys(keys.key, keys.value, keys.mask, exponentials, step)

    def forward(
        self,
        query: Tensor,
        key: Tensor | PreparedKeys,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(key, FusedPreparedKeys) and key.step is not None and value is None and mask is None:
            out = key.step(self, query, key, need_weights)
            if out is not None:
                return out
        return super().forward(query, key, value, mask, need_weights)

    def _attend(
        self, q: Tensor, keys: PreparedKeys, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        v = self.v
        recompute_weights(v)
        out = HF.additive_attention(
            q, keys.key, keys.value, v.weight[0], mask=mask, scale=self.scale,
            activation=self.activation, negative_slope=self.negative_slope,
            dropout_p=self.dropout if self.training else 0.0, return_weights=need_weights,
            prepared=getattr(keys, "exponentials", None), backend=self.backend,
        )  # fmt: skip
        return out if need_weights else (out, None)
