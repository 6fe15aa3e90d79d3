"""Triton's additive attention in the interpreter: every configuration, every range of the factored tanh."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import hybridops.functional as HF
from tests import tolerances
from tests.problems import (
    ACTIVATIONS,
    DTYPES,
    SLOPE,
    assert_captured,
    assert_parity,
    attention_inputs,
    cast,
    far_apart,
    fused_attention,
    plain_attention,
    plain_scores,
    with_gradients,
)

pytest.importorskip("triton")
from hybridops.triton import additive_attention
from hybridops.triton.additive_scores_kernels import QUOTIENT_RANGE

interpreted = pytest.mark.interpreted
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
SIZES = {"batch": 1, "queries": 18, "keys": 35, "width": 10}  # more than a small block has, less than a large one


def check(dtype=torch.float64, activation="tanh", inputs=None, **options) -> None:
    options |= {"activation": activation}
    inputs = attention_inputs(**SIZES, score_bias=True) if inputs is None else inputs
    assert_parity(partial(plain_attention, **options), fused_attention, inputs, dtype, backend="triton", **options)


@interpreted
@activations
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, activation):
    mask = torch.rand(1, 18, 35, generator=torch.Generator().manual_seed(0)) > 0.3
    check(dtype, activation, mask=mask, scale=0.7)


@interpreted
@activations
@pytest.mark.parametrize("config", additive_attention.SCORES)
def test_blocks_of_pairs(monkeypatch, config, activation):
    monkeypatch.setattr(additive_attention, "_scores_config", lambda table, *_: table[config])
    check(torch.float32, activation, attention_inputs(queries=3, keys=66, width=9))


@interpreted
@activations
@pytest.mark.parametrize("programs", [0, 1 << 30], ids=["many rows", "few rows"])
def test_blocks_of_rows(monkeypatch, programs, activation):
    monkeypatch.setattr(additive_attention, "MIN_PROGRAMS_LARGE", programs)
    check(torch.float32, activation)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", ["merged", "paired", "single"])
@pytest.mark.parametrize("side", [0.999, 1.001], ids=["within", "beyond"])
def test_ranges(limit, side, dtype):
    """All channels of a row alike: the product of many factors is as large as the row's bound lets it be."""
    reach = 0.5 * side * getattr(QUOTIENT_RANGE[dtype], limit)
    edge = torch.linspace(-reach, reach, 21, dtype=torch.float64)[None, :, None].expand(1, 21, 9)
    check(dtype, inputs=attention_inputs(batch=1, queries=21, keys=21, width=9) | {"query": edge, "key": edge})


@interpreted
def test_large_v():
    """The numerators over shared denominators would overflow."""
    inputs = cast(attention_inputs(queries=3, keys=4, width=8), torch.float32)
    query, key, v = 5 * inputs["query"].sign(), 5 * inputs["key"].sign(), 1e12 * inputs["v"]
    scores = HF.additive_scores(query, key, v, backend="triton")
    exact = plain_scores(query.double(), key.double(), v.double())
    assert tolerances.largest(scores - exact) <= tolerances.SCORE * v.abs().sum()


@interpreted
@pytest.mark.parametrize("keys", [1, 600])
def test_long_rows(keys):
    """The softmax goes through a row in blocks."""
    mask = torch.rand(1, 2, keys, generator=torch.Generator().manual_seed(0)) > 0.5
    check(inputs=attention_inputs(batch=1, queries=2, keys=keys, width=3), mask=mask)


@interpreted
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("queries", [1, 3])
def test_shares_of_the_keys(monkeypatch, queries, splits):
    """Some rows find nothing to attend to in a share of the keys, one in none; there may be more shares than blocks."""
    monkeypatch.setattr(additive_attention, "_splits", lambda *_: splits)
    mask = torch.rand(3, queries, 70, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[0], mask[1, :, :35] = False, False
    inputs = attention_inputs(batch=3, queries=queries, keys=70, width=5, score_bias=True)
    check(torch.float32, inputs=inputs, mask=mask)
    inputs = cast(inputs, torch.float32)
    want = fused_attention(**inputs, mask=mask, backend="triton")["context"]
    context = HF.additive_attention(**inputs, mask=mask, negative_slope=SLOPE, backend="triton")
    torch.testing.assert_close(context, want, **tolerances.EXACT)


@interpreted
@pytest.mark.parametrize("splits", [1, 2])
def test_infinite_scores(monkeypatch, splits):
    """Of -inf alone, where the softmax is NaN; of -inf among others, where it is zero; of +inf."""
    monkeypatch.setattr(additive_attention, "_splits", lambda *_: splits)
    inputs = cast(attention_inputs(batch=1, queries=4, keys=40, width=3, score_bias=True), torch.float32)
    bias = inputs["score_bias"][0]
    bias[0], bias[1, :20], bias[2, 3] = -math.inf, -math.inf, math.inf
    got, want = fused_attention(**inputs, backend="triton"), plain_attention(**inputs)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=0.0, atol=tolerances.SCORE * 10)


@interpreted
@pytest.mark.parametrize(
    ("name", "dim", "size"),
    [(name, dim, 1) for name in ("query", "key", "value", "score_bias", "mask") for dim in range(3)]
    + [(name, dim, 100) for name in ("query", "key") for dim in range(3)]
    + [("v", 0, 1), ("v", 0, 100)],
)
def test_far_apart(name, dim, size):
    """Offsets beyond 32 bits. The factored tanh reads copies of query and key; that of large sums does not."""
    inputs = cast(attention_inputs(batch=3, queries=3, keys=3, width=3, values=3, score_bias=True), torch.float32)
    inputs |= {"query": size * inputs["query"]}
    masks = {"mask": torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.3}
    want = with_gradients(fused_attention, inputs, **masks, backend="triton")
    changed = masks if name == "mask" else inputs
    changed[name] = far_apart(changed[name], dim)
    got = with_gradients(fused_attention, inputs, **masks, backend="triton")
    torch.testing.assert_close(got, want, **tolerances.EXACT)


@interpreted
@pytest.mark.parametrize("dim", range(3))
def test_far_gradients(dim):
    inputs = cast(attention_inputs(batch=3, queries=3, keys=3, width=3), torch.float32)
    leaves = [inputs[name].requires_grad_() for name in ("query", "key", "v")]
    grad = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
    scores = HF.additive_scores(*leaves, backend="triton")
    want, got = (torch.autograd.grad(scores, leaves, g, retain_graph=True) for g in (grad, far_apart(grad, dim)))
    torch.testing.assert_close(got, want, **tolerances.EXACT)


@pytest.mark.gpu
@pytest.mark.parametrize("size", additive_attention.SCORES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_block_size_on_a_gpu(monkeypatch, dtype, size):
    monkeypatch.setattr(additive_attention, "_scores_config", lambda table, *_: table[size])
    monkeypatch.setattr(additive_attention, "MIN_PROGRAMS_LARGE", 0)
    inputs = attention_inputs(queries=70, keys=131, width=66, values=40)
    assert_parity(plain_attention, fused_attention, inputs, dtype, "cuda", backend="triton")


@pytest.mark.gpu
def test_captured_in_a_cuda_graph():
    inputs = cast(attention_inputs(keys=300), torch.float32, "cuda")
    assert_captured(fused_attention, inputs, backend="triton")


@interpreted
def test_prepared_keys():
    inputs = cast(attention_inputs(queries=1, keys=9, width=6), torch.float32)
    prepared = HF.prepare_exponentials(inputs["key"], backend="triton")
    got = fused_attention(**inputs, prepared=prepared, backend="triton")
    torch.testing.assert_close(got, fused_attention(**inputs, backend="triton"), **tolerances.EXACT)
    assert HF.prepare_exponentials(inputs["key"], activation="relu", backend="triton") is None


def test_blocks():
    """Small ones where large ones would make too few programs."""
    sizes = {"one query": (1 << 20, 1, 50), "few pairs": (4, 50, 50), "many pairs": (256, 128, 128)}
    for table in (additive_attention.SCORES, additive_attention.ATTENTION):
        for name, size in sizes.items():
            assert additive_attention._scores_config(table, *size) is table[name]
    for rows, name in ((50, "few rows"), (1 << 14, "many rows")):
        assert additive_attention._gradients_config(torch.float32, 2, rows, 512) is additive_attention.GRADIENTS[name]


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "splits"), [(1, 1, 10, 1), (1, 1, 4096, 16), (32, 1, 300, 4), (200, 1, 300, 1)]
)
def test_splits(batch, queries, keys, splits):
    """Few programs share out the keys of a query, a block of them to each at the least."""
    config = additive_attention.ATTENTION["one query"]
    assert additive_attention._splits(config, batch, queries, keys) == splits
