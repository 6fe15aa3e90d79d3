"""FLOPs of fused calls, as PyTorch's counter counts them: as many as the plain modules have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import hybridops.functional as HF
from hybridops import FusedAdditiveAttention, reference
from hybridops.native import OPS
from tests.processes import run_python

WITHOUT_PRODUCTS = {"additive_prepare_keys", "attention_decoder_pack", "linear_pack", "cpu_isa"}


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def flops_of_ops(call: Callable[[], Any]) -> set[str]:
    with FlopCounterMode(display=False) as counter:
        call()
    return {str(op) for op in counter.get_flop_counts()["Global"]}


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


@pytest.fixture(params=[(3,), (3, 5)], ids=["1d", "2d"])
def conv_lstm(request) -> tuple[Callable[[], Tensor], Callable[..., Tensor]]:
    """A plain layer's call, and the fused one's with the same arguments."""
    kernel = request.param
    space = (6, 7)[: len(kernel)]
    plain = reference.ConvLSTM(3, 5, kernel)
    (cell,), x, states = plain.cell_list, rand(2, 4, 3, *space), (rand(2, 5, *space), rand(2, 5, *space))
    w_ih, w_hh = cell.conv.weight.split((3, 5), 1)

    def fused(**options: Any) -> Tensor:
        return HF.conv_lstm(x, states, w_ih, w_hh, cell.conv.bias, **options)[0].sum()

    return lambda: plain(x, tuple(state[None] for state in states))[0].sum(), fused


def test_conv_lstm(conv_lstm):
    plain, fused = conv_lstm
    assert flops(fused) == flops(plain) > 0
    assert flops(lambda: fused().backward()) == flops(lambda: plain().backward()) == 3 * flops(plain)
    assert flops_of_ops(fused) == {"hybridops.conv_lstm_forward"}


def test_conv_lstm_recomputes_a_forward(conv_lstm):
    plain, fused = conv_lstm
    assert flops(lambda: fused(save="recompute").backward()) == 4 * flops(plain)


@pytest.mark.slow
def test_conv_lstm_compiled(conv_lstm):
    plain, fused = conv_lstm
    compiled = torch.compile(fused, backend="aot_eager")
    compiled().backward()
    assert flops(lambda: compiled().backward()) == 3 * flops(plain)


def test_conv_lstm_from_zeros():
    """A first step has no product with its state, forward or backward."""
    x, w_ih, w_hh = rand(2, 4, 3, 6, 7), rand(20, 3, 3, 3), rand(20, 5, 3, 3)
    of_x, of_h = 2 * 2 * 4 * 6 * 7 * w_ih.numel(), 2 * 2 * 3 * 6 * 7 * w_hh.numel()
    assert flops(lambda: HF.conv_lstm(x, None, w_ih, w_hh)) == of_x + of_h
    assert flops(lambda: HF.conv_lstm(x, None, w_ih, w_hh)[0].sum().backward()) == 3 * (of_x + of_h)


def test_additive_attention():
    plain = reference.AdditiveAttention(6, 7, 8)
    query, key = rand(2, 3, 6), rand(2, 9, 7)

    def fused() -> Tensor:
        return HF.additive_attention(plain.query_proj(query), plain.key_proj(key), key, plain.v.weight[0]).sum()

    assert flops(fused) == flops(lambda: plain(query, key)) > 0
    assert flops(lambda: fused().backward()) == flops(lambda: plain(query, key)[0].sum().backward())
    assert "hybridops.additive_attention_forward" in flops_of_ops(fused)


def test_additive_scores():
    q, k, v = rand(2, 3, 8), rand(2, 9, 8), rand(8)
    assert flops(lambda: HF.additive_scores(q, k, v)) == 2 * 2 * 3 * 9 * 8
    assert flops(lambda: HF.additive_scores(q, k, v).sum().backward()) == 3 * 2 * 2 * 3 * 9 * 8


@torch.no_grad()
def test_a_step_of_decoding():
    attention = FusedAdditiveAttention(6, 7, 8).eval()
    query, key = torch.randn(2, 6), torch.randn(2, 9, 7)
    keys = attention.prepare(key)
    projection = 2 * 2 * 9 * 7 * 8  # of the keys, which a plain call projects anew
    with torch.no_grad():
        plain = flops(lambda: reference.AdditiveAttention(6, 7, 8)(query[:, None], key))
    found = flops(
        lambda: torch.ops.hybridops.additive_attention_step(
            query,
            attention.query_proj.weight,
            None,
            keys.key,
            attention.v.weight,
            key,
            None,
            1.0,
            0,
            0.01,
            None,
            None,
            True,
        )
    )
    assert found == plain - projection


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("query", ["previous", "current"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_attention_decoder(cell, query, gated):
    plain = reference.AttentionDecoder(4, 6, 7, 8, cell=cell, query=query, context_gate=gated)
    x, memory, attention = rand(2, 3, 4), rand(2, 9, 7), plain.attention
    gate = {"weight_gate": plain.context_gate.weight, "bias_gate": plain.context_gate.bias} if gated else {}
    h0, c0 = rand(2, 6), rand(2, 6)

    def fused() -> Tensor:
        output, _, context, _ = HF.attention_decoder(
            x, attention.key_proj(memory), memory, attention.v.weight[0], (h0, c0) if cell == "lstm" else h0,
            attention.query_proj.weight, plain.cell.weight_ih, plain.cell.weight_hh, plain.cell.bias_ih,
            plain.cell.bias_hh, cell=cell, query=query, **gate,
        )  # fmt: skip
        return output.sum() + context.sum()

    def loop() -> Tensor:
        output, _, context, _ = plain(x, memory, (h0, c0) if cell == "lstm" else h0)
        return output.sum() + context.sum()

    assert flops(fused) == flops(loop) > 0
    assert "hybridops.attention_decoder_forward" in flops_of_ops(fused)
    assert flops(lambda: fused().backward()) == flops(lambda: loop().backward())


def test_a_packed_product():
    x, weight = torch.randn(3, 6), torch.randn(5, 6)
    packed = torch.ops.hybridops.linear_pack(weight)
    product = flops(lambda: x @ weight.T)
    assert flops(lambda: torch.ops.hybridops.linear_packed(x, packed, None, 5)) == product
    assert flops(lambda: torch.ops.hybridops.linear_likeliest(x, packed, None, 5, 2)) == product


def test_every_op_has_a_formula():
    for name in set(OPS) - WITHOUT_PRODUCTS:
        assert getattr(torch.ops.hybridops, name) in flop_registry
    assert torch.ops.hybridops.recurrence_gradients in flop_registry


@pytest.mark.parametrize("first", ["hybridops", "torch.utils.flop_counter"])
def test_in_any_order_of_imports(first):
    second = {"hybridops": "torch.utils.flop_counter"}.get(first, "hybridops")
    script = f"""
import sys
import {first}
import {second}
import torch
print(torch.ops.hybridops.conv_lstm_forward in torch.utils.flop_counter.flop_registry)
"""
    assert run_python(script).strip() == "True"


def test_importing_does_not_import_the_counter():
    script = "import sys, hybridops; print('torch.utils.flop_counter' in sys.modules)"
    assert run_python(script).strip() == "False"
