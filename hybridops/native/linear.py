"""Products of few rows with a weight that is packed once: csrc/cpu/linear.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops.native.library import call


def pack(weight: Tensor) -> Tensor:
    """The weight (N,K) as `linear` reads it; a copy, which does not see that the weight changes."""
    return call(torch.ops.hybridops.linear_pack.default, weight.detach())


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """x (M,K) -> (M,N)"""
    return call(torch.ops.hybridops.linear_packed.default, x, packed, bias, outputs)


def likeliest(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of log softmax of `linear`, (M,count) acc, the largest first, and where they are, int64."""
    return call(torch.ops.hybridops.linear_likeliest.default, x, packed, bias, outputs, count)
