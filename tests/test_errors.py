"""Wrong calls: TypeError or ValueError, before anything runs, in a message that begins with the argument's name."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import hybridops.functional as HF
from hybridops import FusedAdditiveAttention, FusedConcatAttention, FusedConvLSTM, FusedConvLSTMCell

zeros = torch.zeros
half = partial(zeros, dtype=torch.bfloat16)
meta = partial(zeros, device="meta")
true = partial(torch.ones, dtype=torch.bool)


def prepared(*shape: int, dtype: torch.dtype = torch.float32) -> HF.PreparedExponentials:
    """As a back end that has a use for them would give for a key of that shape."""
    return HF.PreparedExponentials("any", torch.Size(shape), (zeros(shape, dtype=dtype), zeros(shape[:2], dtype=dtype)))


# Right calls; each row below changes one argument of one of them.
STATE = zeros(2, 4, 5, 6)
CONV_LSTM = {
    "x": zeros(2, 3, 3, 5, 6), "hx": (STATE, STATE), "weight_ih": zeros(16, 3, 3, 3), "weight_hh": zeros(16, 4, 3, 3),
    "bias": zeros(16), "peephole": zeros(3, 4),
}  # fmt: skip
CALLS = {
    "conv_lstm": (HF.conv_lstm, CONV_LSTM),
    "conv_lstm_cell": (HF.conv_lstm_cell, CONV_LSTM | {"x": zeros(2, 3, 5, 6)}),
    "additive_scores": (HF.additive_scores, {"query": zeros(2, 3, 7), "key": zeros(2, 5, 7), "v": zeros(7)}),
    "additive_attention": (
        HF.additive_attention,
        {"query": zeros(2, 3, 7), "key": zeros(2, 5, 7), "value": zeros(2, 5, 4), "v": zeros(7)},
    ),
    "location_attention": (
        HF.location_attention,
        {
            "query": zeros(2, 3, 7),
            "key": zeros(2, 5, 7),
            "value": zeros(2, 5, 4),
            "v": zeros(7),
            "history": zeros(2, 2, 5),
            "weight": zeros(7, 2, 3),
        },
    ),
    "prepare_exponentials": (HF.prepare_exponentials, {"key": zeros(2, 5, 7)}),
    "FusedConvLSTMCell": (FusedConvLSTMCell, {"input_dim": 3, "hidden_dim": 4, "kernel_size": 3}),
    "FusedConvLSTM": (FusedConvLSTM, {"input_dim": 3, "hidden_dim": 4, "kernel_size": 3, "num_layers": 2}),
    "FusedConcatAttention": (FusedConcatAttention, {"hidden_dim": 4}),
    "FusedAdditiveAttention": (FusedAdditiveAttention, {"query_dim": 4, "key_dim": 6, "attn_dim": 8}),
    "cell": (FusedConvLSTMCell(3, 4, 3), {"x_t": zeros(2, 3, 5, 6), "states": (STATE, STATE)}),
    "stack": (FusedConvLSTM(3, 4, 3), {"x": zeros(2, 3, 3, 5, 6), "hx": (STATE[None], STATE[None])}),
    "concat": (FusedConcatAttention(4), {"hidden": zeros(2, 4), "encoder_outputs": zeros(2, 5, 4)}),
    "attention": (FusedAdditiveAttention(4, 6, 8), {"query": zeros(2, 3, 4), "key": zeros(2, 5, 6)}),
    "prepare": (FusedAdditiveAttention(4, 6, 8).prepare, {"key": zeros(2, 5, 6)}),
}

V, T = ValueError, TypeError

# call, changed argument, its wrong value, error; then, where it is not the changed one, the name in the message
WRONG = [
    # types
    ("conv_lstm", "x", None, T),
    ("conv_lstm", "x", [[1.0]], T),
    ("conv_lstm", "hx", STATE, T),
    ("conv_lstm", "hx", (STATE, None), T, "c of hx"),
    ("conv_lstm", "hx", (None, STATE), T, "h of hx"),
    ("conv_lstm", "hx", (None, None), T, "h of hx"),
    ("conv_lstm", "hx", {"h": STATE, "c": STATE}, T),
    ("conv_lstm", "weight_ih", None, T),
    ("conv_lstm", "weight_hh", "zeros", T),
    ("conv_lstm", "bias", True, T),
    ("conv_lstm", "peephole", "channel", T),
    ("conv_lstm_cell", "x", None, T),
    ("conv_lstm_cell", "weight_ih", None, T),
    ("additive_scores", "query", None, T),
    ("additive_scores", "key", 1.0, T),
    ("additive_scores", "v", [0.0] * 7, T),
    ("additive_scores", "negative_slope", "0.1", T),
    ("additive_attention", "value", None, T),
    ("additive_attention", "mask", [[True]], T),
    ("additive_attention", "mask", zeros(2, 5), T),
    ("additive_attention", "score_bias", 1.0, T),
    ("additive_attention", "score_bias", true(2, 3, 5), T),
    ("additive_attention", "scale", "1", T),
    ("additive_attention", "scale", None, T),
    ("additive_attention", "dropout_p", True, T),
    ("additive_attention", "prepared", (zeros(2, 5, 7), zeros(2, 5)), T),
    ("location_attention", "history", None, T),
    ("location_attention", "mask", zeros(2, 5), T),
    ("prepare_exponentials", "key", None, T),
    ("prepare_exponentials", "activation", None, V),
    # dtypes
    ("conv_lstm", "x", zeros(2, 3, 3, 5, 6, dtype=torch.int64), T),
    ("conv_lstm", "x", zeros(2, 3, 3, 5, 6, dtype=torch.complex64), T),
    ("conv_lstm", "x", half(2, 3, 3, 5, 6), T, "weight_ih"),
    ("conv_lstm", "hx", (STATE.long(), STATE), T, "h of hx"),
    ("conv_lstm", "hx", (STATE, STATE.long()), T, "c of hx"),
    ("conv_lstm", "weight_hh", half(16, 4, 3, 3), T),
    ("conv_lstm", "bias", half(16), T),
    ("conv_lstm", "peephole", half(3, 4), T),
    ("additive_scores", "query", zeros(2, 3, 7, dtype=torch.int32), T),
    ("additive_scores", "key", half(2, 5, 7), T),
    ("additive_scores", "v", half(7), T),
    ("additive_attention", "value", half(2, 5, 4), T),
    ("additive_attention", "prepared", prepared(2, 5, 7, dtype=torch.float64), V),
    ("location_attention", "weight", half(7, 2, 3), T),
    # devices
    ("location_attention", "history", meta(2, 2, 5), V),
    ("location_attention", "mask", true(2, 5, device="meta"), V),
    ("conv_lstm", "hx", (meta(2, 4, 5, 6), STATE), V, "h of hx"),
    ("conv_lstm", "hx", (STATE, meta(2, 4, 5, 6)), V, "c of hx"),
    ("conv_lstm", "weight_ih", meta(16, 3, 3, 3), V),
    ("conv_lstm", "bias", meta(16), V),
    ("additive_scores", "key", meta(2, 5, 7), V),
    ("additive_attention", "value", meta(2, 5, 4), V),
    ("additive_attention", "mask", true(2, 5, device="meta"), V),
    ("additive_attention", "score_bias", meta(2, 3, 5), V),
    # shapes
    ("conv_lstm", "x", zeros(2, 3, 5, 6), V),
    ("conv_lstm", "weight_ih", zeros(16, 0, 3, 3), V),
    ("conv_lstm", "x", zeros(2, 3, 2, 5, 6), V),
    ("conv_lstm", "hx", (STATE,), V),
    ("conv_lstm", "hx", (STATE, STATE, STATE), V),
    ("conv_lstm", "hx", (STATE[:1], STATE), V, "h of hx"),
    ("conv_lstm", "hx", (STATE, STATE[:, :3]), V, "c of hx"),
    ("conv_lstm", "hx", (STATE[..., :5], STATE), V, "h of hx"),
    ("conv_lstm", "weight_ih", zeros(15, 3, 3, 3), V),
    ("conv_lstm", "weight_ih", zeros(0, 3, 3, 3), V),
    ("conv_lstm", "weight_ih", zeros(16, 3), V),
    ("conv_lstm", "weight_ih", zeros(16, 3, 3, 3, 3, 3), V),
    ("conv_lstm", "weight_ih", zeros(16, 3, 2, 3), V),
    ("conv_lstm", "weight_hh", zeros(16, 3, 3, 3), V),
    ("conv_lstm", "weight_hh", zeros(16, 4, 5, 5), V),
    ("conv_lstm", "bias", zeros(4), V),
    ("conv_lstm", "peephole", zeros(4, 4), V),
    ("conv_lstm", "peephole", zeros(3, 4, 5), V),
    ("conv_lstm", "peephole", zeros(3, 4, 6, 5), V),
    ("conv_lstm_cell", "x", zeros(2, 3, 3, 5, 6), V),
    ("additive_scores", "query", zeros(2, 7), V),
    ("additive_scores", "key", zeros(2, 5, 6), V),
    ("additive_scores", "key", zeros(3, 5, 7), V),
    ("additive_scores", "v", zeros(1, 7), V),
    ("additive_scores", "v", zeros(6), V),
    ("additive_attention", "value", zeros(2, 4, 4), V),
    ("additive_attention", "value", zeros(2, 5), V),
    ("additive_attention", "mask", true(2, 4), V),
    ("additive_attention", "mask", true(3, 5), V),
    ("additive_attention", "mask", true(2, 2, 5), V),
    ("additive_attention", "mask", true(1, 2, 3, 5), V),
    ("additive_attention", "score_bias", zeros(2, 5), V),
    ("additive_attention", "score_bias", zeros(1, 2, 3, 5), V),
    ("additive_attention", "prepared", prepared(2, 4, 7), V),
    ("additive_attention", "prepared", prepared(2, 5, 99), V),
    ("location_attention", "query", zeros(2, 7), V),
    ("location_attention", "value", zeros(2, 4, 4), V),
    ("location_attention", "history", zeros(2, 2, 4), V),
    ("location_attention", "weight", zeros(7, 1, 3), V),
    ("location_attention", "weight", zeros(7, 2, 4), V),
    ("location_attention", "weight", zeros(6, 2, 3), V),
    ("location_attention", "mask", true(2, 3, 5), V),
    ("location_attention", "scale", math.nan, V),
    ("prepare_exponentials", "key", zeros(5, 7), V),
    # values
    ("conv_lstm", "save", "everything", V),
    ("conv_lstm", "save", None, V),
    ("additive_scores", "activation", "gelu", V),
    ("additive_scores", "activation", None, V),
    ("additive_scores", "negative_slope", math.nan, V),
    ("additive_attention", "scale", math.inf, V),
    ("additive_attention", "dropout_p", 1.5, V),
    ("additive_attention", "dropout_p", -0.1, V),
    ("prepare_exponentials", "activation", "sigmoid", V),
    # modules: what the fused ones add, and that they check what the plain ones do
    ("FusedConvLSTMCell", "input_dim", 0, V),
    ("FusedConvLSTMCell", "kernel_size", 4, V),
    ("FusedConvLSTMCell", "peephole", "pixel", V),
    ("FusedConvLSTMCell", "gate_order", "ifgg", V),
    ("FusedConvLSTM", "hidden_dim", [4], V),
    ("FusedConvLSTM", "hidden_dim", 2.5, T),
    ("FusedConvLSTM", "kernel_size", [3, 3, 3], V),
    ("FusedConvLSTM", "save", "cells", V),
    ("FusedConvLSTM", "batch_first", 1, T),
    ("FusedConcatAttention", "hidden_dim", True, T),
    ("FusedAdditiveAttention", "attn_dim", -1, V),
    ("FusedAdditiveAttention", "dropout", 2.0, V),
    ("FusedAdditiveAttention", "activation", "Tanh", V),
    ("cell", "x_t", zeros(2, 2, 5, 6), V),
    ("cell", "x_t", zeros(5, 6), V),
    ("cell", "x_t", None, T),
    ("cell", "states", STATE, T),
    ("cell", "states", (STATE,), V),
    ("cell", "states", (STATE[:1], STATE), V, "h of states"),
    ("cell", "states", (STATE, None), T, "c of states"),
    ("stack", "x", zeros(3, 5, 6), V),
    ("stack", "x", zeros(2, 3, 2, 5, 6), V),
    ("stack", "x", half(2, 3, 3, 5, 6), T, "weight_ih"),
    ("stack", "hx", STATE, T),
    ("stack", "hx", (STATE, STATE), V, "h_0 of hx"),
    ("stack", "hx", (STATE[None], [STATE, STATE]), V, "c_0 of hx"),
    ("concat", "hidden", zeros(2, 5), V),
    ("concat", "encoder_outputs", zeros(3, 5, 4), V),
    ("concat", "encoder_outputs", None, T),
    ("concat", "mask", zeros(2, 5), T),
    ("attention", "query", zeros(2, 3, 6), V),
    ("attention", "query", zeros(3, 4), V),
    ("attention", "key", zeros(2, 5, 4), V),
    ("attention", "value", zeros(2, 6, 4), V),
    ("attention", "mask", true(2, 6), V),
    ("prepare", "key", None, T),
    ("prepare", "value", zeros(2, 5), V),
    ("prepare", "mask", true(3, 5), V),
]


def test_right_calls():
    """What the wrong ones are made of is right."""
    for function, arguments in CALLS.values():
        function(**arguments)


def describe(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} {value.device}"
    if isinstance(value, (tuple, list)):
        return f"({' '.join(map(describe, value))})"
    return type(value).__name__ if isinstance(value, (dict, HF.PreparedExponentials)) else repr(value)


@pytest.mark.parametrize("row", WRONG, ids=lambda row: f"{row[0]}-{row[1]}-{describe(row[2])}")
def test_wrong_argument(row):
    call, argument, value, error, name = row if len(row) == 5 else (*row, row[1])
    function, arguments = CALLS[call]
    with pytest.raises(error, match=rf"^{name} must .*, got "):
        function(**arguments | {argument: value})
