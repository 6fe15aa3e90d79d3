"""Argument checks that modules and functions share, and what arguments may be. Each check names the argument, what came
and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import overload

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = ("tanh", "relu", "leaky_relu")  # by number in the compiled ops
SPATIAL_NAMES = {1: ("W",), 2: ("H", "W"), 3: ("D", "H", "W")}


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


def check_pair(name: str, states: object) -> None:
    if not isinstance(states, (tuple, list)):
        raise TypeError(f"{name} must be a pair (h, c), got {type(states).__name__}")
    if len(states) != 2:
        raise ValueError(f"{name} must be a pair (h, c), got {len(states)} items")


def check_shape(name: str, tensor: object, expected: Sequence[int | str]) -> None:
    """A size given as an int must be met; one given as a letter may be anything: ("B", 3, "H", "W")."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {_spell(expected)}, got {type(tensor).__name__}")
    fits = tensor.dim() == len(expected)
    for size, got in zip(expected, tensor.shape, strict=False):
        fits = fits and (isinstance(size, str) or size == got)
    if not fits:
        raise ValueError(f"{name} must have shape {_spell(expected)}, got {_spell(tensor.shape)}")


def check_dtypes(**tensors: Tensor | None) -> None:
    """All floating, of the dtype and on the device of the first, which is not None."""
    (name, first), *others = tensors.items()
    assert first is not None
    if first.dtype not in DTYPES:
        raise TypeError(f"{name} must be one of {', '.join(map(str, DTYPES))}, got {first.dtype}")
    for other, tensor in others:
        if tensor is not None and (tensor.dtype, tensor.device) != (first.dtype, first.device):
            check_like(other, tensor, first, like_name=name)


def check_like(name: str, tensor: Tensor, like: Tensor, *, dtype: bool = True, like_name: str = "the others") -> None:
    if dtype and tensor.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {like_name}, {like.dtype}, got {tensor.dtype}")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, got {tensor.device}")


def check_broadcastable(
    name: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...], like_name: str = "query"
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor broadcastable to {shape}, got {type(tensor).__name__}")
    check_like(name, tensor, like, dtype=False, like_name=like_name)
    sizes = zip(reversed(tensor.shape), reversed(shape), strict=False)
    if tensor.dim() > len(shape) or any(got not in (1, want) for got, want in sizes):
        raise ValueError(f"{name} must be broadcastable to {shape}, got {tuple(tensor.shape)}")


@overload
def broadcast_mask(mask: Tensor, batch: int, queries: int | None, keys: int) -> Tensor: ...
@overload
def broadcast_mask(mask: None, batch: int, queries: int | None, keys: int) -> None: ...
@overload
def broadcast_mask(mask: Tensor | None, batch: int, queries: int | None, keys: int) -> Tensor | None: ...
def broadcast_mask(mask: Tensor | None, batch: int, queries: int | None, keys: int) -> Tensor | None:
    """A view of the mask with three dimensions, broadcastable to (batch, queries, keys); queries None: any number.

    Two dimensions are (B, T): padding is by far the most common mask.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        hint = (
            "; what is added to scores is `score_bias`" if isinstance(mask, Tensor) and mask.is_floating_point() else ""
        )
        raise TypeError(f"mask must be a boolean tensor (True = may be attended), got {came}{hint}")
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


def check_lengths(lengths: Tensor, x: Tensor) -> None:
    """One for each row of x."""
    check_shape("lengths", lengths, x.shape[:1])
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"lengths must be a tensor of integers, got {lengths.dtype}")
    if lengths.device != x.device:
        raise ValueError(f"lengths must be on the device of x, {x.device}, got {lengths.device}")


def _spell(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"
