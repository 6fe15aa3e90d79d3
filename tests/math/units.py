"""Errors in units in the last place of the exact result, and how many of them are allowed."""

from __future__ import annotations

import numpy as np
import pytest

# Of e^x, as csrc/cpu/simd.h says, and of what docs/numerics.md says.
EXPONENTIAL, SIGMOID, TANH = 2.0, 3.0, 3.5

# Of 1/x by an approximation r to 2^-14 and a Newton step r (2 - x r): the product rounds by half a unit, 2 - x r by
# 2^-24 of the result, and 2^-28 remains. These are a whole unit and a sixteenth where 1/x is just below a power of two.
RECIPROCAL = 1.5625


def wider(dtype: type) -> type:
    """What the functions are computed in to compare with: eleven bits more at least."""
    if dtype == np.float32:
        return np.float64
    if np.finfo(np.longdouble).nmant < np.finfo(np.float64).nmant + 11:
        pytest.skip("no type wider than float64 here")
    return np.longdouble


def units(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Errors of finite numbers, in units of the last place of the exact ones rounded."""
    unit = np.spacing(np.abs(exact.astype(got.dtype)))
    return np.abs(got.astype(exact.dtype) - exact) / unit.astype(exact.dtype)
