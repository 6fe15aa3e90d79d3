"""Products of few rows, without gradients, with a weight that is packed once: what decoding does at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hybridops import autograd, native
from hybridops.backends import named
from hybridops.checks import DTYPES, autocast_is_on
from hybridops.formulas import attention_decoder as formulas


class PackedLinear(NamedTuple):
    """What `pack_linear` gave; a copy, which does not see that the weight changes."""

    packed: Tensor
    bias: Tensor | None  # (N)
    outputs: int
    inputs: int
    dtype: torch.dtype


def pack_linear(weight: Tensor, bias: Tensor | None, *, backend: str | None) -> PackedLinear | None:
    """Of a weight (N, K); None where nothing compiled takes it, or there is more to do (gradients, a transform)."""
    if not may_be_packed(weight) or weight.dtype not in DTYPES or named(backend) not in (None, "native"):
        return None
    if bias is not None and (bias.dtype, bias.device) != (weight.dtype, weight.device):
        return None
    bias = None if bias is None else bias.detach().clone()
    outputs, inputs = weight.shape
    return PackedLinear(native.linear.pack(weight), bias, outputs, inputs, weight.dtype)


def linear_packed(x: Tensor, weight: PackedLinear) -> Tensor | None:
    """x (M, K) -> (M, N); None where there is more to do than a product."""
    if not _takes(weight, x):
        return None
    autograd.refuse_forward_mode(x)
    return native.linear.linear(x, weight.packed, weight.bias, weight.outputs)


def likeliest_packed(x: Tensor, weight: PackedLinear, count: int) -> tuple[Tensor, Tensor] | None:
    """x (M, K) -> the `count` largest of log softmax of `linear_packed`, (M, count) in float32 or float64, the largest
    first, and where they are, int64; scores are never in memory. None as there, and where it takes longer than they do.
    """
    # A list is kept in order. By way of scores 10 of 10,000 outputs take 2.6 times as long, 100 take 1.4 times, 300
    # half as long; 32 of 1,000 take 1.2 times as long, 64 three quarters (2 cores of Zen 4; 320 rows, 128 inputs).
    if not _takes(weight, x) or count**2 > weight.outputs:
        return None
    autograd.refuse_forward_mode(x)
    return native.linear.likeliest(x, weight.packed, weight.bias, weight.outputs, count)


def _takes(weight: PackedLinear, x: Tensor) -> bool:
    return may_be_packed(x) and x.dim() == 2 and x.shape[1] == weight.inputs and x.dtype == weight.dtype


def step_map(backend: str | None) -> Callable[[Tensor], formulas.LinearMap]:
    """`formulas.attention_decoder.linear_map` for a loop over steps: packs the weight, where something compiled may."""

    def linear_map(weight: Tensor) -> formulas.LinearMap:
        if weight.dtype in (torch.float32, torch.float64):  # of half precision the product would be rounded
            packed = pack_linear(weight.contiguous(), None, backend=backend)
            if packed is not None:
                return lambda x: native.linear.linear(x.contiguous(), packed.packed, None, packed.outputs)
        return formulas.linear_map(weight)

    return linear_map


def may_be_packed(tensor: Tensor) -> bool:
    """Whether calls like this one may read what was packed, and need no gradient."""
    return (
        native.unavailable_reason() is None
        and tensor.device.type == "cpu"
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not (torch.is_grad_enabled() or torch.compiler.is_compiling() or autograd.under_transform())
        and not autocast_is_on(tensor)
    )
