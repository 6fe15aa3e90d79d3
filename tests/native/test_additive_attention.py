"""Attention as one op, on a GPU: the dispatcher's rules, CUDA graphs, memory; values are for tests/functional."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hybridops.functional as HF
from hybridops import native
from tests import tolerances
from tests.problems import DTYPES, assert_captured, attention_inputs, cast, fused_attention, with_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(native.unavailable_reason("cuda") is not None, reason=str(native.unavailable_reason("cuda"))),
]
# One block has all keys of its queries; they are shared out among blocks; nothing to do.
SIZES = [{"queries": 50}, {"queries": 1, "keys": 300}, {"queries": 20, "keys": 300}, {"batch": 0}, {"keys": 0}]


def inputs_on_gpu(dtype: torch.dtype = torch.float32, **sizes: int) -> dict[str, Tensor]:
    return cast(attention_inputs(score_bias=True, **sizes), dtype, "cuda")


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, sizes, need_weights):
    inputs = inputs_on_gpu(dtype, **sizes)
    bias = inputs["score_bias"].to(torch.float64 if dtype == torch.float64 else torch.float32)
    tensors = (*(inputs[name] for name in ("query", "key", "v", "value")), bias > 0, bias)
    op = torch.ops.hybridops.additive_attention_forward.default
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, (*tensors, 0.7, 0, 0.0, None, None, need_weights), test_utils=tests)


@pytest.mark.parametrize("sizes", SIZES[:3], ids=str)
def test_runs(sizes):
    """Same inputs, same bits, gradients included."""
    inputs = inputs_on_gpu(**sizes)
    want = with_gradients(fused_attention, inputs, backend="native")
    for _ in range(3):
        got = with_gradients(fused_attention, inputs, backend="native")
        torch.testing.assert_close(got, want, **tolerances.EXACT)


@pytest.mark.parametrize("sizes", SIZES[:3], ids=str)
def test_captured_in_a_cuda_graph(sizes):
    inputs = inputs_on_gpu(**sizes)
    assert_captured(HF.additive_attention, inputs, return_weights=True, backend="native")


def test_memory_without_weights():
    """Nothing of the size of the weights, which are sixteen times that of all else."""
    inputs = inputs_on_gpu(queries=1024, keys=1024, width=64, values=64)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    HF.additive_attention(**inputs | {"score_bias": None}, backend="native")
    assert torch.cuda.max_memory_allocated() - before < 2 * 1024 * 1024 * 4 / 2
