"""csrc/math/additive_score.h: the activations with their slopes against PyTorch, and sums of quotients, exactly."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tolerances
from tests.math import units

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
SLOPE = 0.3


def arguments(dtype: torch.dtype) -> torch.Tensor:
    """Both signs, the kink, subnormal numbers, infinities and NaN."""
    info = torch.finfo(dtype)
    sizes = torch.logspace(-30, 30, 1001, dtype=dtype)
    special = torch.tensor([0.0, info.tiny * info.eps, info.tiny, info.max, torch.inf, torch.nan], dtype=dtype)
    numbers = torch.cat((special, sizes))
    return torch.cat((numbers, -numbers))


def value_and_slope(function, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = z.clone().requires_grad_()
    value = function(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


@DTYPES
@pytest.mark.parametrize("slope", [SLOPE, 0.0, -0.5, 1.0])
def test_leaky_relu(numbers, dtype, slope):
    """To the bit: value and slope, at the kink and for NaN too, and 0 times inf is NaN."""
    z = arguments(dtype)
    got = numbers.activation_leaky_relu(z.numpy(), negative_slope=slope)
    expected = value_and_slope(partial(torch.nn.functional.leaky_relu, negative_slope=slope), z)
    for result, want in zip(got, expected, strict=True):
        np.testing.assert_array_equal(result, want.numpy())


@DTYPES
def test_relu(numbers, dtype):
    z = arguments(dtype)
    got = numbers.activation_relu(z.numpy())
    for result, want in zip(got, value_and_slope(torch.relu, z), strict=True):
        np.testing.assert_array_equal(result, want.numpy())


@DTYPES
def test_tanh(numbers, dtype):
    """The slope is 1 - value^2 of the value that it is given, to half a unit of each of its two roundings."""
    z = arguments(dtype).numpy()
    value, slope = numbers.activation_tanh(z)
    np.testing.assert_array_equal(value, numbers.tanh(z))
    known = ~np.isnan(value)
    np.testing.assert_array_equal(np.isnan(slope), ~known)
    wide = value[known].astype(units.wider(value.dtype.type))
    error = np.abs(slope[known] - (1 - wide**2))
    assert error.max() <= torch.finfo(dtype).eps
    assert known.sum() == z.size - 2


@DTYPES
def test_slope_of_tanh(numbers, dtype):
    """That of autograd: a value that is off by three units, twice, and two roundings."""
    z = torch.linspace(-12, 12, 10_001, dtype=dtype)
    _, slope = numbers.activation_tanh(z.numpy())
    _, expected = value_and_slope(torch.tanh, z.double())
    allowed = (2 * tolerances.NONLINEARITY_ULPS + 1) * torch.finfo(dtype).eps
    assert (torch.from_numpy(slope).double() - expected).abs().max() <= allowed


SMALL = st.integers(-1000, 1000)
NONZERO = SMALL.filter(bool)


@given(st.lists(st.tuples(SMALL, NONZERO), min_size=4, max_size=4))
def test_sum_of_quotients(numbers, terms):
    """Of integers so small that float64 has every number on the way: exactly."""
    flat = [np.array([number], np.float64) for term in terms for number in term]
    numerator, denominator = (Fraction(result.item()) for result in numbers.sum_of_quotients(*flat))
    assert numerator / denominator == sum(Fraction(v, x) for v, x in terms)


@DTYPES
def test_sum_of_quotients_rounded(numbers, dtype):
    """Positive terms: nothing cancels, and a product or a sum costs half a unit. Four lead to the numerator, two to the
    denominator.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(8, 1003, dtype=torch.float64, generator=generator).add(0.1).to(dtype)
    numerator, denominator = numbers.sum_of_quotients(*drawn.numpy())
    wide = drawn.numpy().astype(units.wider(numerator.dtype.type))
    expected = sum(wide[k] / wide[k + 1] for k in range(0, 8, 2))
    relative = np.abs(numerator.astype(wide.dtype) / denominator / expected - 1)
    assert relative.max() <= (4 + 2) / 2 * torch.finfo(dtype).eps
