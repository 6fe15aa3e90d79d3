"""Every Triton op refuses a tensor of another size than the kernels index, and a gradient that would be lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybridops import triton
from tests.native.recorder import Call, record

pytestmark = pytest.mark.interpreted
CONV_LSTM = {"steps": 2, "space": (2, 3), "kernel": (1, 3), "peephole": "spatial"}

# Of these sizes any is right: nothing else says what they are.
FREE = {("exponentials", "x"): (0, 1, 2), ("scores", "q"): (1,), ("scores", "k"): (1,), ("weights", "q"): (1,)}
FREE |= {
    ("attention", "q"): (1,),
    ("attention", "value"): (2,),
    ("weights", "k"): (1,),
    ("conv_lstm_forward", "x"): (0,),
}
DECODER = ("attention_decoder_forward", "attention_decoder_backward")
FREE |= {("attention_decoder_forward", "x_gates"): (1,), (DECODER[0], "value"): (2,), (DECODER[0], "w_q"): (1,)}
OPS = (
    "exponentials", "scores", "weights", "attention", "scores_backward", "conv_lstm_forward", "conv_lstm_backward",
    *DECODER,
)  # fmt: skip


@pytest.fixture(scope="module")
def calls() -> dict[str, Call]:
    """One of each op."""
    recorded = record("conv_lstm", CONV_LSTM, torch.float32, "triton")
    for dtype in (torch.float32, torch.float64):
        recorded += record("attention", {}, dtype, "triton")
    recorded += record("attention_decoder", {"steps": 2, "gate": True, "score_bias": True}, torch.float32, "triton")
    return {func.name().split("::")[1]: (func, args) for func, args in recorded}


@pytest.mark.parametrize("op", OPS)
def test_one_too_small(calls, op):
    func, args = calls[op]
    given = [(i, a.name) for i, a in enumerate(func._schema.arguments) if isinstance(args[i], Tensor)]
    for place, name in given:
        for dim, size in enumerate(args[place].shape):
            wrong = [*args]
            wrong[place] = args[place].narrow(dim, 0, size - 1)
            if size > 1 and dim not in FREE.get((op, name), ()):
                with pytest.raises((ValueError, RuntimeError), match=r"must have|expanded size"):
                    func(*wrong)


@pytest.mark.parametrize("op", OPS)
def test_gradients_are_not_lost(calls, op):
    func, args = calls[op]
    first = next(i for i, arg in enumerate(args) if isinstance(arg, Tensor))
    outputs = func(*args[:first], args[first].clone().requires_grad_(), *args[first + 1 :])
    output = outputs if isinstance(outputs, Tensor) else outputs[0]
    with pytest.raises(RuntimeError, match=rf"^hybridops_triton::{op} has no derivative"):
        output.sum().backward()


def test_every_op_is_here():
    assert {op._qualified_op_name.split("::")[1] for op in triton.launch.OPS} == {*OPS}
