"""Inputs without a batch, which torch.nn's recurrent layers take: a batch of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

R = TypeVar("R")


def is_unbatched(x: object, dims: int) -> bool:
    """Whether x is a tensor of that many dimensions, one less than with a batch."""
    return isinstance(x, Tensor) and x.dim() == dims


def map_tensors(function: Callable[[Tensor], Tensor], parts: Any) -> Any:
    """The same of tensors in tuples and lists; anything else stays as it is."""
    if isinstance(parts, Tensor):
        return function(parts)
    return type(parts)(map_tensors(function, part) for part in parts) if isinstance(parts, (tuple, list)) else parts


def of_one(forward: Callable[..., R], *arguments: Any, **options: Any) -> R:
    """`forward` of a batch of one, whose dimension is the first of every tensor."""
    add = partial(map_tensors, lambda t: t[None])
    found: R = map_tensors(
        lambda t: t[0], forward(*map(add, arguments), **{name: add(each) for name, each in options.items()})
    )
    return found
