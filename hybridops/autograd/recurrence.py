"""The backward of a convolutional recurrence over a sequence, written once for all cells: through time in chunks, and
what follows from the gradients of the pre-activations, da_x of W_ih * x and da_h of W_hh * h, batched over a chunk:

    dx = W_ihᵀ * da_x        dW_ih: of W_ih * x        dW_hh: of W_hh * h_{t-1}
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridops import flops
from hybridops.layouts import sequence_inside, sequence_outside

# The backward goes through the sequence in chunks of whole steps whose da has about so many values, so that it (and,
# where they are recomputed, the gates) exists for one chunk at a time. A chunk prepares the weights anew, which takes
# as long on a CPU as some 500 pixels do, whatever the channels; any other device must be filled by one. Weights packed
# once for all chunks would save at most 2.1 % of a backward in benchmarks/workloads.py ("kth", 3.5 ms in each of 10
# chunks of 151 ms, one thread of Zen 4 at 2aecea6), less than runs differ by: they are not handed on.
VALUES_PER_CHUNK_ON_CPU, VALUES_PER_CHUNK = 2**20, 2**26
PIXELS_PER_CHUNK_ON_CPU = 4096


def chunks(hs: Tensor, gates: int) -> Iterator[slice]:
    """The steps of hs (T,B,S*,H), the last first; `gates`: how many times H channels da has."""
    length = _steps_per_chunk(hs, gates)
    for end in range(len(hs), 0, -length):
        yield slice(max(0, end - length), end)


def _steps_per_chunk(hs: Tensor, gates: int) -> int:
    pixels = max(1, math.prod(hs.shape[1:-1]))
    values = gates * hs.shape[-1] * pixels
    if hs.device.type != "cpu":
        return max(1, VALUES_PER_CHUNK // values)
    return max(1, VALUES_PER_CHUNK_ON_CPU // values, PIXELS_PER_CHUNK_ON_CPU // pixels)


class Deferred:
    """dx, dW_ih and dW_hh, which chunks are added to; None where they are not needed."""

    def __init__(
        self,
        impl: Any,
        x: Tensor,  # (T,B,S*,C)
        h0: Tensor | None,  # (B,S*,H), None = zeros
        hs: Tensor,  # (T,B,S*,H)
        weights: tuple[Tensor, Tensor],  # w_ih (GH,C,K*), w_hh (GH,H,K*)
        needed: tuple[bool, bool, bool],  # dx, dW_ih, dW_hh
        acc: torch.dtype,
    ) -> None:
        self._impl, self._x, self._h0, self._hs, self._w_ih = impl, x, h0, hs, weights[0]
        need_x, *need_weights = needed
        self.dx = x.new_empty(x.shape) if need_x else None
        self.dw_ih, self.dw_hh = (
            torch.zeros_like(w, dtype=acc, memory_format=torch.contiguous_format) if need else None
            for w, need in zip(weights, need_weights, strict=True)
        )

    def add(self, steps: slice, da_x: Tensor, da_h: Tensor) -> None:
        """Of these steps; the two may be one tensor."""
        if self.dx is not None:
            self._impl.input_gradient(da_x, self._w_ih, self.dx[steps])
        for part, h in self._parts(steps):
            of_x, of_h = (da[part.start - steps.start : part.stop - steps.start] for da in (da_x, da_h))
            wanted = [(of_x, self._x[part], self.dw_ih), (of_h, h, self.dw_hh)]
            wanted = [each for each in wanted if each[1] is not None and each[2] is not None and each[0].numel()]
            if da_x is da_h and wanted:
                _, factors, dweights = zip(*wanted, strict=True)
                self._impl.weight_gradients(of_x, factors, dweights)
                continue
            for da, factor, dweight in wanted:
                self._impl.weight_gradients(da, [factor], [dweight])

    def _parts(self, steps: slice) -> list[tuple[slice, Tensor | None]]:
        """Steps, and h one step earlier, which W_hh is beside."""
        if steps.start:
            return [(steps, self._hs[steps.start - 1 : steps.stop - 1])]
        first = (slice(0, 1), None if self._h0 is None else self._h0[None])
        return [first, (slice(1, steps.stop), self._hs[: steps.stop - 1])]


def add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


# ------------------------------------------------------------------------------------------ in a graph of torch.compile
# The loop over chunks is one op there. Traced, it would be unrolled, and anew for every number of steps and images.

_OP = "hybridops::recurrence_gradients"
torch.library.define(
    _OP, "(str family, str impl, Tensor?[] inputs, bool[] needed, Tensor?[] states, Tensor?[] grads) -> Tensor[]"
)


def gradients_as_one_op(
    family: str,  # name of the module whose `gradients` it is
    impl: Any,
    inputs: Sequence[Tensor | None],  # x (B,T,C,S*) first
    needed: Sequence[bool],
    states: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """`family.gradients(impl, inputs, needed, states, grads)`"""
    op = torch.ops.hybridops.recurrence_gradients.default
    found = iter(op(family, impl.__name__, inputs, needed, states, grads))
    return tuple(next(found) if need else None for need in needed)


@torch.library.impl(_OP, "CompositeExplicitAutograd")
def _(family: str, impl: str, inputs: list[Any], needed: list[bool], states: list[Any], grads: list[Any]) -> Any:
    """The gradients that are needed; contiguous, but for dx, which is as `gradients` makes it."""
    dx, *others = sys.modules[family].gradients(sys.modules[impl], inputs, needed, states, grads)
    return [grad for grad in (dx, *(g if g is None else g.contiguous() for g in others)) if grad is not None]


flops.register(torch.ops.hybridops.recurrence_gradients, flops.recurrence_gradients)


@torch.library.register_fake(_OP)
def _(family: str, impl: str, inputs: list[Any], needed: list[bool], states: list[Any], grads: list[Any]) -> Any:
    x, *others = inputs
    wanted = [t for t, need in zip(others, needed[1:], strict=True) if need]
    of_others = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in wanted]
    dx = [sequence_outside(x.new_empty(sequence_inside(x).shape), x.dim() - 3)] if needed[0] else []
    return [*dx, *of_others]
