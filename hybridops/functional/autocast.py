"""Autocast of the public functions: casts are explicit, not left to the dispatcher: cell states stay float32."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridops.checks import (
    DTYPES,
    autocast_is_on,
)


def cast_by_autocast(*tensors: Tensor | None) -> Sequence[Any]:
    """Under autocast, the tensors as autocast would pass them to a convolution or a product."""
    first = tensors[0]
    assert first is not None
    if not autocast_is_on(first):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return [t if t is None or t.dtype not in DTYPES or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


_AS_IT_IS = contextlib.nullcontext()


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(x.device.type, enabled=False) if autocast_is_on(x) else _AS_IT_IS
