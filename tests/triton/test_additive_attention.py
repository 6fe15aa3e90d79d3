"""Triton's additive attention in the interpreter: every configuration, every range of the factored tanh."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import hybridops.functional as HF
from tests import tolerances
from tests.problems import (
    ACTIVATIONS,
    DTYPES,
    assert_parity,
    attention_inputs,
    cast,
    fused_attention,
    plain_attention,
    plain_scores,
)

pytest.importorskip("triton")
from hybridops.triton import additive_attention

interpreted = pytest.mark.interpreted
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
SIZES = {"queries": 18, "keys": 35, "width": 10}  # more than a block of the smaller ones, less than one of the larger


def check(dtype=torch.float64, activation="tanh", inputs=None, **options) -> None:
    options |= {"activation": activation}
    inputs = attention_inputs(**SIZES, score_bias=True) if inputs is None else inputs
    assert_parity(partial(plain_attention, **options), fused_attention, inputs, dtype, backend="triton", **options)


@interpreted
@activations
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, activation):
    mask = torch.rand(2, 18, 35, generator=torch.Generator().manual_seed(0)) > 0.3
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
    monkeypatch.setattr(additive_attention, "MANY_PROGRAMS", programs)
    check(torch.float32, activation)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", ["FOUR", "TWO", "ONE"])
@pytest.mark.parametrize("side", [0.999, 1.001], ids=["within", "beyond"])
def test_ranges(limit, side, dtype):
    """All channels of a row alike: the product of many factors is as large as the row's bound lets it be."""
    reach = 0.5 * side * additive_attention.RANGE[dtype][limit]
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
def test_prepared_keys():
    inputs = cast(attention_inputs(queries=1, keys=9, width=6), torch.float32)
    prepared = HF.prepare_exponentials(inputs["key"], backend="triton")
    got = fused_attention(**inputs, prepared=prepared, backend="triton")
    torch.testing.assert_close(got, fused_attention(**inputs, backend="triton"), **tolerances.EXACT)
    assert HF.prepare_exponentials(inputs["key"], activation="relu", backend="triton") is None


def test_blocks():
    """Small ones where large ones would make too few programs."""
    names = {id(config): name for name, config in additive_attention.SCORES.items()}
    sizes = {"one query": (1 << 20, 1, 50), "few pairs": (4, 50, 50), "many pairs": (128, 128, 128)}
    assert {
        name: names[id(additive_attention._scores_config(additive_attention.SCORES, *size))]
        for name, size in sizes.items()
    } == {name: name for name in sizes}
    for rows, name in ((50, "few rows"), (1 << 14, "many rows")):
        assert additive_attention._gradients_config(torch.float32, 2, rows, 512) is additive_attention.GRADIENTS[name]
