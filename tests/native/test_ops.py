"""Every compiled op keeps the dispatcher's rules: schema, fake, tracing; and writes all of its outputs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.native.recorder import NO_KERNEL, record

SCHEMA_AND_FAKE = ("test_schema", "test_autograd_registration", "test_faketensor")
FAMILIES = ("conv_lstm", "attention", "attention_decoder")
CONV_LSTM = {
    "plain": {},
    "no states, no bias": {"states": False, "bias": False},
    "channel peephole": {"peephole": "channel"},
    "spatial peephole": {"peephole": "spatial"},
    "one dimension": {"space": (7,), "kernel": (5,), "peephole": "spatial"},
    "odd sizes": {"batch": 1, "channels": 7, "hidden": 17, "space": (3, 13), "kernel": (3, 5)},
    "one of everything": {"batch": 1, "steps": 1, "channels": 1, "hidden": 1, "space": (1, 1), "kernel": (1, 1)},
    "no batch": {"batch": 0},
}
ATTENTION = {
    "plain": {},
    "score bias": {"score_bias": True},
    "odd sizes": {"batch": 1, "queries": 7, "keys": 13, "width": 33},
    "one of everything": {"batch": 1, "queries": 1, "keys": 1, "width": 1, "values": 1},
    "no batch": {"batch": 0},
    "no keys": {"keys": 0},
    "no queries": {"queries": 0},
}
DECODER = {
    "plain": {},
    "gate, score bias": {"gate": True, "score_bias": True},
    "no biases": {"bias": False, "states": False},
    "odd sizes": {"batch": 5, "steps": 3, "keys": 13, "hidden": 17, "width": 33, "values": 19, "gate": True},
    "one of everything": {"batch": 1, "steps": 1, "keys": 1, "hidden": 1, "width": 1, "values": 1},
    "no batch": {"batch": 0},
    "no keys": {"keys": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "sizes"),
    [pytest.param("conv_lstm", sizes, id=f"conv_lstm, {name}") for name, sizes in CONV_LSTM.items()]
    + [pytest.param("attention", sizes, id=f"attention, {name}") for name, sizes in ATTENTION.items()]
    + [pytest.param("attention_decoder", sizes, id=f"decoder, {name}") for name, sizes in DECODER.items()],
)
def test_opcheck(family, sizes):
    calls = record(family, sizes)
    assert calls
    tests = SCHEMA_AND_FAKE if sizes else (*SCHEMA_AND_FAKE, "test_aot_dispatch_dynamic")  # which takes a second a call
    for func, args in calls:
        torch.library.opcheck(func, args, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_opcheck_dtypes(family, dtype):
    for func, args in record(family, {}, dtype):
        torch.library.opcheck(func, args, test_utils=SCHEMA_AND_FAKE)


def test_every_op_is_checked():
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("hybridops::")}
    names -= NO_KERNEL | {"hybridops::recurrence_gradients"}  # which is not compiled: tests/autograd/test_conv_lstm.py
    called = {func.name() for family in FAMILIES for func, _ in record(family, {})}
    assert called == names


def test_one_call_a_sequence():
    """Never one a step: the backward's chunks are of several images, however few a step has."""
    names = Counter(func.name() for func, _ in record("conv_lstm", {"batch": 1, "steps": 7}))
    assert names["hybridops::conv_lstm_forward"] == 3  # two trainings, an inference
    assert names["hybridops::conv_lstm_backward"] == names["hybridops::conv_lstm_backward_from_states"] == 1


def test_outputs_are_poisoned_first():
    """That the rest of the tests would see an element that is not written: here none is, for there is no step."""
    x, w = torch.zeros(0, 1, 2, 2, 1), torch.zeros(4, 1, 1, 1)
    _, cells, _ = torch.ops.hybridops.conv_lstm_forward.default(x, None, None, w, w, None, None, 0, False, 0)
    assert cells.shape == (1, 1, 2, 2, 1)
    assert cells.isnan().all()
