"""exp, sigmoid, tanh and the reciprocal of csrc/cpu/simd.h on the vectors of each instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from tests.math import units

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# The largest result that is not subnormal has this logarithm; so has 1/it.
SMALLEST = {np.float32: 87.3, np.float64: 708.0}


def sweep(dtype: type, largest: float) -> np.ndarray:
    """Numbers of both signs up to `largest`: zeros, subnormal ones, every size alike, and every distance alike."""
    integer = {np.float32: np.int32, np.float64: np.int64}[dtype]
    count = 800_001 if dtype == np.float32 else 200_001
    last = int(np.array(largest, dtype).view(integer))
    every_size = np.arange(0, last, last // count, dtype=integer).view(dtype)
    every_distance = np.linspace(0, largest, count, dtype=dtype)
    info = np.finfo(dtype)
    special = np.array([0, info.smallest_subnormal, info.tiny, largest], dtype)
    numbers = np.concatenate([special, every_size, every_distance])
    return np.concatenate([numbers, -numbers])


def in_wider(x: np.ndarray) -> np.ndarray:
    return x.astype(units.wider(x.dtype.type))


def exact_sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-in_wider(x)))


@DTYPES
def test_sigmoid(numbers, dtype):
    """Measured in float32, over every number: 2.44, portable, AVX2 and AVX-512. Beyond -87 it would be subnormal."""
    x = sweep(dtype, 100 if dtype == np.float32 else 800)
    got, exact = numbers.sigmoid(x), exact_sigmoid(x)
    tiny = np.finfo(dtype).tiny
    normal = exact >= tiny
    assert normal.any()
    assert units.units(got[normal], exact[normal]).max() <= units.SIGMOID
    assert np.abs(got[~normal] - exact[~normal]).max() < tiny
    assert got.min() >= 0
    assert got.max() == 1


@DTYPES
def test_tanh(numbers, dtype):
    """Measured in float32, over every number: 3.46 portable, 3.38 on AVX2 and AVX-512. It is over 3 for some 600, whose
    tanh is just below 1/8, 1/16, ..., 1/128, where a unit is the smallest part of it.
    """
    just_below = [np.arctanh(np.linspace(0.93, 1, 200_001)[:-1] * 2.0**-k) for k in range(3, 8)]
    worst = [0.06144123151898384, 0.060610003769397736, 0.007754853472511622, 0.007808170234846546]
    x = np.concatenate([sweep(dtype, 100), *just_below, worst]).astype(dtype)
    got = numbers.tanh(x)
    assert units.units(got, np.tanh(in_wider(x))).max() <= units.TANH
    assert np.abs(got).max() == 1


@DTYPES
def test_exp(numbers, dtype):
    """Measured in float32, over every number: 1.18 portable, 1.15 on AVX2 and AVX-512. Up to 2^127.5, 2^1023.5."""
    x = sweep(dtype, (np.finfo(dtype).maxexp - 0.5) * np.log(2))
    x = x[x >= -SMALLEST[dtype]]
    assert units.units(numbers.exp(x), np.exp(in_wider(x))).max() <= units.EXPONENTIAL


@DTYPES
def test_exp_of_less_stays_the_same(vectors, dtype):
    """A normal number, e^-87.3 or e^-708, and not zero."""
    x = np.array([-SMALLEST[dtype], -SMALLEST[dtype] - 1, -1e4, -np.finfo(dtype).max, -np.inf], dtype)
    got = vectors.exp(x)
    assert got[0] >= np.finfo(dtype).tiny
    np.testing.assert_array_equal(got, got[0])


@DTYPES
@pytest.mark.parametrize(("name", "factor"), [("exp_2x", 2), ("exp_minus_2x", -2)])
def test_exp_of_a_multiple(vectors, dtype, name, factor):
    x = sweep(dtype, SMALLEST[dtype] / 2)
    got = getattr(vectors, name)(x)
    assert units.units(got, np.exp(factor * in_wider(x))).max() <= units.EXPONENTIAL


@DTYPES
def test_reciprocal(vectors, dtype):
    """Of normal numbers with a reciprocal that is normal. Measured: 0.5, and 1.48 in float32 on AVX-512."""
    info = np.finfo(dtype)
    largest = 1 / info.tiny
    x = sweep(dtype, float(largest))
    x = x[np.abs(x) >= info.tiny]
    x = np.concatenate([x, np.linspace(1, 2, 400_001, dtype=dtype)])
    assert units.units(vectors.reciprocal(x), 1 / in_wider(x)).max() <= units.RECIPROCAL


@DTYPES
def test_limits(numbers, dtype):
    """NaN stays NaN, the infinities and what is as good as infinite give 0 and ±1, zeros 0, 1/2 and 1, exactly."""
    most, least = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    x = np.array([np.nan, np.inf, -np.inf, most, -most, 0.0, -0.0, least, -least], dtype)
    expected = {
        "sigmoid": [np.nan, 1, 0, 1, 0, 0.5, 0.5, 0.5, 0.5],
        "tanh": [np.nan, 1, -1, 1, -1, 0, 0, least, -least],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(numbers, name)(x), np.array(values, dtype))
    kept = np.array([0, 1, 3, 5, 6, 7, 8])  # exp of what is very negative: see above
    expected_exp = np.array([np.nan, np.inf, np.inf, 1, 1, 1, 1], dtype)
    np.testing.assert_array_equal(numbers.exp(x[kept]), expected_exp)


@DTYPES
def test_subnormal_arguments(numbers, dtype):
    """tanh x is x, e^x is 1, sigmoid x is 1/2: to the last bit."""
    x = np.geomspace(np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny, 1001, dtype=dtype)
    x = np.concatenate([x, -x])
    np.testing.assert_array_equal(numbers.tanh(x), x)
    np.testing.assert_array_equal(numbers.exp(x), np.ones_like(x))
    np.testing.assert_array_equal(numbers.sigmoid(x), np.full_like(x, 0.5))


@pytest.mark.parametrize("count", range(35))
def test_every_length(vectors, count):
    """What a lane gives does not depend on the lane, nor on its neighbours."""
    x = np.linspace(-3, 3, 35, dtype=np.float32)
    for name in ("exp", "sigmoid", "tanh", "reciprocal"):
        function = getattr(vectors, name)
        alone = np.concatenate([function(x[k : k + 1]) for k in range(count)] + [x[:0]])
        np.testing.assert_array_equal(function(x[:count]), alone)
