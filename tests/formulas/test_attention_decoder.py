"""The attention decoder's explicit formulas, in float64: forward against PyTorch's cells, backward against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hybridops.formulas.attention_decoder import (
    DecoderInputs,
    DecoderOptions,
    DecoderUpstreamGrads,
    attention_decoder_backward,
    attention_decoder_forward,
)
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
    options = DecoderOptions(told.get("scale", 1.0), told.get("activation", "tanh"), SLOPE, cell, query)
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
@pytest.mark.parametrize("given", [*RESULTS, "all"])
def test_backward(cell, query, variant, given):
    """Of each result alone, the others' gradients being absent, and of all."""
    inputs, options, *_ = inputs_and_options(cell, query, variant)
    names = ("x_gates", "h0", "cell0", "context0", "b_h", "score_bias", "b_beta", "b_q")
    leaves = {name: t.requires_grad_() for name in names if (t := getattr(inputs, name)) is not None}
    outputs = attention_decoder_forward(inputs, options, save=False)[:5]
    generator = torch.Generator().manual_seed(1)
    grads = [
        torch.randn(out.shape, generator=generator, dtype=out.dtype)
        if out is not None and given in (name, "all")
        else None
        for name, out in zip(RESULTS, outputs, strict=True)
    ]
    pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
    if not pairs:
        assert (cell, given) == ("gru", "cell_n")
        return
    want = torch.autograd.grad(*zip(*pairs, strict=True)[:1], list(leaves.values()))
