"""Modules in other dtypes and under autocast; the cell state stays in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from tests import tolerances
from tests.modules.agreement import assert_agree, examples, pair, results

kinds = pytest.mark.parametrize("kind", examples())
CELL_STATE = {"ConvLSTMCell": 1, "ConvLSTM": 2, "AttentionDecoder": 2}  # where it stands among the outputs


def convert(tensors, dtype: torch.dtype):
    return tree_map_only(Tensor, lambda t: t.detach().to(dtype) if t.is_floating_point() else t, tensors)


def judged(kind: str, dtype: torch.dtype, autocast: bool):
    """Outputs and gradients of the fused module, all of them held to twice the plain module's error."""
    arguments, inputs = examples()[kind]
    stored = torch.float32 if autocast else dtype
    plain, fused = (module.to(stored) for module in pair(kind, **arguments))
    inputs = convert(inputs, stored)
    exact = results(copy.deepcopy(plain).double(), convert(inputs, torch.float64))
    with torch.autocast("cpu", dtype, enabled=autocast):
        baseline, got = (results(module, convert(inputs, stored)) for module in (plain, fused))
    for tensors in zip(*map(tree_leaves, (got, baseline, exact)), strict=True):
        error = tolerances.largest(tensors[0].double() - tensors[2])
        assert error <= tolerances.allowed_error(*tensors[1:], dtype)
    return got, inputs


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(kind, dtype):
    (outputs, grads), _ = judged(kind, dtype, autocast=False)
    assert {out.dtype for out in outputs} == {dtype}
    assert {grad.dtype for grad in grads.values()} == {dtype}


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(kind, dtype):
    """Parameters and inputs are float32; the work is done in half precision."""
    (outputs, grads), _ = judged(kind, dtype, autocast=True)
    cell = CELL_STATE.get(kind)
    assert [out.dtype for out in outputs] == [torch.float32 if i == cell else dtype for i in range(len(outputs))]
    assert {grad.dtype for grad in grads.values()} == {torch.float32}


@kinds
def test_autocast_leaves_float64_alone(kind):
    arguments, inputs = examples()[kind]
    _, fused = pair(kind, **arguments)
    want = results(fused, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(results(fused, inputs), want, **tolerances.FLOAT64)


def test_autocast_between_prepare_and_forward():
    """Keys prepared in float32 serve a decoder that runs in half precision."""
    arguments, (query, key, value, mask) = examples()["AdditiveAttention"]
    plain, fused = (module.float() for module in pair("AdditiveAttention", **arguments))
    query, key, value = convert((query, key, value), torch.float32)
    exact = copy.deepcopy(plain).double()(query.double(), key.double(), value.double(), mask)
    prepared = fused.prepare(key, value, mask)
    with torch.autocast("cpu", torch.bfloat16):
        got, baseline = fused(query, prepared), plain(query, key, value, mask)
    for tensors in zip(got, baseline, exact, strict=True):
        error = tolerances.largest(tensors[0].double() - tensors[2])
        assert error <= tolerances.allowed_error(*tensors[1:], torch.bfloat16)


@kinds
@pytest.mark.parametrize("way", [lambda module: module.to(torch.float64), lambda module: module.float().double()])
def test_double(kind, way):
    arguments, inputs = examples()[kind]
    plain, fused = (way(module) for module in pair(kind, **arguments, dtype=torch.float32))
    assert_agree(plain, fused, *inputs)
