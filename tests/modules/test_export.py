"""torch.export of inference: sizes by name; every size a symbol, saved, and run again in a process of its own."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim
from torch.utils._pytree import tree_map, tree_map_only

from hybridops import (
    FusedAdditiveAttention,
    FusedAttentionDecoder,
    FusedConcatAttention,
    FusedConvLSTM,
    FusedConvLSTMCell,
    native,
)
from hybridops.models import SentimentClassifier, TextClassifier
from tests.modules.agreement import examples, pair
from tests.processes import run_python

pytestmark = pytest.mark.slow

RUN_AGAIN = """
import sys, torch, hybridops
from tests import tolerances
for kind in {kinds!r}:
    module = torch.export.load(f"{folder}/{{kind}}.pt2").module()
    for inputs, want in torch.load(f"{folder}/{{kind}}.pt", weights_only=True):
        torch.testing.assert_close(module(*inputs), want, **tolerances.FLOAT64)
        print(kind)
"""


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))
def test_saved_and_loaded(tmp_path):
    for kind, (arguments, inputs) in examples().items():
        _, module = pair(kind, **arguments)
        fewer = tree_map_only(torch.Tensor, lambda t: t[:, :2] if t.dim() == 5 and t.shape[0] == 2 else t[:2], inputs)
        sizes = tree_map(lambda t: dict.fromkeys(range(t.dim()), Dim.AUTO), inputs)
        with torch.no_grad():
            program = torch.export.export(module.eval(), inputs, dynamic_shapes=sizes)
            cases = [(some, module(*some)) for some in (inputs, fewer)]
        called = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert any(op.name().startswith("hybridops::") for op in called if isinstance(op, torch._ops.OpOverload))
        torch.export.save(program, tmp_path / f"{kind}.pt2")
        torch.save(cases, tmp_path / f"{kind}.pt")
    ran = run_python(RUN_AGAIN.format(kinds=list(examples()), folder=tmp_path)).split()
    assert ran == [kind for kind in examples() for _ in range(2)]


SIZES = {"batch": (4, 3), "time": (3, 6), "height": (5, 8), "width": (6, 9), "queries": (7, 2), "keys": (5, 11)}
BY_NAME = {
    "cell": (lambda: FusedConvLSTMCell(2, 3, 3), [("batch", 2, "height", "width")]),
    "conv_lstm": (lambda: FusedConvLSTM(2, 3, 3, 2), [("batch", "time", 2, "height", "width")]),
    "conv_lstm, 1d, time first": (
        lambda: FusedConvLSTM(2, 3, (5,), batch_first=False, save="recompute"),
        [("time", "batch", 2, "width")],
    ),
    "conv_lstm, 3d": (lambda: FusedConvLSTM(2, 3, (3, 3, 3)), [("batch", 3, 2, "height", "width", 4)]),
    "conv_lstm, spatial peephole": (
        lambda: FusedConvLSTM(2, 3, 3, peephole="spatial", spatial_size=(5, 6)),
        [("batch", "time", 2, 5, 6)],
    ),
    "concat": (lambda: FusedConcatAttention(4), [("batch", 4), ("batch", "keys", 4)]),
    "attention": (lambda: FusedAdditiveAttention(4, 3, 6), [("batch", "queries", 4), ("batch", "keys", 3)]),
    "attention, one query": (lambda: FusedAdditiveAttention(4, 3, 6), [("batch", 4), ("batch", "keys", 3)]),
    "attention, heads": (
        lambda: FusedAdditiveAttention(4, 6, 6, num_heads=2),
        [("batch", "queries", 4), ("batch", "keys", 6)],
    ),
    "decoder": (
        lambda: FusedAttentionDecoder(3, 4, 5, 6, context_gate=True),
        [("batch", "time", 3), ("batch", "keys", 5)],
    ),
    "decoder, GRU": (
        lambda: FusedAttentionDecoder(3, 4, 5, 6, cell="gru", query="current"),
        [("batch", "time", 3), ("batch", "keys", 5)],
    ),
    "decoder, heads": (  # which is a loop over the steps, as one with a location is
        lambda: FusedAttentionDecoder(3, 4, 6, 6, num_heads=2),
        [("batch", 3, 3), ("batch", "keys", 6)],
    ),
    "decoder, coverage": (
        lambda: FusedAttentionDecoder(3, 4, 5, 6, location="coverage"),
        [("batch", 3, 3), ("batch", "keys", 5)],
    ),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_sizes_by_name(name):
    make, shapes = BY_NAME[name]
    module = make().eval()
    sizes = tuple({at: Dim(size) for at, size in enumerate(shape) if size in SIZES} for shape in shapes)
    first, other = (
        tuple(torch.randn([SIZES[size][which] if size in SIZES else size for size in shape]) for shape in shapes)
        for which in (0, 1)
    )
    with torch.no_grad():
        program = torch.export.export(module, first, dynamic_shapes=sizes).module()
        for inputs in first, other:
            torch.testing.assert_close(program(*inputs), module(*inputs))


@pytest.mark.parametrize("make", [lambda: TextClassifier(9, 4, 3, 5), lambda: SentimentClassifier(9, 4, 5, 3)])
def test_texts_of_any_batch(make):
    model = make().eval()
    first = torch.randint(9, (4, 12)), torch.tensor([12, 5, 7, 3])
    other = torch.randint(9, (3, 12)), torch.tensor([4, 12, 1])
    program = torch.export.export(model, first, dynamic_shapes=({0: Dim("batch")},) * 2).module()
    for inputs in first, other:
        torch.testing.assert_close(program(*inputs), model(*inputs))
