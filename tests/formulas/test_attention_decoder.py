"""The attention decoder's explicit formulas, in float64: forward against PyTorch's cells, backward against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hybridops.contract import Activation, DecoderInputs, DecoderOptions, DecoderUpstreamGrads
from hybridops.formulas.attention_decoder import attention_decoder_backward, attention_decoder_forward
from tests import tolerances
from tests.decoder_problems import CELLS, QUERIES, VARIANTS, plain_decoder, problem
from tests.problems import SLOPE

cells = pytest.mark.parametrize("cell", CELLS)
queries = pytest.mark.parametrize("query", QUERIES)
variants = pytest.mark.parametrize("variant", VARIANTS)
RESULTS = ("output", "h_n", "cell_n", "context", "weights")


def inputs_and_options(cell, query, variant, *, keep=True):
    """As the op takes them, and the problem they were made of; with dropout."""
    given, told = problem(cell, query, variant)
    x, weight_ih, bias_ih, bias_hh = (given[name] for name in ("x", "weight_ih", "bias_ih", "bias_hh"))
    batch, steps, width = x.shape
    if keep:
        random = torch.rand(batch, steps, given["key"].shape[1], generator=torch.Generator().manual_seed(0))
        told["keep"] = (random > 0.3).double() / 0.7
    bias = bias_ih + bias_hh if cell == "lstm" and bias_ih is not None else bias_ih
    h0, c0 = (x.new_zeros(batch, given["weight_hh"].shape[1]) if given[n] is None else given[n] for n in ("h0", "c0"))
    inputs = DecoderInputs(
        F.linear(x, weight_ih[:, :width], bias), given["key"], given["value"], given["v"],
        h0, c0 if cell == "lstm" else None, given["context0"], given["weight_q"], given["bias_q"],
        weight_ih[:, width:], given["weight_hh"], bias_hh if cell == "gru" else None,
        given["weight_gate"], given["bias_gate"], told.get("mask"), given["score_bias"], told.get("keep"),
        told.get("lengths"),
    )  # fmt: skip
    activation = Activation(told.get("activation", "tanh"), SLOPE)
    options = DecoderOptions(activation, told.get("scale", 1.0), cell, query)
    return inputs, options, given, told


@cells
@queries
@variants
@pytest.mark.parametrize("keep", [False, True])
def test_forward(cell, query, variant, keep):
    inputs, options, given, told = inputs_and_options(cell, query, variant, keep=keep)
    want = plain_decoder(**given, **told)
    for save in (False, True):
        states = attention_decoder_forward(inputs, options, save)
        got = {"output": states.output, "h_n": states.h_n, "context": states.context, "weights": states.weights}
        got |= {"c_n": states.cell_n} if cell == "lstm" else {}
        torch.testing.assert_close(got, want, **tolerances.FLOAT64)


@cells
@queries
@variants
@pytest.mark.parametrize("used", [*RESULTS, "all"])
def test_backward(cell, query, variant, used):
    """Of each result alone, the others' gradients being absent, and of all."""
    inputs, options, *_ = inputs_and_options(cell, query, variant)
    inputs = with_every_addend(inputs, query)
    names = ("x_gates", "score_bias", "b_q", "b_h", "b_beta", "h0", "cell0", "context0")
    leaves = {name: t.requires_grad_() for name in names if (t := getattr(inputs, name)) is not None}
    outputs = attention_decoder_forward(inputs, options, save=False)[:5]
    generator = torch.Generator().manual_seed(1)
    grads = DecoderUpstreamGrads(
        *(
            torch.randn(out.shape, generator=generator, dtype=out.dtype)
            if out is not None and used in (name, "all")
            else None
            for name, out in zip(RESULTS, outputs, strict=True)
        )
    )
    given = [i for i, grad in enumerate(grads) if grad is not None]
    if (cell, used) == ("gru", "cell_n"):
        assert not given
        return
    want = torch.autograd.grad(
        [outputs[i] for i in given], list(leaves.values()), [grads[i] for i in given],
        materialize_grads=True, allow_unused=True,
    )  # fmt: skip
    with torch.no_grad():
        states = attention_decoder_forward(inputs, options, save=True)
        found = attention_decoder_backward(grads, inputs, options, states)
    got = {"x_gates": found.da, "score_bias": found.dscores, "b_q": found.dq.sum((0, 1)), "h0": found.dh0}
    got |= {"b_h": found.da_h.sum((0, 1))} if cell == "gru" else {"cell0": found.dcell0}
    got |= {"context0": found.dcontext0} if query == "current" else {}
    got |= {"b_beta": found.dbeta.sum((0, 1))} if inputs.w_beta is not None else {}
    torch.testing.assert_close(got, dict(zip(leaves, want, strict=True)), **tolerances.FLOAT64)


def with_every_addend(inputs: DecoderInputs, query: str) -> DecoderInputs:
    """Zeros for those there are none of, so that each has a gradient."""
    batch, steps, rows = inputs.x_gates.shape
    shapes = {"score_bias": (batch, steps, inputs.key.shape[1]), "b_q": inputs.v.shape}
    shapes |= {"context0": (batch, inputs.value.shape[2])} if query == "current" else {}
    shapes |= {"b_h": (rows,)} if inputs.cell0 is None else {}
    shapes |= {"b_beta": inputs.value.shape[2:]} if inputs.w_beta is not None else {}
    zeros = {name: inputs.v.new_zeros(shape) for name, shape in shapes.items() if getattr(inputs, name) is None}
    return inputs._replace(**zeros)


@cells
def test_half_precision(cell):
    """Everything but the cell, its gradient and the scores' comes in the dtype of the inputs."""
    inputs, options, *_ = inputs_and_options(cell, "previous", "everything")
    kept = ("cell0", "score_bias", "mask", "lengths")
    inputs = DecoderInputs(
        *(
            t if t is None or not t.is_floating_point() else t.to(torch.float32 if name in kept else torch.bfloat16)
            for name, t in inputs._asdict().items()
        )
    )
    states = attention_decoder_forward(inputs, options, save=True)
    grads = DecoderUpstreamGrads(torch.ones_like(states.output), None, None, None, None)
    found = attention_decoder_backward(grads, inputs, options, states)
    for results, in_float32 in ((states, ("cell_n", "cells")), (found, ("dcell0", "dscores"))):
        for name, t in results._asdict().items():
            assert t is None or t.dtype == (torch.float32 if name in in_float32 else torch.bfloat16), name
