"""Shapes drawn by hypothesis: the fastest back end that is here against the plain forms."""

from __future__ import annotations

from functools import partial

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.problems import (
    ACTIVATIONS,
    assert_parity,
    attention_inputs,
    conv_lstm_inputs,
    fused_attention,
    fused_conv_lstm,
    plain_attention,
    plain_conv_lstm,
)

dtypes = st.sampled_from([torch.float64, torch.float32])
channels = st.integers(1, 20)
odd = st.integers(0, 2).map(lambda half: 2 * half + 1)


@st.composite
def conv_lstm_sizes(draw):
    dims = draw(st.integers(1, 2))
    return {
        "batch": draw(st.integers(0, 3)),
        "steps": draw(st.integers(0, 4)),
        "channels": draw(channels),
        "hidden": draw(channels),
        "space": draw(st.tuples(*[st.integers(1, 12)] * dims)),
        "kernel": draw(st.tuples(*[odd] * dims)),
        "bias": draw(st.booleans()),
        "states": draw(st.booleans()),
        "peephole": draw(st.sampled_from([None, "channel", "spatial"])),
    }


MANY_TERMS = {  # on an Intel Xeon, whose plain sums are more exact, 80 of them in a row were too many
    "batch": 1, "steps": 2, "channels": 2, "hidden": 1, "space": (8, 10), "kernel": (1, 1), "bias": False,
    "states": False, "peephole": None,
}  # fmt: skip


@example(sizes=MANY_TERMS, save="gates", dtype=torch.float32)
@given(sizes=conv_lstm_sizes(), save=st.sampled_from(["gates", "recompute"]), dtype=dtypes)
def test_conv_lstm(sizes, save, dtype):
    assert_parity(plain_conv_lstm, fused_conv_lstm, conv_lstm_inputs(**sizes), dtype, save=save)


@st.composite
def attention_sizes(draw):
    sizes = {name: draw(st.integers(0, most)) for name, most in {"batch": 3, "queries": 20, "keys": 70}.items()}
    return sizes | {"width": draw(channels), "values": draw(channels), "score_bias": draw(st.booleans())}


@given(
    sizes=attention_sizes(),
    mask=st.sampled_from([None, ("batch", "keys"), ("batch", "queries", "keys"), ("one", "queries", "keys")]),
    masked=st.floats(0, 1),
    activation=st.sampled_from(ACTIVATIONS),
    scale=st.sampled_from([1.0, 0.3]),
    dtype=dtypes,
)
def test_additive_attention(sizes, mask, masked, activation, scale, dtype):
    if mask is not None:
        shape = [sizes.get(name, 1) for name in mask]
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) >= masked
    options = {"mask": mask, "activation": activation, "scale": scale}
    assert_parity(partial(plain_attention, **options), fused_attention, attention_inputs(**sizes), dtype, **options)
