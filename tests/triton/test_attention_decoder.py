"""Triton's attention decoder in the interpreter, against a loop over PyTorch's own cells."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests import tolerances
from tests.decoder_problems import (
    CELLS,
    LENGTHS,
    MASK,
    QUERIES,
    VARIANTS,
    assert_decoder_captured,
    assert_decoder_parity,
    decoder_inputs,
    fused_decoder,
    plain_decoder,
    problem,
)
from tests.problems import DTYPES, cast, with_gradients

pytest.importorskip("triton")
from hybridops.triton import attention_decoder_steps
from hybridops.triton.launch import Config

interpreted = pytest.mark.interpreted
cells = pytest.mark.parametrize("cell", CELLS)
queries = pytest.mark.parametrize("query", QUERIES)


def check(inputs, options, dtype=torch.float64, device="cpu") -> None:
    assert_decoder_parity(
        partial(plain_decoder, **options), fused_decoder, inputs, dtype, device, backend="triton", **options
    )


@interpreted
@cells
@queries
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(cell, query, variant):
    check(*problem(cell, query, variant, steps=3))


@interpreted
@cells
@queries
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float64])
def test_dtypes(cell, query, dtype):
    """Without kinks, on the other side of which rounding puts some."""
    inputs = decoder_inputs(cell=cell, query=query, gate=True, score_bias=True)
    check(inputs, {"cell": cell, "query": query, "mask": MASK, "lengths": LENGTHS}, dtype)


@interpreted
@cells
@queries
@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 1, "steps": 1, "keys": 1, "inputs": 1, "hidden": 1, "width": 1, "values": 1},
        {"batch": 2, "steps": 2, "keys": 600, "hidden": 3, "width": 2, "values": 70},
        {"batch": 5, "steps": 2, "keys": 3, "hidden": 130, "width": 66, "values": 2},
    ],
    ids=["one of everything", "long", "wide"],
)
def test_sizes(cell, query, sizes):
    """Rows longer than a block of keys, more elements than a block has, and blocks that end within a row."""
    check(decoder_inputs(cell=cell, query=query, gate=True, **sizes), {"cell": cell, "query": query})


@interpreted
@cells
@queries
@pytest.mark.parametrize("empty", ["batch", "keys", "inputs", "width", "values"])
def test_empty(cell, query, empty):
    check(decoder_inputs(cell=cell, query=query, gate=True, steps=2, **{empty: 0}), {"cell": cell, "query": query})


@interpreted
@cells
@queries
def test_blocks_of_any_size(monkeypatch, cell, query):
    """As if there were many programs; the bits are the same."""
    inputs = cast(decoder_inputs(cell=cell, query=query, gate=True), torch.float32)
    options = {"cell": cell, "query": query, "mask": MASK, "lengths": LENGTHS, "backend": "triton"}
    want = with_gradients(fused_decoder, inputs, **options)
    monkeypatch.setattr(attention_decoder_steps, "POINTWISE", Config({"BLOCK": 4}, num_warps=1))
    torch.testing.assert_close(with_gradients(fused_decoder, inputs, **options), want, **tolerances.EXACT)


@interpreted
@cells
def test_no_gradient_comes_from_behind_a_mask(cell):
    """Also where the loss has an infinite derivative there."""
    inputs = cast(decoder_inputs(cell=cell), torch.float64)
    leaves = {name: t.requires_grad_() for name, t in inputs.items() if t is not None}
    mask = MASK.clone()
    mask[1, 0] = True
    results = fused_decoder(**inputs, cell=cell, mask=mask, backend="triton")
    grads = torch.autograd.grad(results["weights"].sqrt().sum(), list(leaves.values()), materialize_grads=True)
    assert all(grad.isfinite().all() for grad in grads)
    grad = dict(zip(leaves, grads, strict=True))["key"]
    assert not grad[~mask].any()
    assert grad[0].any()


@pytest.mark.gpu
@cells
@queries
def test_captured_in_a_cuda_graph(cell, query):
    assert_decoder_captured(cell, query, "triton")
