"""Keys behind a mask are not computed: on a CPU, where half of them are masked, the others are moved together."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridops import autograd

# Of all keys, at most; and queries, at least: where moving keys took less time than computing those behind the mask
# (sizes of benchmarks/workloads.py, 8 to 90 % of the keys, 1 to 100 queries, one thread of Zen 4).
MOST_ATTENDED, FEWEST_QUERIES = 0.5, 8


class AttendedKeys(NamedTuple):
    """Where the keys are that may be attended: T' of each batch entry, as many as the entry with the most has."""

    rows: Tensor  # (B·T'), of the keys (B·T, ·): those that may be attended in their order, then others up to T'
    mask: Tensor  # (B, 1, T'), those that may be attended
    keys: int  # T

    def of_keys(self, x: Tensor) -> Tensor:
        """(B, T', C) of (B, T, C)."""
        return x.flatten(0, 1).index_select(0, self.rows).view(x.shape[0], -1, x.shape[2])

    def of_pairs(self, x: Tensor) -> Tensor:
        """(B, S, T') of what can be broadcast to (B, S, T)."""
        batch, _, attended = self.mask.shape
        x = x.expand(batch, x.shape[-2], self.keys)
        return x.gather(2, self._places().expand(-1, x.shape[1], attended))

    def all_pairs(self, x: Tensor) -> Tensor:
        """(B, S, T) of (B, S, T'), zeros for the other keys."""
        return x.new_zeros(*x.shape[:2], self.keys).scatter(2, self._places().expand(x.shape), x)

    def _places(self) -> Tensor:
        return (self.rows.view_as(self.mask)) % self.keys


def attended_keys(
    impl: Any, mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor, *others: Tensor
) -> AttendedKeys | None:
    """None where all keys are to be computed: there is no mask (B, 1, T), or it leaves most of them, or something that
    meets in the scores and in the context is not finite, since its product with zero is NaN.
    """
    if mask is None or mask.shape[1] != 1 or query.shape[1] < FEWEST_QUERIES:
        return None
    if not (getattr(impl, "takes_attended_keys", False) and _may_look_at(mask)):
        return None
    batch, keys, _ = key.shape
    counts = mask.expand(batch, 1, keys).sum(2, keepdim=True)
    most = int(counts.max()) if batch else 0
    if not 0 < most <= MOST_ATTENDED * keys or not all(_is_finite(t) for t in (query, key, value, *others)):
        return None
    places = mask.expand(batch, 1, keys).to(torch.uint8).argsort(dim=2, descending=True, stable=True)[..., :most]
    rows = places + keys * torch.arange(batch).view(-1, 1, 1)
    return AttendedKeys(rows.flatten(), torch.arange(most) < counts, keys)


def _may_look_at(mask: Tensor) -> bool:
    """Whether what is in the mask is known here, and reading it waits for no device."""
    captured = (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )
    return mask.device.type == "cpu" and type(mask) is Tensor and not (captured or autograd.under_transform())


def _is_finite(x: Tensor) -> bool:
    return x.numel() == 0 or all(bool(t.isfinite()) for t in x.detach().aminmax())
