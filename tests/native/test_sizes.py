"""Every compiled op says what is wrong with its tensors, instead of reading what is not there.

All sizes differ, and every optional tensor is given, so that no size stands for another.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hybridops import native
from hybridops.native import additive_attention, attention_decoder
from tests import tolerances

B, T, C, H, Y, X, KY, KX = 2, 4, 5, 6, 7, 8, 3, 5
S, K, A, D, Q, MORE = 3, 9, 37, 10, 11, 4  # queries, keys, and the rows of a step, a multiple of B

# Of these sizes any is right: nothing else says what they are.
FREE = {
    ("conv_lstm_forward", "x", 0),
    ("additive_scores_forward", "q", 1),
    ("additive_attention_forward", "value", 2),
    ("additive_attention_step", "value", 2),
    *(("additive_prepare_keys", "k", dim) for dim in range(3)),
    ("attention_decoder_pack", "w_q", 0),
    ("linear_pack", "weight", 0),
    ("linear_pack", "weight", 1),
    ("linear_packed", "x", 0),
    ("linear_likeliest", "x", 0),
}
# From these the sizes of the others follow: where one is wrong, another may be named.
SOURCES = {
    "conv_lstm_forward": {"x", "w_hh"},
    "conv_lstm_backward": {"gates"},
    "conv_lstm_backward_from_states": {"x", "w_hh"},
    "conv_input_gradient": {"da", "weight"},
    "conv_weight_gradient": {"da", "x", "h", "dw_x"},
    "additive_scores_forward": {"q", "k"},
    "additive_scores_backward": {"q", "k"},
    "additive_attention_forward": {"q", "k"},
    "additive_attention_step": {"k", "projection", "query"},
    "attention_decoder_pack": {"w_q", "w_c"},
    "linear_packed": {"x"},
    "linear_likeliest": {"x"},
    "attention_decoder_forward": {"x_gates", "key", "value", "h0"},
    "attention_decoder_backward": {"gates", "key", "value", "h0"},
}
GRU = ", gru"  # behind the name of an op: with the arguments of a GRU, else of an LSTM
ABSENT = {
    "attention_decoder_forward": {"b_h"},
    "attention_decoder_forward" + GRU: {"cell0"},
    "attention_decoder_backward": {"hidden_n"},
    "attention_decoder_backward" + GRU: {"cell0", "cells", "grad_cell_n"},
}


def arguments(op: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Right ones, by name."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype) / 4

    state, states, weights = (B, Y, X, H), (T, B, Y, X, H), {"w_ih": (4 * H, C, KY, KX), "w_hh": (4 * H, H, KY, KX)}
    forward = {"x": (T, B, Y, X, C), "h0": state, "c0": state, **weights, "bias": (4 * H,), "peephole": (3, Y, X, H)}
    behind = {"grad_hs": states, "grad_hn": state, "grad_cn": state}
    factors = {"x": (T, B, Y, X, C), "h": (T, B, Y, X, H), "dw_x": weights["w_ih"], "dw_h": weights["w_hh"]}
    pairs = {"q": (B, S, A), "k": (B, K, A), "v": (A,)}
    op, gru = op.removesuffix(GRU), op.endswith(GRU)
    steps, gates = {"H": (B, S, H), "A": (B, S, A), "D": (B, S, D), "K": (B, S, K)}, (3 if gru else 4) * H
    decoder = {
        "key": (B, K, A), "value": (B, K, D), "v": (A,), "h0": (B, H), "cell0": (B, H), "context0": (B, D),
        "w_q": (A, H), "b_q": (A,), "w_c": (gates, D), "w_h": (gates, H), "b_h": (gates,), "w_beta": (D, H),
        "b_beta": (D,), "x_gates": (B, S, gates), "score_bias": steps["K"], "keep": steps["K"],
    }  # fmt: skip
    decoder_saved = {
        "output": steps["H"], "cells": steps["H"], "gates": (B, S, gates), "hidden_n": steps["H"],
        "queries": steps["A"], "alpha": steps["K"], "beta": steps["D"], "ungated": steps["D"],
    }  # fmt: skip
    decoder_grads = {
        "grad_output": steps["H"], "grad_h_n": (B, H), "grad_cell_n": (B, H), "grad_context": steps["D"],
        "grad_weights": steps["K"],
    }  # fmt: skip
    shapes = {
        "conv_lstm_forward": forward,
        "conv_lstm_backward": {**behind, "gates": (T, B, Y, X, 4 * H), "cs": states, **forward},
        "conv_lstm_backward_from_states": {**behind, **forward, "hs": states, "cs": states},
        "conv_input_gradient": {"da": (T, B, Y, X, 4 * H), "weight": weights["w_ih"], "dx": (T, B, Y, X, C)},
        "conv_weight_gradient": {"da": (T, B, Y, X, 4 * H), **factors},
        "additive_prepare_keys": pairs,
        "additive_scores_forward": pairs,
        "additive_attention_forward": {**pairs, "value": (B, K, D), "score_bias": (B, S, K)},
        "additive_attention_step": {
            **pairs, "query": (MORE, S, Q), "v": (1, A), "value": (B, K, D), "projection_bias": (A,),
        },
        "additive_scores_backward": {**pairs, "grad": (B, S, K)},
        "linear_pack": {"weight": (A, Q)},
        "linear_packed": {"x": (MORE, Q), "bias": (A,)},
        "linear_likeliest": {"x": (MORE, Q), "bias": (A,)},
        "attention_decoder_pack": decoder,
        "attention_decoder_forward": decoder,
        "attention_decoder_backward": {**decoder, **decoder_saved, **decoder_grads},
    }[op]  # fmt: skip
    given = {name: randn(*shape) for name, shape in shapes.items()}
    given |= {
        "save": 2,
        "reduced_precision": False,
        "winograd": 0,
        "need_dh0": True,
        "activation": 0,
        "negative_slope": 0.1,
        "scale": 1.0,
    }
    given |= {"need_weights": True}
    if op.startswith("attention_decoder"):
        given |= {"cell": int(gru), "query": 1, "lengths": torch.tensor([3, 2])}
    names = [argument.name for argument in schema(op).arguments]
    if "mask" in names:
        rows = MORE // B * S if op == "additive_attention_step" else S
        mask = torch.rand(B, 1, K, generator=generator).gt(0.3)
        given["mask"] = mask[:, 0] if op.startswith("attention_decoder") else mask.expand(B, rows, K)
    if "projection" in names:
        given["projection"] = randn(A, Q)
    if "key_exponentials" in names:
        k = given["key" if op.startswith("attention_decoder") else "k"]
        prepared = additive_attention.prepare_keys(k, "tanh") or (None, None)  # none where the GPU's ops run
        given["key_exponentials"], given["key_bounds"] = prepared
    if op in ("linear_packed", "linear_likeliest"):
        given |= {"outputs": A, "count": 2, "packed": torch.ops.hybridops.linear_pack(randn(A, Q))}
    elif "packed" in names:
        weights = [given[name] for name in ("w_q", "w_c", "w_h", "w_beta")]
        given["packed"] = attention_decoder.pack_weights(*weights, "gru" if gru else "lstm")  # none where the GPU's run
    absent = ABSENT.get(op + GRU * gru, ())
    return {name: None if name in absent else given[name] for name in names}


def schema(op: str) -> torch.FunctionSchema:
    return getattr(torch.ops.hybridops, op.removesuffix(GRU)).default._schema


def run(op: str, given: dict[str, Any]) -> list[Tensor]:
    """The outputs, and what was written into."""
    out = getattr(torch.ops.hybridops, op.removesuffix(GRU))(*given.values())
    written = [given[a.name] for a in schema(op).arguments if a.alias_info is not None and a.alias_info.is_write]
    return [*([out] if isinstance(out, Tensor) else out or ()), *written]


OPS = [op for op in native.OPS if op != "cpu_isa"] if native.unavailable_reason() is None else []
CASES = OPS + [op + GRU for op in OPS if op.startswith("attention_decoder")]


def is_free(op: str, name: str, dim: int) -> bool:
    """Where no exponentials of the keys are prepared, as on a GPU, nothing else says how many keys a score is of."""
    if (op, name, dim) == ("additive_scores_forward", "k", 1):
        return arguments(op)["key_exponentials"] is None
    return (op.removesuffix(GRU), name, dim) in FREE


each_op = pytest.mark.parametrize("op", CASES)
each_tensor = pytest.mark.parametrize(
    ("op", "name"),
    [
        (op, a.name)
        for op in CASES
        for a in schema(op).arguments
        if "Tensor" in str(a.type) and a.name not in ABSENT.get(op, ())
    ],
)


def assert_refused(op: str, name: str, wrong: Tensor | None) -> None:
    """With an error that names the op, and the tensor or one that is held against it."""
    called = op.removesuffix(GRU)
    with pytest.raises(RuntimeError, match=rf"hybridops::{called}: \w+ must .*, got ") as refusal:
        run(op, arguments(op) | {name: wrong})
    named = str(refusal.value).split(": ")[1].split()[0]
    assert named == name or name in SOURCES.get(called, ()), refusal.value


@each_op
def test_right_arguments(op):
    assert all(out.isfinite().all() for out in run(op, arguments(op)) if out.is_floating_point())


@each_tensor
def test_one_too_small(op, name):
    right = arguments(op)[name]
    for dim, size in enumerate(right.shape):
        if not is_free(op, name, dim):
            assert_refused(op, name, right.narrow(dim, 0, size - 1).contiguous())


@each_tensor
def test_one_too_large(op, name):
    right = arguments(op)[name]
    for dim in range(right.dim()):
        if not is_free(op, name, dim):
            assert_refused(op, name, torch.cat([right, right.narrow(dim, 0, 1)], dim))


@each_tensor
def test_dimensions(op, name):
    right = arguments(op)[name]
    assert_refused(op, name, right[None])
    if (op, name) != ("additive_attention_step", "v"):  # which may be (A,) too
        assert_refused(op, name, right[0])
    assert_refused(op, name, right.flatten()[0])


@each_tensor
def test_dtypes(op, name):
    right = arguments(op)[name]
    for dtype in {torch.int64, torch.complex64, torch.uint8} - {right.dtype}:
        assert_refused(op, name, right.to(dtype))
    if op not in ("additive_prepare_keys", "linear_pack"):  # whose one tensor may be of any
        for dtype in (torch.float64, torch.bfloat16):
            assert_refused(op, name, right.to(dtype))


@each_tensor
def test_strides(op, name):
    """Of whatever strides, the numbers are the same, or they are refused."""
    given = arguments(op)
    want = run(op, arguments(op))
    right = given[name]
    apart = torch.stack([right, right.logical_not().to(right.dtype)], -1)[..., 0]
    assert right.numel() == 1 or not apart.is_contiguous()
    refused = {  # read in one piece, or written
        "h0", "c0", "bias", "peephole", "grad_hn", "gates", "hs", "cs", "da", "dx", "dw_x", "dw_h",
        "key_exponentials", "key_bounds", "packed",
    }  # fmt: skip
    if op.startswith("attention_decoder"):
        refused = {"key_exponentials", "key_bounds", "packed"}
    if name in refused:
        refusal = rf"hybridops::{op.removesuffix(GRU)}: {name} must be contiguous, got strides \("
        with pytest.raises(RuntimeError, match=refusal):
            run(op, given | {name: apart})
    else:
        torch.testing.assert_close(run(op, given | {name: apart}), want, **tolerances.EXACT)


@pytest.mark.gpu
@each_tensor
def test_devices(op, name):
    right = arguments(op)
    with pytest.raises(RuntimeError):
        run(op, right | {name: right[name].cuda()})


PREPARED = [op for op in OPS if "key_bounds" in [a.name for a in schema(op).arguments]]


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("conv_weight_gradient", "h"), ("conv_weight_gradient", "dw_h"),
        *((op, name) for op in PREPARED for name in ("key_exponentials", "key_bounds")),
    ],
)  # fmt: skip
def test_both_or_none(op, name):
    with pytest.raises(RuntimeError, match=rf"hybridops::{op}: {name} must be given"):
        run(op, arguments(op) | {name: None})


@pytest.mark.parametrize("op", PREPARED)
@pytest.mark.parametrize("activation", [1, 2])
def test_prepared_keys_are_for_tanh(op, activation):
    """To another activation they are nothing."""
    given = arguments(op) | {"activation": activation}
    want = run(op, given | {"key_exponentials": None, "key_bounds": None})
    torch.testing.assert_close(run(op, given), want, **tolerances.EXACT)


@pytest.mark.parametrize("value", [-1, 3])
@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("additive_attention_forward", "activation"), ("conv_lstm_forward", "save"),
        *((op.removesuffix(GRU), "activation") for op in ABSENT),
    ],
)  # fmt: skip
def test_choices(op, name, value):
    with pytest.raises(RuntimeError, match=f"hybridops::{op}: {name} must be 0, 1 or 2, got {value}"):
        run(op, arguments(op) | {name: value})


@pytest.mark.parametrize("value", [-1, 2])
@pytest.mark.parametrize(
    ("op", "name"),
    [
        (op, a.name)
        for op in OPS
        if op.startswith("attention_decoder")
        for a in schema(op).arguments
        if a.name in ("cell", "query")
    ],
)
def test_kinds_of_decoder(op, name, value):
    with pytest.raises(RuntimeError, match=f"hybridops::{op}: {name} must be 0 or 1, got {value}"):
        run(op, arguments(op) | {name: value})


@pytest.mark.parametrize(
    ("op", "name"),
    [("attention_decoder_forward", "cell0"), *(("attention_decoder_backward", n) for n in ("cell0", "cells", "beta"))],
)
def test_what_a_decoder_needs(op, name):
    with pytest.raises(RuntimeError, match=rf"hybridops::{op}: {name} must be given .*, got None"):
        run(op, arguments(op) | {name: None})


@pytest.mark.parametrize("op", ABSENT)
def test_what_a_decoder_has_not(op):
    """An LSTM's argument for a GRU, and the other way round; a part of the gate without a gate."""
    other = op.removesuffix(GRU) if op.endswith(GRU) else op + GRU
    for name in ABSENT[op]:
        with pytest.raises(RuntimeError, match=rf": {name} must .*, got a tensor"):
            run(op, arguments(op) | {name: arguments(other)[name].new_zeros(wrong_shape(op, name))})
    gate = "b_beta" if "forward" in op else "beta"
    with pytest.raises(RuntimeError, match=rf": {gate} must .*, got a tensor"):
        run(op, arguments(op) | {"w_beta": None})


def wrong_shape(op: str, name: str) -> tuple[int, ...]:
    """Right ones but for the cell."""
    return {"b_h": (4 * H,), "cell0": (B, H), "grad_cell_n": (B, H)}.get(name, (B, S, H))
