"""FLOPs of Triton's ops are those of the compiled ones, which tests/test_flops.py holds against the plain modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import hybridops.functional as HF
from hybridops.triton.launch import OPS
from tests.decoder_problems import CELLS, QUERIES, fused_decoder, problem

pytestmark = pytest.mark.interpreted


def flops(call: Callable[[], Tensor]) -> dict[str, int]:
    """Forward and backward, by op without its namespace."""
    with FlopCounterMode(display=False) as counter:
        call().sum().backward()
    return {str(op).split(".")[-1]: count for op, count in counter.get_flop_counts()["Global"].items()}


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_conv_lstm():
    x, states, w_ih, w_hh = (
        rand(2, 3, 2, 4, 4),
        (rand(2, 2, 4, 4), rand(2, 2, 4, 4)),
        rand(8, 2, 3, 3),
        rand(8, 2, 3, 3),
    )
    native, triton = (
        flops(lambda backend=backend: HF.conv_lstm(x, states, w_ih, w_hh, backend=backend)[0])
        for backend in ("native", "triton")
    )
    assert sum(triton.values()) == sum(native.values())  # some of it by the library's convolution
    assert triton["conv_lstm_forward"] == native["conv_lstm_forward"]
    assert triton["conv_lstm_backward"] == native["conv_lstm_backward"]


def test_additive_attention():
    q, k, v, value = rand(2, 3, 8), rand(2, 9, 8), rand(8), rand(2, 9, 4)
    native, triton = (
        flops(lambda backend=backend: HF.additive_attention(q, k, value, v, backend=backend))
        for backend in ("native", "triton")
    )
    assert sum(triton.values()) == sum(native.values())


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("cell", CELLS)
def test_attention_decoder(cell, query):
    inputs, options = problem(cell, query, "everything", steps=3)
    inputs = {name: t if t is None else t.requires_grad_() for name, t in inputs.items()}
    native, triton = (
        flops(lambda backend=backend: fused_decoder(**inputs, backend=backend, **options)["output"])
        for backend in ("native", "triton")
    )
    assert sum(triton.values()) == sum(native.values())
    assert triton["attention_decoder_backward"] == native["attention_decoder_backward"]


def test_every_op_with_products_has_a_formula():
    without = {str(op).split(".")[-1] for op in OPS if op not in flop_registry}
    assert without == {"exponentials"}
