"""functional.attention_decoder: every back end against a loop over PyTorch's own cells, values and gradients."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hybridops.functional as HF
from tests import tolerances
from tests.conftest import Target
from tests.decoder_problems import (
    CELLS,
    LENGTHS,
    MASK,
    QUERIES,
    VARIANTS,
    assert_decoder_parity,
    decoder_inputs,
    fused_decoder,
    plain_decoder,
    problem,
    with_location,
)
from tests.problems import Tensors, assert_parity, cast, with_gradients

cells = pytest.mark.parametrize("cell", CELLS)
queries = pytest.mark.parametrize("query", QUERIES)
variants = pytest.mark.parametrize("variant", VARIANTS)


def check(target: Target, inputs: Tensors, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> None:
    options = on(target, options)
    plain = partial(plain_decoder, **options)
    assert_decoder_parity(plain, fused_decoder, inputs, dtype, target.device, backend=target.backend, **options)


def on(target: Target, options: dict[str, Any]) -> dict[str, Any]:
    return {name: t.to(target.device) if isinstance(t, torch.Tensor) else t for name, t in options.items()}


# ---------------------------------------------------------------------------------------------------------- sizes


@cells
@queries
@variants
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_variants(target, cell, query, variant, dtype):
    check(target, *problem(cell, query, variant), dtype)


@cells
@queries
@pytest.mark.parametrize("variant", [name for name in VARIANTS if "relu" not in name and name != "everything"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(target, cell, query, variant, dtype):
    """Without kinks, on the other side of which rounding puts some."""
    check(target, *problem(cell, query, variant), dtype)


@cells
@queries
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 1, "steps": 1, "keys": 1, "inputs": 1, "hidden": 1, "width": 1, "values": 1},
        {"batch": 7, "hidden": 17, "width": 33, "values": 19, "inputs": 5},
        {"batch": 13, "steps": 3, "hidden": 65, "width": 70, "values": 130, "keys": 37},
        {"batch": 6, "steps": 9, "hidden": 64, "width": 64, "values": 64, "inputs": 64, "keys": 64},
        {"batch": 40, "steps": 2, "hidden": 31, "width": 16, "values": 48},
    ],
    ids=lambda sizes: "-".join(map(str, sizes.values())),
)
def test_sizes(target, cell, query, sizes, dtype):
    """Tiles are some rows and one to four vectors wide; no size has to be a multiple."""
    inputs = decoder_inputs(cell=cell, query=query, gate=True, score_bias=True, **sizes)
    check(target, inputs, {"cell": cell, "query": query}, dtype)


@cells
@queries
@pytest.mark.parametrize("empty", ["batch", "steps", "keys", "inputs", "width", "values"])
def test_empty(target, cell, query, empty):
    inputs = decoder_inputs(cell=cell, query=query, gate=True, **{empty: 0})
    if empty != "steps":
        check(target, inputs, {"cell": cell, "query": query})
        return
    results = fused_decoder(**inputs, cell=cell, query=query, backend=target.backend)
    assert {name: t.shape for name, t in results.items() if name not in ("h_n", "c_n")} == {
        "output": (3, 0, 6), "context": (3, 0, 4), "weights": (3, 0, 5)
    }  # fmt: skip
    states = {"h_n": "h0", "c_n": "c0"} if cell == "lstm" else {"h_n": "h0"}
    for name, first in states.items():
        torch.testing.assert_close(results[name], inputs[first], **tolerances.EXACT)
        assert results[name].data_ptr() != inputs[first].data_ptr()


@st.composite
def cases(draw):
    size = partial(st.integers, 1)
    sizes = {"batch": draw(size(9)), "steps": draw(size(5)), "keys": draw(size(40)), "inputs": draw(size(20))}
    sizes |= {"hidden": draw(size(40)), "width": draw(size(40)), "values": draw(size(40))}
    options = {"cell": draw(st.sampled_from(CELLS)), "query": draw(st.sampled_from(QUERIES))}
    inputs = decoder_inputs(
        **sizes, **options, gate=draw(st.booleans()), bias=draw(st.booleans()), score_bias=draw(st.booleans()),
        states=draw(st.booleans()),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        options["mask"] = torch.rand(sizes["batch"], sizes["keys"], generator=generator) > draw(st.floats(0, 1))
    if draw(st.booleans()):
        options["lengths"] = torch.randint(sizes["steps"] + 2, (sizes["batch"],), generator=generator)
    return inputs, options


@pytest.mark.slow
@given(case=cases())
def test_any_shapes(target, case):
    check(target, *case)


# ------------------------------------------------------------------------------------------------------- arguments


@cells
@queries
@pytest.mark.parametrize(("channels", "kernel"), [(2, 3), (1, 1), (2, 9), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_location(target, cell, query, channels, kernel, dtype):
    inputs, options = problem(cell, query, "everything")
    check(target, with_location(inputs, channels, kernel), options | {"activation": "tanh"}, dtype)


@pytest.mark.parametrize("variant", ["plain", "mask", "lengths", "score_bias, scale", "leaky_relu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_location_variants(target, variant, dtype):
    inputs, options = problem("lstm", "previous", variant)
    check(target, with_location(inputs), options, torch.float64 if "relu" in variant else dtype)


@cells
def test_location_and_dropout(target, cell):
    """What a location sees are the weights that made the contexts."""
    inputs = cast(with_location(decoder_inputs(cell=cell)), torch.float64, target.device)
    torch.manual_seed(0)
    ones = inputs["value"].new_ones(3, 1, 5)
    keep = torch.cat([torch.nn.functional.dropout(ones, 0.4) for _ in range(4)], 1)
    want = with_gradients(partial(plain_decoder, cell=cell, keep=keep), inputs)
    torch.manual_seed(0)
    got = with_gradients(fused_decoder, inputs, cell=cell, dropout_p=0.4, backend=target.backend)
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


@pytest.mark.parametrize("empty", ["batch", "inputs", "values"])
def test_empty_with_a_location(target, empty):
    check(target, with_location(decoder_inputs(**{empty: 0})), {})


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (5,), (3, 1), (1, 1), ()], ids=str)
def test_masks(target, shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    check(target, decoder_inputs(), {"mask": mask.expand(3, 5)})
    inputs, options = on(target, decoder_inputs()), {"backend": target.backend}
    want, got = (fused_decoder(**inputs, **options, mask=m.to(target.device)) for m in (mask.expand(3, 5), mask))
    torch.testing.assert_close(got, want, **tolerances.EXACT)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (4, 1), (5,), ()], ids=str)
def test_score_bias_shapes(target, shape):
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = decoder_inputs()
    options = {"backend": target.backend}
    inputs["score_bias"] = bias

    def plain(score_bias, **others):
        return plain_decoder(score_bias=score_bias.expand(3, 4, 5), **others)

    assert_parity(plain, fused_decoder, inputs, device=target.device, **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@cells
@queries
def test_lengths_of_any_size(target, cell, query, dtype):
    """Less than no step is none, and more than all are all."""
    options = {"cell": cell, "query": query}
    inputs = cast(decoder_inputs(**options), torch.float64, target.device)
    counts = torch.tensor([200, 0, 2] if dtype == torch.uint8 else [200, -1, 2], device=target.device)
    got = fused_decoder(**inputs, **options, lengths=counts.to(dtype), backend=target.backend)
    want = fused_decoder(**inputs, **options, lengths=counts.clamp(0, 4), backend=target.backend)
    torch.testing.assert_close(got, want, **tolerances.EXACT)
    assert not any(got[name][1].any() or got[name][2, 2:].any() for name in ("output", "context", "weights"))
    torch.testing.assert_close(got["h_n"][1], inputs["h0"][1], **tolerances.EXACT)
    torch.testing.assert_close(got["h_n"][2], got["output"][2, 1], **tolerances.EXACT)


@cells
@queries
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_inputs_behind_the_end_do_not_count(target, cell, query, garbage):
    options = {"cell": cell, "query": query, "lengths": LENGTHS.to(target.device)}
    options |= {"backend": target.backend}
    inputs = cast(decoder_inputs(cell=cell, query=query), torch.float64, target.device)
    want = with_gradients(fused_decoder, inputs, **options)
    behind = torch.arange(4, device=target.device) >= options["lengths"][:, None]
    changed = inputs | {"x": inputs["x"].masked_fill(behind[..., None], garbage)}
    got = with_gradients(fused_decoder, changed, **options)
    torch.testing.assert_close(got, want, **tolerances.EXACT)
    assert not got["d x"][behind].any()


@pytest.mark.parametrize("name", ["key", "score_bias"])
def test_what_is_masked_does_not_count(target, name):
    """Of finite keys and biases, results and gradients; a bias may be infinite."""
    options = {"mask": MASK.to(target.device), "backend": target.backend}
    inputs = cast(decoder_inputs(score_bias=True), torch.float64, target.device)
    want = with_gradients(fused_decoder, inputs, **options)
    masked = ~(options["mask"][..., None] if name == "key" else options["mask"][:, None])
    for garbage in (1e30, -torch.inf if name == "score_bias" else -1e30):
        got = with_gradients(fused_decoder, inputs | {name: inputs[name].masked_fill(masked, garbage)}, **options)
        torch.testing.assert_close(got, want, **tolerances.FLOAT64)


def test_a_row_that_may_attend_nothing(target):
    options = {"mask": MASK.to(target.device), "backend": target.backend}
    inputs = cast(decoder_inputs(gate=True), torch.float32, target.device)
    results = with_gradients(fused_decoder, inputs, **options)
    assert all(t.isfinite().all() for t in results.values())
    assert not any(results[name][1].any() for name in ("context", "weights", "d key", "d value"))
    assert all(results[name][0].any() for name in ("context", "weights", "d key", "d value"))
    assert results["d h0"][1].any()


@cells
@queries
def test_dropout(target, cell, query):
    """As a loop over the steps draws it; the weights are those of the contexts."""
    options = {"cell": cell, "query": query}
    inputs = cast(decoder_inputs(**options), torch.float64, target.device)
    torch.manual_seed(0)
    ones = inputs["value"].new_ones(3, 1, 5)
    keep = torch.cat([torch.nn.functional.dropout(ones, 0.4) for _ in range(4)], 1)
    want = with_gradients(partial(plain_decoder, **options, keep=keep), inputs)
    torch.manual_seed(0)
    got = with_gradients(fused_decoder, inputs, **options, dropout_p=0.4, backend=target.backend)
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)
    assert 0 < (got["weights"] == 0).sum() < got["weights"].numel()


@cells
def test_states_of_other_dtypes(target, cell):
    """c_n has that of the c given, or of x; the cell is float32 within."""
    inputs = cast(decoder_inputs(cell=cell), torch.bfloat16, target.device)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        states = {name: None if inputs[name] is None else inputs[name].to(dtype) for name in ("h0", "c0")}
        results = fused_decoder(**inputs | states, cell=cell, backend=target.backend)
        found = {name: t.dtype for name, t in results.items()}
        want = dict.fromkeys(found, torch.bfloat16) | ({"c_n": dtype} if cell == "lstm" else {})
        assert found == want


@cells
@queries
def test_autocast(target, cell, query):
    """As if the arguments came in bfloat16, but for the cell."""
    options = {"cell": cell, "query": query}
    inputs = cast(decoder_inputs(**options), torch.float32, target.device)
    with torch.autocast(target.device, torch.bfloat16):
        got = fused_decoder(**inputs, **options, backend=target.backend)
    halves = cast(inputs, torch.bfloat16) | {"c0": inputs["c0"]}
    want = fused_decoder(**halves, **options, backend=target.backend)
    torch.testing.assert_close(got, want, **tolerances.EXACT)
    assert {name: t.dtype for name, t in got.items() if name != "c_n"} == dict.fromkeys(
        want.keys() - {"c_n"}, torch.bfloat16
    )


@cells
@queries
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
        lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2],
        lambda x: x[..., :1].expand(x.shape),
        lambda x: x[:1].expand(x.shape),
    ],
    ids=["transposed", "every other", "expanded channels", "expanded first"],
)
def test_layouts(target, cell, query, layout):
    inputs = decoder_inputs(cell=cell, query=query, gate=True, score_bias=True)
    inputs = {name: t if t is None or t.dim() == 1 else layout(t) for name, t in inputs.items()}
    assert not any(t.is_contiguous() for t in inputs.values() if t is not None and t.dim() > 1)
    check(target, inputs, {"cell": cell, "query": query, "mask": layout(MASK)})


def test_results_are_no_views(target):
    """They may be written into, where no gradient is wanted, and nothing else changes."""
    inputs = cast(decoder_inputs(), torch.float64, target.device)
    results = fused_decoder(**inputs, backend=target.backend)
    want = {name: t.clone() for name, t in results.items()}
    for name, t in results.items():
        assert t._base is None
        t.zero_()
        for other in want.keys() - {name}:
            torch.testing.assert_close(results[other], want[other], **tolerances.EXACT)
        t.copy_(want[name])


def test_weights_left_out_change_nothing_else(target):
    inputs = cast(decoder_inputs(), torch.float32, target.device)
    want = fused_decoder(**inputs, backend=target.backend)
    names = ("x", "key", "value", "v", "weight_q", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "bias_q")
    output, (h_n, _), context, weights = HF.attention_decoder(
        **{name: inputs[name] for name in names}, hx=(inputs["h0"], inputs["c0"]), backend=target.backend
    )
    assert weights is None
    for name, t in (("output", output), ("h_n", h_n), ("context", context)):
        torch.testing.assert_close(t, want[name], **tolerances.EXACT)


# ---------------------------------------------------------------------------------------------------------- errors

WRONG = {
    "cell": ({"cell": "rnn"}, ValueError, "cell must be one of 'lstm', 'gru', got 'rnn'"),
    "query": ({"query": "next"}, ValueError, "query must be one of 'previous', 'current', got 'next'"),
    "activation": (
        {"activation": "gelu"}, ValueError, "activation must be one of 'tanh', 'relu', 'leaky_relu', got 'gelu'"
    ),
    "scale": ({"scale": float("nan")}, ValueError, "scale must be a finite number, got nan"),
    "dropout_p": ({"dropout_p": 1.5}, ValueError, "dropout_p must be a number in [0, 1], got 1.5"),
    "x": ({"x": torch.zeros(3, 4)}, ValueError, "x must have shape (B, S, E), got (3, 4)"),
    "no tensor": ({"x": [1]}, TypeError, "x must be a tensor of shape (B, S, E), got list"),
    "key": ({"key": torch.zeros(2, 5, 7)}, ValueError, "key must have shape (3, T, A), got (2, 5, 7)"),
    "value": ({"value": torch.zeros(3, 6, 4)}, ValueError, "value must have shape (3, 5, D), got (3, 6, 4)"),
    "v": ({"v": torch.zeros(6)}, ValueError, "v must have shape (7), got (6)"),
    "weight_q": ({"weight_q": torch.zeros(6, 6)}, ValueError, "weight_q must have shape (7, H), got (6, 6)"),
    "weight_ih": ({"weight_ih": torch.zeros(24, 6)}, ValueError, "weight_ih must have shape (24, 7), got (24, 6)"),
    "weight_hh": ({"weight_hh": torch.zeros(18, 6)}, ValueError, "weight_hh must have shape (24, 6), got (18, 6)"),
    "bias_ih": ({"bias_ih": torch.zeros(23)}, ValueError, "bias_ih must have shape (24), got (23)"),
    "bias_hh": ({"bias_hh": torch.zeros(23)}, ValueError, "bias_hh must have shape (24), got (23)"),
    "bias_q": ({"bias_q": torch.zeros(8)}, ValueError, "bias_q must have shape (7), got (8)"),
    "weight_gate": ({"weight_gate": torch.zeros(6, 4)}, ValueError, "weight_gate must have shape (4, 6), got (6, 4)"),
    "bias_gate": (
        {"bias_gate": torch.zeros(4)}, ValueError, "bias_gate must be None where weight_gate is None, got a tensor"
    ),
    "context0": (
        {"context0": torch.zeros(3, 4)}, ValueError, "context0 must be None where query is 'previous', got a tensor"
    ),
    "hx": ({"hx": torch.zeros(3, 6)}, TypeError, "hx must be a pair (h, c), got Tensor"),
    "h": ({"hx": (torch.zeros(3, 5),) * 2}, ValueError, "h of hx must have shape (3, 6), got (3, 5)"),
    "no c": ({"hx": (torch.zeros(3, 6), None)}, TypeError, "c of hx must be a tensor of shape (3, 6), got NoneType"),
    "score_bias's device": (
        {"score_bias": torch.zeros(5, device="meta")}, ValueError,
        "score_bias must be on the device of x, cpu, got meta",
    ),
    "c": ({"hx": (torch.zeros(3, 6), torch.zeros(2, 6))}, ValueError, "c of hx must have shape (3, 6), got (2, 6)"),
    "integers": (
        {"hx": (torch.zeros(3, 6).long(),) * 2}, TypeError, "h of hx must be a floating-point tensor, got torch.int64"
    ),
    "dtype": (
        {"value": torch.zeros(3, 5, 4).double()}, TypeError,
        "value must have the dtype of x, torch.float32, got torch.float64",
    ),
    "mask": (
        {"mask": torch.ones(3, 5)}, TypeError,
        "mask must be a boolean tensor (True = may be attended), got torch.float32; "
        "what is added to scores is `score_bias`",
    ),
    "mask's shape": (
        {"mask": MASK[:2]}, ValueError, "mask must be (3, 5) or broadcastable to (3, 1, 5), got (2, 5)"
    ),
    "score_bias": (
        {"score_bias": torch.zeros(4, 6)}, ValueError, "score_bias must be broadcastable to (3, 4, 5), got (4, 6)"
    ),
    "location": ({"location": torch.zeros(6, 2, 3)}, ValueError, "location must have shape (7, C, K), got (6, 2, 3)"),
    "location's channels": (
        {"location": torch.zeros(7, 3, 3)}, ValueError,
        "location must have 1 or 2 channels and an odd kernel, got (3, 3)",
    ),
    "no key for a location": (
        {"location": torch.zeros(7, 2, 3), "key": torch.zeros(3, 0, 7), "value": torch.zeros(3, 0, 4)}, ValueError,
        "key must have a position at least where there is a location, got none",
    ),
    "location's kernel": (
        {"location": torch.zeros(7, 2, 4)}, ValueError,
        "location must have 1 or 2 channels and an odd kernel, got (2, 4)",
    ),
    "location's dtype": (
        {"location": torch.zeros(7, 2, 3).double()}, TypeError,
        "location must have the dtype of x, torch.float32, got torch.float64",
    ),
    "lengths": ({"lengths": torch.ones(3)}, TypeError, "lengths must be a tensor of integers, got torch.float32"),
    "lengths' shape": ({"lengths": LENGTHS[:2]}, ValueError, "lengths must have shape (3), got (2)"),
    "device": (
        {"v": torch.zeros(7, device="meta")}, ValueError, "v must be on the device of x, cpu, got meta"
    ),
    "back end": (
        {"backend": "fast"}, ValueError, "backend must be one of 'reference', 'native', 'triton', got 'fast'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_errors(wrong):
    changed, error, message = WRONG[wrong]
    names = ("x", "key", "value", "v", "weight_q", "weight_ih", "weight_hh")
    inputs = cast(decoder_inputs(), torch.float32)
    arguments = {name: inputs[name] for name in names} | {"hx": None}
    HF.attention_decoder(**arguments)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        HF.attention_decoder(**arguments | changed)
