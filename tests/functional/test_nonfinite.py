"""Infinities and NaN do what they do in plain PyTorch: in the same places, of the same sign."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import hybridops.functional as HF
from tests import tolerances
from tests.problems import (
    ACTIVATIONS,
    Tensors,
    attention_inputs,
    cast,
    conv_lstm_inputs,
    fused_attention,
    fused_conv_lstm,
    plain_attention,
    plain_conv_lstm,
    plain_scores,
    with_gradients,
)

values = pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def kinds(results: Tensors) -> Tensors:
    """0 where finite, ±1 where infinite, NaN where NaN."""
    return {name: t.double().nan_to_num(math.nan, 1.0, -1.0).where(~t.isfinite(), 0.0) for name, t in results.items()}


def assert_same(plain, fused, inputs: Tensors, dtype: torch.dtype, device: str, **options) -> None:
    inputs = cast(inputs, dtype, device)
    got = with_gradients(fused, inputs, **options)
    want = with_gradients(plain, cast(inputs, torch.float64, device))
    torch.testing.assert_close(kinds(got), kinds(want), equal_nan=True, **tolerances.EXACT)
    if dtype == torch.float64:
        torch.testing.assert_close(got, want, equal_nan=True, **tolerances.FLOAT64)


@dtypes
@values
@pytest.mark.parametrize("peephole", [None, "channel"])
@pytest.mark.parametrize("name", ["x", "h0", "c0"])
def test_conv_lstm(target, name, peephole, value, dtype):
    inputs = conv_lstm_inputs(space=(7, 8), peephole=peephole)
    inputs[name].select(-1, 2).select(-1, 3)[0].flatten()[-1] = value
    assert_same(plain_conv_lstm, fused_conv_lstm, inputs, dtype, target.device, backend=target.backend)


@values
def test_conv_lstm_with_a_tap_that_meets_zeros_alone(target, value):
    """Outside the image, wherever the kernel stands. (In float32 PyTorch's own convolution may not read it.)"""
    inputs = conv_lstm_inputs(space=(1, 2), kernel=(5, 5))
    inputs["weight_ih"][0, 0, 0, 0] = value
    options = {"backend": target.backend}
    assert_same(plain_conv_lstm, fused_conv_lstm, inputs, torch.float64, target.device, **options)


@dtypes
def test_conv_lstm_with_infinite_cells(target, dtype):
    """Without a peephole nothing multiplies the cell by zero."""
    inputs = conv_lstm_inputs()
    inputs["c0"] = inputs["c0"].sign() * math.inf
    assert_same(plain_conv_lstm, fused_conv_lstm, inputs, dtype, target.device, backend=target.backend)


def attention(activation: str):
    """The plain form and the fused one.

    Of relu it is the reference back end: autograd's relu stops a NaN gradient where it is inactive; the formulas, which
    multiply by the slope, hand it on.
    """
    fused = partial(fused_attention, activation=activation)
    by_formula = partial(fused, backend="reference")
    return by_formula if activation == "relu" else partial(plain_attention, activation=activation), fused


@dtypes
@values
@activations
@pytest.mark.parametrize("name", ["query", "key", "v"])
def test_attention(target, name, activation, value, dtype):
    inputs = attention_inputs(queries=5, keys=9, width=11)
    inputs[name].view(-1, 11)[-1, 4] = value
    assert_same(*attention(activation), inputs, dtype, target.device, backend=target.backend)
    inputs, options = cast(inputs, dtype, target.device), {"activation": activation}
    outputs = plain_attention(**inputs, **options), fused_attention(**inputs, **options, backend=target.backend)
    torch.testing.assert_close(*map(kinds, outputs), equal_nan=True, **tolerances.EXACT)


@dtypes
@activations
def test_attention_of_opposite_infinities(target, activation, dtype):
    """inf - inf in one pair of a query and a key, inf + inf and -inf - inf in others."""
    inputs = attention_inputs(queries=5, keys=9, width=11)
    inputs["query"][0, :2, 3] = torch.tensor([math.inf, -math.inf])
    inputs["key"][0, 3:5, 3] = torch.tensor([math.inf, -math.inf])
    assert_same(*attention(activation), inputs, dtype, target.device, backend=target.backend)


@dtypes
@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (5, 100), (20, 150)])
def test_attention_of_infinite_scores(target, queries, keys, dtype):
    """Of -inf alone, where the softmax is NaN; of -inf in one half; of inf; NaN, which leaves masked weights zero."""
    inputs = cast(attention_inputs(queries=queries, keys=keys, width=3, score_bias=True), dtype, target.device)
    bias, half = inputs["score_bias"][0], keys // 2
    bias[0], bias[1, :half], bias[2, half:], bias[3, half], bias[4, -1] = (
        -math.inf,
        -math.inf,
        -math.inf,
        math.inf,
        math.nan,
    )
    mask = torch.rand(2, queries, keys, generator=torch.Generator().manual_seed(0)).to(target.device) > 0.5
    mask[:, :, ::half], mask[1, 0] = True, False
    for options in ({}, {"mask": mask}):
        got, want = (fused_attention(**inputs, **options, backend=name) for name in (target.backend, "reference"))
        torch.testing.assert_close(kinds(got), kinds(want), equal_nan=True, **tolerances.EXACT)
        if dtype == torch.float64:
            torch.testing.assert_close(got, want, equal_nan=True, **tolerances.FLOAT64)


@dtypes
@values
@pytest.mark.parametrize(
    ("activation", "slope"),
    [("tanh", 0.0), ("relu", 0.0), ("leaky_relu", 0.3), ("leaky_relu", 0.0), ("leaky_relu", -0.5)],
)
@pytest.mark.parametrize("name", ["query", "key"])
def test_scores(target, name, activation, slope, value, dtype):
    """Under finite gradients, which the softmax of a NaN would not leave."""
    inputs = attention_inputs(queries=5, keys=9, width=11)
    inputs = {key: inputs[key] for key in ("query", "key", "v")}
    inputs[name][-1, -1, 4] = value

    def plain(**tensors):
        return {"scores": plain_scores(**tensors, activation=activation, slope=slope)}

    def fused(**tensors):
        options = {"activation": activation, "negative_slope": slope, "backend": target.backend}
        return {"scores": HF.additive_scores(**tensors, **options)}

    assert_same(plain, fused, inputs, dtype, target.device)
