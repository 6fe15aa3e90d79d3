"""torch.compile(fullgraph=True) of the functions, with every optional argument; the modules are in tests/modules."""

from __future__ import annotations

import pytest
import torch

import hybridops.functional as HF
from tests import tolerances
from tests.decoder_problems import decoder_inputs, fused_decoder, with_location
from tests.functional.test_additive_attention import fused_location, fused_with_lse, location_inputs
from tests.problems import attention_inputs, conv_lstm_inputs, fused_attention, fused_conv_lstm, with_gradients

pytestmark = pytest.mark.slow


def one_step(x, h0, c0, weight_ih, weight_hh, bias, peephole, **options):
    h, c = HF.conv_lstm_cell(x[:, 0], (h0, c0), weight_ih, weight_hh, bias, peephole=peephole, **options)
    return {"h": h, "c": c}


def scores(query, key, value, v, score_bias, **options):
    return {"scores": HF.additive_scores(query, key, v, activation="leaky_relu", **options)}


FUNCTIONS = {
    "conv_lstm": (fused_conv_lstm, conv_lstm_inputs(peephole="spatial"), {}),
    "conv_lstm, recompute": (fused_conv_lstm, conv_lstm_inputs(space=(5,), kernel=(3,)), {"save": "recompute"}),
    "conv_lstm_cell": (one_step, conv_lstm_inputs(peephole="channel"), {}),
    "additive_scores": (scores, attention_inputs(), {}),
    "additive_attention": (fused_attention, attention_inputs(score_bias=True), {"mask": torch.ones(2, 5) > 0}),
    "additive_attention, lse": (fused_with_lse, attention_inputs(score_bias=True), {"mask": torch.ones(2, 5) > 0}),
    "location_attention": (fused_location, location_inputs(), {}),
    "attention_decoder, location": (fused_decoder, with_location(decoder_inputs(steps=2)), {}),
}


names = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@names
def test_training(target, name):
    function, inputs, options = FUNCTIONS[name]
    options = options | {"backend": target.backend}
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    got, want = (with_gradients(form, inputs, **options) for form in (compiled, function))
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


@names
def test_inference(target, name):
    function, inputs, options = FUNCTIONS[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    got, want = (form(**inputs, **options, backend=target.backend) for form in (compiled, function))
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


@names
def test_inductor(name):
    """Forward and backward compiled; by the back end that runs here."""
    function, inputs, options = FUNCTIONS[name]
    compiled = torch.compile(function, backend="inductor", fullgraph=True)
    got, want = (with_gradients(form, inputs, **options) for form in (compiled, function))
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)
