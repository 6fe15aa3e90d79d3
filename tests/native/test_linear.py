"""Products of few rows with a packed weight: PyTorch's `linear`, over odd sizes, dtypes and any number of threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hybridops import native
from tests import tolerances
from tests.problems import DTYPES

pytestmark = pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))


def problem(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, weight, bias; sums of order one."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,))
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x.to(dtype), (weight / max(1, inputs) ** 0.5).to(dtype), bias.to(dtype)


@given(
    rows=st.integers(0, 120),
    outputs=st.integers(0, 150),
    inputs=st.integers(0, 90),
    dtype=st.sampled_from(DTYPES),
    has_bias=st.booleans(),
    transposed=st.booleans(),
)
def test_parity(rows, outputs, inputs, dtype, has_bias, transposed):
    x, weight, bias = problem(rows, outputs, inputs, dtype)
    if transposed:  # of any strides
        weight = weight.T.contiguous().T
    bias = bias if has_bias else None
    got = native.linear.linear(x, native.linear.pack(weight), bias, outputs)
    assert got.dtype == dtype
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if dtype == torch.float64:
        torch.testing.assert_close(got, exact, **tolerances.FLOAT64)
    else:
        allowed = tolerances.allowed_error(F.linear(x, weight, bias), exact, dtype)
        assert tolerances.largest(got.double() - exact) <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_with_any_number_of_threads(dtype):
    x, weight, bias = problem(70, 300, 65, dtype)
    packed = native.linear.pack(weight)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(native.linear.linear(x, packed, bias, 300))
    torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], **tolerances.EXACT)


def test_packed_for_something_else_is_refused():
    """As many bytes, but of another dtype or shape."""
    x, weight, _ = problem(2, 64, 8, torch.float32)
    for other, name in ((weight.double()[:, :4], "dtype"), (torch.randn(128, 4), "sizes")):
        packed = native.linear.pack(other)
        assert len(packed) == len(native.linear.pack(weight)), name
        with pytest.raises(RuntimeError, match="packed must be packed for this instruction set, dtype and sizes"):
            native.linear.linear(x, packed, None, 64)
