"""Gradients of keys and values that many calls of an attention share, as the steps of a decoder do.

Each call would make a (B,T,A) and a (B,T,D) of its own, for autograd to add up. Instead it leaves here what the sum is
made of, and returns none. The function that all of them depend on, which autograd runs after the last, gives the sum:
that of the value is one product for all calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SharedGradients:
    """What the calls of each backward pass that is under way have left."""

    def __init__(self) -> None:
        self._dkey: dict[int, Tensor] = {}  # by backward pass, (B,T,A)
        self._of_value: dict[int, list[tuple[Tensor, Tensor]]] = {}  # weights (B,S,T), gradient of context (B,S,D)

    @staticmethod
    def collects() -> bool:
        """Whether this is a backward pass that can be told from others."""
        return torch._C._current_graph_task_id() >= 0

    def add_key(self, dkey: Tensor) -> None:
        task = self._task()
        if task in self._dkey:
            self._dkey[task].add_(dkey)
        else:
            self._dkey[task] = dkey

    def add_value(self, weights: Tensor, grad_context: Tensor) -> None:
        self._of_value.setdefault(self._task(), []).append((weights, grad_context))

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """dkey, dvalue of this pass."""
        task = torch._C._current_graph_task_id()
        dkey, parts = self._dkey.pop(task, None), self._of_value.pop(task, None)
        if parts is None:
            return dkey, None
        weights, grad_context = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return dkey, torch.matmul(weights.transpose(1, 2), grad_context)

    def _task(self) -> int:
        task: int = torch._C._current_graph_task_id()
        if task not in self._dkey and task not in self._of_value:

            def forget() -> None:  # a pass that asks for other gradients takes nothing
                self._dkey.pop(task, None)
                self._of_value.pop(task, None)

            torch.autograd.Variable._execution_engine.queue_callback(forget)
        return task


class Share(torch.autograd.Function):
    """Key and value as they are; in the backward, what was left of their gradients joins what came by itself."""

    @staticmethod
    def forward(ctx: Any, gradients: SharedGradients, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        return key.view_as(key), value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        sums = (_sum(came, left) for came, left in zip(grads, ctx.gradients.take(), strict=True))
        return None, *sums


def _sum(came: Tensor | None, left: Tensor | None) -> Tensor | None:
    if came is None or left is None:
        return left if came is None else came
    return came + left
