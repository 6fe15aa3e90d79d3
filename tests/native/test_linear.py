"""Products of few rows with a packed weight: PyTorch's `linear`, over odd sizes, dtypes, any number of threads. And the
likeliest of a vocabulary, by such a product.
"""

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


# ---------------------------------------------------------------------------------------------------- likeliest


def likeliest(x, weight, bias, count) -> tuple[torch.Tensor, torch.Tensor]:
    return native.linear.likeliest(x, native.linear.pack(weight), bias, len(weight), count)


@given(
    rows=st.integers(0, 120),
    outputs=st.integers(1, 300),
    inputs=st.integers(0, 90),
    count=st.integers(0, 20),
    dtype=st.sampled_from(DTYPES),
    has_bias=st.booleans(),
)
def test_likeliest(rows, outputs, inputs, count, dtype, has_bias):
    """Of the numbers that are given, in float64; they are not rounded to half precision on the way."""
    x, weight, bias = problem(rows, outputs, inputs, dtype)
    bias, count = bias if has_bias else None, min(count, outputs)
    values, indices = likeliest(x, weight, bias, count)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).log_softmax(1)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close = tolerances.FLOAT64 if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(values.double(), exact.topk(count).values, **close)
    torch.testing.assert_close(exact.gather(1, indices), values.double(), **close)
    assert all(len(set(row)) == count for row in indices.tolist())


@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_likeliest_has_the_same_bits_with_any_number_of_threads(dtype, count):
    """Also where many are equal: the first of them comes first."""
    x, weight, bias = problem(70, 300, 65, dtype)
    weight, bias = weight[torch.arange(300) // 3], bias[torch.arange(300) // 3]
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(likeliest(x, weight, bias, count))
    torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], **tolerances.EXACT)
    values, indices = results[0]
    equal = values[:, 1:] == values[:, :-1]
    assert (indices[:, 1:] > indices[:, :-1])[equal].all()
    assert (indices[:, 0] % 3 == 0).all()


@pytest.mark.parametrize("outputs", [5, 64, 200])
def test_likeliest_of_what_is_not_finite(outputs):
    """NaN and inf make a row NaN, as in log_softmax; what is -inf is never likely, and comes last, in order."""
    bias = torch.zeros(3, outputs)
    bias[0] = -torch.inf
    bias[0, 3], bias[0, 1] = 2.0, 1.0
    bias[1, 4], bias[2, 2] = torch.nan, torch.inf
    x, weight = torch.zeros(1, 2), torch.zeros(outputs, 2)
    values, indices = likeliest(x, weight, bias[0], 4)
    torch.testing.assert_close(values[0, :2], torch.tensor([2.0, 1.0]).log_softmax(0))
    assert values[0, 2:].tolist() == [-torch.inf] * 2
    assert indices[0].tolist() == [3, 1, 0, 2]
    for row in (*bias[1:], torch.full((outputs,), -torch.inf)):
        assert row.log_softmax(0).isnan().all()
        values, indices = likeliest(x, weight, row, 4)
        assert values.isnan().all()
        assert len(set(indices[0].tolist()) & set(range(outputs))) == 4


@pytest.mark.parametrize("count", [-1, 6])
def test_likeliest_of_more_than_there_are(count):
    x, weight, _ = problem(2, 5, 8, torch.float32)
    with pytest.raises(RuntimeError, match=f"count must be from 0 to the number of outputs, got {count}"):
        likeliest(x, weight, None, count)
