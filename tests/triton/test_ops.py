"""Every Triton op keeps the dispatcher's rules, in eager mode and traced; one call a sequence."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests import tolerances
from tests.modules.agreement import examples, pair, results
from tests.native.recorder import Call, record

pytestmark = pytest.mark.interpreted
CONV_LSTM = {"steps": 2, "space": (2, 3), "kernel": (1, 3)}


@pytest.mark.parametrize(
    ("family", "sizes", "dtype"),
    [
        ("conv_lstm", {}, torch.bfloat16),
        ("conv_lstm", {"peephole": "spatial"}, torch.float32),
        ("conv_lstm", {"states": False, "bias": False}, torch.float32),
        ("conv_lstm", {"batch": 0}, torch.float32),
        ("attention", {}, torch.float64),
        ("attention", {"score_bias": True}, torch.bfloat16),
        ("attention", {"queries": 0}, torch.float32),
        ("attention", {"keys": 0}, torch.float32),
        ("attention_decoder", {"steps": 2}, torch.float64),
        ("attention_decoder", {"steps": 2, "gate": True, "score_bias": True}, torch.bfloat16),
        ("attention_decoder", {"steps": 1, "batch": 0}, torch.float32),
    ],
    ids=str,
)
def test_opcheck(family, sizes, dtype):
    calls = record(family, (CONV_LSTM if family == "conv_lstm" else {}) | sizes, dtype, "triton")
    assert calls
    for func, args in calls:
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(func, args, test_utils=tests)


@pytest.fixture(scope="module")
def calls() -> dict[str, Call]:
    """One of each op."""
    recorded = record("conv_lstm", CONV_LSTM, torch.float32, "triton")
    for dtype in (torch.float32, torch.float64):
        recorded += record("attention", {}, dtype, "triton")
    recorded += record("attention_decoder", {"steps": 2, "gate": True}, torch.float32, "triton")
    return {func.name(): (func, args) for func, args in recorded}


def test_every_op_is_called(calls):
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("hybridops_triton::")}
    assert calls.keys() == names


def test_same_bits_again(calls):
    want = [func(*args) for func, args in calls.values()]
    torch.testing.assert_close([func(*args) for func, args in calls.values()], want, **tolerances.EXACT)


def test_one_call_a_sequence():
    sizes = CONV_LSTM | {"batch": 1, "steps": 4}
    names = Counter(func.name() for func, _ in record("conv_lstm", sizes, backend="triton"))
    assert names == {"hybridops_triton::conv_lstm_forward": 3, "hybridops_triton::conv_lstm_backward": 2}
    names = Counter(func.name() for func, _ in record("attention_decoder", {"steps": 3}, backend="triton"))
    calls = {name: count for name, count in names.items() if "decoder" in name}
    assert calls == {f"hybridops_triton::attention_decoder_{way}": n for way, n in (("forward", 16), ("backward", 12))}


@pytest.mark.parametrize("kind", ["ConvLSTMCell", "ConcatAttention", "AdditiveAttention", "AttentionDecoder"])
def test_compiled(kind):
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments)
    module.backend = "triton"
    want = results(module, inputs)
    module.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(module, inputs), want, **tolerances.FLOAT64)


def test_compiled_without_weights():
    """What is called then is another op."""
    _, module = pair("AdditiveAttention", 4, 6, 8, dtype=torch.float32)
    module.backend = "triton"
    query, key = torch.randn(2, 3, 4), torch.randn(2, 5, 6)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        context, weights = compiled(query, key, need_weights=False)
        torch.testing.assert_close(context, module(query, key)[0], **tolerances.EXACT)
    assert weights is None
