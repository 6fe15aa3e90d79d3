"""Attention in one kernel, called by its op: what tests/functional, which test_kernels.py runs, does not ask for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from hybridops.contract import Activation, AttentionInputs
from hybridops.formulas import additive_attention as formulas
from tests import tolerances
from tests.cuda_shim.test_shim import ORDERS
from tests.problems import DTYPES, attention_inputs

# All keys in a block; shared out among blocks; in stretches of a block.
SIZES = [{"queries": 20, "keys": 50}, {"queries": 3, "keys": 90}, {"batch": 128, "queries": 8, "keys": 130, "width": 1}]
PRECISIONS = (torch.float32, torch.float64)


@pytest.fixture
def op(shim):
    torch.ops.load_library(str(shim))
    return torch.ops.hybridops_shim.additive_attention_forward


def arguments(dtype: torch.dtype, **sizes: int) -> tuple[Tensor, ...]:
    """q, k, v, value, a mask with a row that may attend nothing, score_bias"""
    inputs = attention_inputs(score_bias=True, **sizes)
    bias = inputs["score_bias"].to(torch.promote_types(dtype, torch.float32))
    mask = torch.rand(bias.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[:1, :1] = False
    return *(inputs[name].to(dtype) for name in ("query", "key", "v", "value")), mask, bias


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_same_bits_in_any_order(op, monkeypatch, sizes):
    """... and those of the formula, to rounding; with the weights or without, the same context."""
    given = arguments(torch.float32, **sizes)
    results = []
    for order in ORDERS:
        monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)
        results.append(op(*given, 0.7, 0, 0.0, None, None, True))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], **tolerances.EXACT)
    context, none = op(*given, 0.7, 0, 0.0, None, None, False)
    assert none.numel() == 0
    torch.testing.assert_close(context, results[0][0], **tolerances.EXACT)
    plain, exact = (
        formulas.additive_attention_forward(AttentionInputs(*cast(given, dtype)), Activation("tanh", 0.0), 0.7)
        for dtype in PRECISIONS
    )
    for got, near, want in zip(results[0], plain, exact, strict=True):
        assert tolerances.largest(got - want) <= tolerances.allowed_error(near, want, torch.float32)


def cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    return [t if t.dtype == torch.bool else t.to(dtype) for t in tensors]


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_torch_compile_is_told(op, dtype, need_weights):
    given = (*arguments(dtype), 1.0, 0, 0.0, None, None, need_weights)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) if isinstance(t, Tensor) else t for t in given]
        told = torch.ops.hybridops.additive_attention_forward(*fakes)
    for fake, real in zip(told, op(*given), strict=True):
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
