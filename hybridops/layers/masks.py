"""What padding is made of: nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops.checks import check_shape


def mask_padding(name: str, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """values (B, T, dim), with zeros where mask (B, T) is False, so that NaN there harms nothing; errors name both."""
    check_shape(name, values, ("B", "T", dim))
    if mask is None:
        return values
    check_shape(f"{name}_mask", mask, values.shape[:2])
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}_mask must be a boolean tensor (True = may be attended), got {mask.dtype}")
    return values.masked_fill(~mask[..., None], 0.0)
