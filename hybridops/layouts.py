"""The layout of images. Outside, channels stand before space, and the batch first, as everywhere in PyTorch. Inside,
from autograd down, time comes first and channels last, and one spatial dimension is two, of one row. All are views.
"""

from __future__ import annotations

from torch import Tensor


def sequence_inside(x: Tensor) -> Tensor:
    """(B,T,C,S*) -> (T,B,S*,C)"""
    inside = x.permute(1, 0, *range(3, x.dim()), 2)
    return inside.unsqueeze(2) if x.dim() == 4 else inside


def sequence_outside(x: Tensor, spatial_dims: int) -> Tensor:
    """(T,B,S*,C) -> (B,T,C,S*)"""
    x = x.squeeze(2) if spatial_dims == 1 else x
    return x.permute(1, 0, x.dim() - 1, *range(2, x.dim() - 1))


def image_inside(x: Tensor) -> Tensor:
    """(B,C,S*) -> (B,S*,C), and (3,C,S*) -> (3,S*,C)"""
    inside = x.permute(0, *range(2, x.dim()), 1)
    return inside.unsqueeze(1) if x.dim() == 3 else inside


def image_outside(x: Tensor, spatial_dims: int) -> Tensor:
    """(B,S*,C) -> (B,C,S*)"""
    x = x.squeeze(1) if spatial_dims == 1 else x
    return x.permute(0, x.dim() - 1, *range(1, x.dim() - 1))


def weight_inside(weight: Tensor) -> Tensor:
    """(4H,C,K) -> (4H,C,1,K); with more dimensions as it is."""
    return weight.unsqueeze(2) if weight.dim() == 3 else weight
