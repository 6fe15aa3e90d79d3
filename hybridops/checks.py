"""Argument checks that modules and functions share. Each names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums and the cell state are kept in: float32 for half precision and float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


# Asked once, here: torch.compile of PyTorch 2.10 cannot trace the question. On other devices, "meta" among them, asking
# whether autocast is on raises.
_HAVE_AUTOCAST = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla")))


def autocast_is_on(x: Tensor) -> bool:
    """Of x's device."""
    device = x.device.type
    return device in _HAVE_AUTOCAST and torch.is_autocast_enabled(device)


def check_positive_int(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a positive int, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be a positive int, got {value}")
    return int(value)


def check_bool(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r} of type {type(value).__name__}")
    return value


def check_number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    number = isinstance(value, float) or (isinstance(value, Real) and not isinstance(value, bool))
    # a symbol of torch.compile takes no math.isfinite
    if number and -math.inf < value < math.inf and low <= value <= high:
        return float(value)
    expected = "a finite number" if math.isinf(high - low) else f"a number in [{low:g}, {high:g}]"
    if number:
        raise ValueError(f"{name} must be {expected}, got {value}")
    raise TypeError(f"{name} must be {expected}, got {value!r} of type {type(value).__name__}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_pair(name: str, states: Sequence[Tensor]) -> None:
    if not isinstance(states, (tuple, list)):
        raise TypeError(f"{name} must be a pair (h, c), got {type(states).__name__}")
    if len(states) != 2:
        raise ValueError(f"{name} must be a pair (h, c), got {len(states)} items")


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | str]) -> None:
    """A size given as an int must be met; one given as a letter may be anything: ("B", 3, "H", "W")."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {_spell(expected)}, got {type(tensor).__name__}")
    fits = tensor.dim() == len(expected)
    for size, got in zip(expected, tensor.shape, strict=False):
        fits = fits and (isinstance(size, str) or size == got)
    if not fits:
        raise ValueError(f"{name} must have shape {_spell(expected)}, got {_spell(tensor.shape)}")


def check_lengths(lengths: Tensor, x: Tensor) -> None:
    """One for each row of x."""
    check_shape("lengths", lengths, x.shape[:1])
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"lengths must be a tensor of integers, got {lengths.dtype}")
    if lengths.device != x.device:
        raise ValueError(f"lengths must be on the device of x, {x.device}, got {lengths.device}")


def _spell(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"
