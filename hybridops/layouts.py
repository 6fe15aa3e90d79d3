"""The layout of images. Outside, channels stand before space, and the batch first, as everywhere in PyTorch. Inside,
from autograd down, time comes first and channels last, and one spatial dimension is two, of one row. All are views.
"""

from __future__ import annotations

from torch import Tensor


def sequence_inside(x: Tensor) -> Tensor:
    """(B,T,C,S*) -> (T,B,S*,C)"""
    return image_inside(x.transpose(0, 1), channels=2)


def sequence_outside(x: Tensor, spatial_dims: int) -> Tensor:
    """(T,B,S*,C) -> (B,T,C,S*)"""
    return image_outside(x, spatial_dims, channels=2).transpose(0, 1)


def image_inside(x: Tensor, channels: int = 1) -> Tensor:
    """(B,C,S*) -> (B,S*,C), and (3,C,S*) -> (3,S*,C); `channels`: the dimension they are."""
    if x.dim() == channels + 2:
        x = x.unsqueeze(channels + 1)
    return x.movedim(channels, -1)


def image_outside(x: Tensor, spatial_dims: int, channels: int = 1) -> Tensor:
    """(B,S*,C) -> (B,C,S*)"""
    x = x.movedim(-1, channels)
    return x.squeeze(channels + 1) if spatial_dims == 1 else x


def weight_inside(weight: Tensor) -> Tensor:
    """(4H,C,K) -> (4H,C,1,K); with more dimensions as it is."""
    return weight.unsqueeze(2) if weight.dim() == 3 else weight
