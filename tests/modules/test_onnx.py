"""Exported to ONNX and run by onnxruntime, every module gives its own numbers. What is exported is plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hybridops import (
    FusedAdditiveAttention,
    FusedAttentionDecoder,
    FusedConcatAttention,
    FusedConvLSTM,
    FusedConvLSTMCell,
)
from hybridops.models import ImageCaptioner
from hybridops.reference.additive_attention import PreparedKeys
from hybridops.reference.attention_decoder import DecoderState

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the exporter's own warnings are many

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MASK = torch.tensor([[True, True, True, False, False], [True, True, True, True, True]])


class Step(nn.Module):
    """A step of decoding on keys that are projected already: what an exported captioner calls word by word."""

    def __init__(self, decoder: FusedAttentionDecoder, vocabulary: nn.Linear) -> None:
        super().__init__()
        self.decoder, self.vocabulary = decoder, vocabulary

    def forward(self, x: Tensor, key: Tensor, value: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        state = DecoderState(PreparedKeys(key, value, None), h, c, torch.zeros_like(value[:, 0]), None)
        output, _, weights, state = self.decoder.step(x, state)
        assert state.c is not None
        return self.vocabulary(output), weights, state.h, state.c


CASES: dict[str, tuple[Any, tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "cell": (lambda: FusedConvLSTMCell(2, 3, 3, peephole="channel"), ((1, 2, 5, 6),), {}),
    "conv_lstm": (lambda: FusedConvLSTM(2, 3, 3, 2), ((2, 3, 2, 5, 6),), {}),
    "conv_lstm, 1d": (lambda: FusedConvLSTM(2, 3, (5,), gate_order="ifog"), ((2, 3, 2, 6),), {}),
    "conv_lstm, named": (lambda: FusedConvLSTM(2, 3, 3, backend="native", save="recompute"), ((1, 3, 2, 5, 6),), {}),
    "concat": (lambda: FusedConcatAttention(4), ((2, 4), (2, 5, 4)), {}),
    "attention": (lambda: FusedAdditiveAttention(4, 3, 6), ((2, 7, 4), (2, 5, 3)), {"mask": MASK}),
    "attention, one query": (lambda: FusedAdditiveAttention(4, 3, 6), ((2, 4), (2, 5, 3)), {"mask": MASK}),
    "attention, heads": (lambda: FusedAdditiveAttention(4, 6, 6, num_heads=2), ((2, 7, 4), (2, 5, 6)), {}),
    "decoder": (
        lambda: FusedAttentionDecoder(3, 4, 5, 6, context_gate=True),
        ((2, 3, 3), (2, 5, 5)),
        {"mask": MASK, "need_weights": True},
    ),
    "decoder, GRU": (
        lambda: FusedAttentionDecoder(3, 4, 5, 6, cell="gru", query="current"),
        ((2, 3, 3), (2, 5, 5)),
        {},
    ),
    "step": (
        lambda: Step(FusedAttentionDecoder(3, 4, 5, 6), nn.Linear(4, 11)),
        ((2, 3), (2, 5, 6), (2, 5, 5), (2, 4), (2, 4)),
        {},
    ),
}


def numbers(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], path: str, **options: Any) -> None:
    """The file's results are the module's."""
    program = torch.onnx.export(module, arguments, kwargs=named or None, dynamo=True, verbose=False, **options)
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    given = [each for each in (*arguments, *named.values()) if isinstance(each, Tensor)]
    feed = {slot.name: value.numpy() for slot, value in zip(session.get_inputs(), given, strict=True)}
    found = session.run(None, feed)
    with torch.no_grad():
        wanted = [each for each in tree_leaves(module(*arguments, **named)) if each is not None]
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_numbers(name, tmp_path):
    make, shapes, named = CASES[name]
    torch.manual_seed(0)
    numbers(make().eval(), tuple(torch.randn(shape) for shape in shapes), named, str(tmp_path / "module.onnx"))


def test_a_captioner(tmp_path):
    torch.manual_seed(0)
    model = ImageCaptioner(11, 8, 12, 5).eval()
    numbers(model, (torch.rand(2, 3, 16, 16), torch.randint(3, 11, (2, 4))), {}, str(tmp_path / "captioner.onnx"))


def test_any_batch_and_any_number_of_keys(tmp_path):
    attention, path = FusedAdditiveAttention(4, 3, 6).eval(), str(tmp_path / "attention.onnx")
    batch, keys = torch.export.Dim("batch"), torch.export.Dim("keys")
    program = torch.onnx.export(
        attention, (torch.randn(2, 7, 4), torch.randn(2, 5, 3)), dynamo=True, verbose=False,
        dynamic_shapes={"query": {0: batch}, "key": {0: batch, 1: keys}},
    )  # fmt: skip
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    query, key = torch.randn(4, 7, 4), torch.randn(4, 9, 3)
    names = [slot.name for slot in session.get_inputs()]
    context, weights = session.run(None, dict(zip(names, (query.numpy(), key.numpy()), strict=True)))
    with torch.no_grad():
        wanted = attention(query, key)
    torch.testing.assert_close(torch.from_numpy(context), wanted[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(weights), wanted[1], rtol=1e-5, atol=1e-6)
