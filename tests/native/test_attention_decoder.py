"""The compiled attention decoder, op by op, against the formulas: every result, and every gradient that an op gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.contract import Activation, DecoderInputs, DecoderOptions, DecoderUpstreamGrads
from hybridops.formulas import attention_decoder as formulas
from hybridops.native import attention_decoder as native
from tests import tolerances
from tests.decoder_problems import CELLS, QUERIES, assert_decoder_captured
from tests.problems import SLOPE

SIZES = {"batch": 3, "steps": 4, "keys": 5, "hidden": 6, "width": 7, "values": 4}
ODD = [
    {"batch": 1, "steps": 1, "keys": 1, "hidden": 1, "width": 1, "values": 1},
    {"batch": 7, "steps": 3, "keys": 13, "hidden": 17, "width": 33, "values": 65},
    {"batch": 5, "steps": 2, "keys": 70, "hidden": 64, "width": 128, "values": 16},
    {"batch": 100, "steps": 2, "keys": 3, "hidden": 31, "width": 3, "values": 5},  # more rows than go together
    {"batch": 2, "steps": 3, "keys": 9, "hidden": 130, "width": 70, "values": 150},  # sums of several chunks
    {"batch": 2, "steps": 2, "keys": 1, "hidden": 3, "width": 5, "values": 300},
]
EMPTY = [SIZES | {name: 0} for name in SIZES]
# The CPU's own products give a row the same bits whatever the others are. PyTorch's, which csrc/cuda takes, and so its
# tests on the CPU, may sum up in another order (MKL on Intel's processors does): there float64 tells rounding from a
# fault.
PRODUCTS_ARE_PYTORCHS = "HYBRIDOPS_SHIM" in os.environ
ROWS_DTYPE, SAME_ROWS = (
    (torch.float64, tolerances.FLOAT64) if PRODUCTS_ARE_PYTORCHS else (torch.float32, tolerances.EXACT)
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no biases": {"without": ("b_q", "b_h", "b_beta", "context0")},
    "no gate": {"without": ("w_beta", "b_beta")},
    "relu": {"activation": "relu"},
    "leaky_relu": {"activation": "leaky_relu"},
    "scale, score_bias": {"scale": -0.7, "score_bias": True},
    "mask": {"mask": True},
    "keep": {"keep": True},
    "lengths": {"lengths": True},
    "everything": {"scale": 0.5, "score_bias": True, "mask": True, "keep": True, "lengths": True},
}
cells = pytest.mark.parametrize("cell", CELLS)
queries = pytest.mark.parametrize("query", QUERIES)


def problem(
    cell: str,
    query: str,
    *,
    batch: int,
    steps: int,
    keys: int,
    hidden: int,
    width: int,
    values: int,
    without: tuple[str, ...] = (),
    scale: float = 1.0,
    activation: str = "tanh",
    score_bias: bool = False,
    mask: bool = False,
    keep: bool = False,
    lengths: bool = False,
) -> tuple[DecoderInputs, DecoderOptions]:
    """In float64, with sums of order one."""
    generator = torch.Generator().manual_seed(0)
    rows, lstm = (4 if cell == "lstm" else 3) * hidden, cell == "lstm"

    def randn(*shape: int, fan_in: int = 1) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) / max(fan_in, 1) ** 0.5

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    allowed = rand(batch, keys) > 0.3
    allowed[:1] = False  # a row that may attend nothing
    inputs = DecoderInputs(
        randn(batch, steps, rows), randn(batch, keys, width), randn(batch, keys, values),
        3 * randn(width, fan_in=width),
        randn(batch, hidden), randn(batch, hidden) if lstm else None, randn(batch, values),
        randn(width, hidden, fan_in=hidden), randn(width),
        randn(rows, 3 + values, fan_in=values)[:, 3:], randn(rows, hidden, fan_in=hidden),
        None if lstm else randn(rows),
        randn(values, hidden, fan_in=hidden), randn(values),
        allowed if mask else None, randn(batch, steps, keys) if score_bias else None,
        (rand(batch, steps, keys) > 0.3).double() / 0.7 if keep else None,
        torch.randint(-1, steps + 2, (batch,), generator=generator) if lengths else None,
    )  # fmt: skip
    inputs = inputs._replace(**dict.fromkeys(without))
    return inputs, DecoderOptions(Activation(activation, SLOPE), scale, cell, query)


def to(inputs: DecoderInputs, dtype: torch.dtype) -> DecoderInputs:
    acc = accumulation_dtype(dtype)
    dtypes = {name: acc if name in ("cell0", "score_bias") else dtype for name in inputs._fields}
    return DecoderInputs(
        *(t.to(dtypes[name]) if t is not None and t.is_floating_point() else t for name, t in inputs._asdict().items())
    )


def results(module, inputs: DecoderInputs, options: DecoderOptions, upstream=None) -> dict[str, Tensor]:
    """All that both ops give, but for what is saved of steps behind the end of a row: anything."""
    states = module.attention_decoder_forward(inputs, options, True)
    generator = torch.Generator().manual_seed(1)
    grads = [
        None if t is None or (upstream and name not in upstream)
        # with bfloat16's few digits, so that in every dtype they are the same
        else torch.randn(t.shape, generator=generator).bfloat16().to(t)
        for name, t in zip(DecoderUpstreamGrads._fields, states[:5], strict=True)
    ]  # fmt: skip
    gradients = module.attention_decoder_backward(DecoderUpstreamGrads(*grads), inputs, options, states)
    found = {name: t for name, t in states._asdict().items() if t is not None}
    if inputs.lengths is not None:
        ended = torch.arange(inputs.x_gates.shape[1]) >= inputs.lengths[:, None]
        found |= {name: found[name].masked_fill(ended[..., None], 0.0) for name in states._fields[5:] if name in found}
    return found | {f"d {name}": t for name, t in gradients._asdict().items() if t is not None}


def assert_parity(inputs: DecoderInputs, options: DecoderOptions, dtype: torch.dtype, **others: Any) -> None:
    """In half precision all results together, by the largest error relative to the largest value of a result: what one
    step rounds all later ones have, so that of some the plain one is right by luck.
    """
    inputs = to(inputs, dtype)
    exact = results(formulas, to(inputs, torch.float64), options, **others)
    got = results(native, inputs, options, **others)
    assert {name: t.shape for name, t in got.items()} == {name: t.shape for name, t in exact.items()}
    if dtype == torch.float64:
        torch.testing.assert_close(got, exact, **tolerances.FLOAT64)
        return
    plain = results(formulas, inputs, options, **others)
    assert {name: t.dtype for name, t in got.items()} == {name: t.dtype for name, t in plain.items()}
    if dtype == torch.float32:
        for name, want in exact.items():
            error = tolerances.largest(got[name].double() - want)
            assert error <= tolerances.allowed_error(plain[name], want, dtype, options.scale), name
        return
    assert worst(got, exact) <= tolerances.TIMES_PLAIN * worst(plain, exact) + torch.finfo(dtype).eps


def worst(given: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    largest = {name: tolerances.largest(want) for name, want in exact.items()}
    assert all(tolerances.largest(given[name]) == 0 for name, value in largest.items() if value == 0)
    return max(tolerances.largest(given[n].double() - exact[n]) / value for n, value in largest.items() if value)


@cells
@queries
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_variants(cell, query, variant, dtype):
    assert_parity(*problem(cell, query, **SIZES, **VARIANTS[variant]), dtype)


@cells
@queries
@pytest.mark.parametrize("variant", ["plain", "mask", "keep", "lengths"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(cell, query, variant, dtype):
    assert_parity(*problem(cell, query, **ODD[1], **VARIANTS[variant]), dtype)


@cells
@queries
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", ODD, ids=lambda sizes: "-".join(map(str, sizes.values())))
def test_sizes(cell, query, sizes, dtype):
    assert_parity(*problem(cell, query, **sizes, lengths=True), dtype)


@cells
@queries
@pytest.mark.parametrize(
    "sizes", [s for s in EMPTY if s["steps"]], ids=lambda sizes: "-".join(map(str, sizes.values()))
)
def test_empty(cell, query, sizes):
    assert_parity(*problem(cell, query, **sizes), torch.float64)


@cells
def test_no_steps(cell):
    inputs, options = problem(cell, "current", **SIZES | {"steps": 0})
    states = native.attention_decoder_forward(inputs, options, True)
    assert states.output.shape == (3, 0, 6)
    torch.testing.assert_close(states.h_n, inputs.h0, **tolerances.EXACT)
    torch.testing.assert_close(states.cell_n, inputs.cell0, **tolerances.EXACT)
    grads = DecoderUpstreamGrads(None, states.h_n, states.cell_n, None, None)
    gradients = native.attention_decoder_backward(grads, inputs, options, states)
    torch.testing.assert_close(gradients.dh0, states.h_n, **tolerances.EXACT)
    torch.testing.assert_close(gradients.dcell0, states.cell_n, **tolerances.EXACT)
    assert not gradients.dcontext0.any()


@cells
@queries
@pytest.mark.parametrize("upstream", DecoderUpstreamGrads._fields)
def test_one_gradient(cell, query, upstream):
    """The others are None."""
    assert_parity(*problem(cell, query, **SIZES, **VARIANTS["everything"]), torch.float64, upstream=(upstream,))


@cells
@queries
@pytest.mark.parametrize("variant", ["plain", "everything"])
def test_nothing_saved(cell, query, variant):
    inputs, options = problem(cell, query, **ODD[1], **VARIANTS[variant])
    saved = native.attention_decoder_forward(inputs, options, True)
    states = native.attention_decoder_forward(inputs, options, False)
    torch.testing.assert_close(states[:5], saved[:5], **tolerances.EXACT)
    assert states[5:] == (None,) * 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("key", [1.0, 15.0, 30.0, 60.0, 200.0, 1000.0])
@pytest.mark.parametrize("query", [0.1, 15.0, 30.0, 60.0, 1000.0])
def test_magnitudes(query, key, dtype):
    """From all exponentials in range, of four, of two, of one, to none."""
    inputs, options = problem("lstm", "previous", **ODD[1])
    inputs = inputs._replace(w_q=0 * inputs.w_q, b_q=query * inputs.b_q, key=key * inputs.key)
    assert_parity(inputs, options, dtype)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
def test_masked_positions_do_not_count(garbage, activation):
    """Whatever their keys hold, and the gradients of their weights; nor do values behind the last that is allowed."""
    inputs, options = problem("lstm", "previous", **ODD[1], mask=True, activation=activation)
    want = results(native, inputs, options)
    key, value = inputs.key.clone(), inputs.value.clone()
    key[~inputs.mask] = garbage
    behind = ~inputs.mask.flip(1).cummax(1).values.flip(1)
    assert behind.sum() > inputs.mask.shape[1]
    value[behind] = garbage
    got = results(native, inputs._replace(key=key, value=value), options)
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)  # other keys beside one out of range take another form

    states = native.attention_decoder_forward(inputs, options, True)
    weights = torch.ones_like(states.weights)
    grads = [DecoderUpstreamGrads(None, None, None, None, w) for w in (weights, weights.clone())]
    grads[1].weights.masked_fill_(~inputs.mask[:, None], garbage)
    want, got = (native.attention_decoder_backward(g, inputs, options, states) for g in grads)
    torch.testing.assert_close(got, want, **tolerances.EXACT)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["key", "value", "x_gates", "w_q"])
@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_nonfinite(activation, name, value):
    """In the same places as by the formulas, and in no other row of the batch."""
    inputs, options = problem("lstm", "previous", **ODD[1], activation=activation)
    spoilt = getattr(inputs, name).clone()
    spoilt.flatten()[spoilt.numel() // 2] = value
    inputs = inputs._replace(**{name: spoilt})
    want, got = (module.attention_decoder_forward(inputs, options, True) for module in (formulas, native))
    for field in ("output", "context", "weights", "cells", "gates"):
        torch.testing.assert_close(
            getattr(got, field), getattr(want, field), equal_nan=True, **tolerances.FLOAT64, msg=field
        )


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepared_keys(cell, dtype):
    """The same bits, forward and backward."""
    inputs, options = problem(cell, "previous", **ODD[1], **VARIANTS["everything"])
    inputs = to(inputs, dtype)
    keys = native.prepare_keys(inputs.key, "tanh")
    want, got = (native.attention_decoder_forward(inputs, options, True, k) for k in (None, keys))
    torch.testing.assert_close(got, want, **tolerances.EXACT)
    grads = DecoderUpstreamGrads(want.output, None, None, want.context, None)
    want, got = (native.attention_decoder_backward(grads, inputs, options, got, k) for k in (None, keys))
    torch.testing.assert_close(got, want, **tolerances.EXACT)


PACKED = ("w_q", "w_c", "w_h", "w_beta")  # the weights


@cells
@queries
@pytest.mark.parametrize("without", [(), ("w_beta", "b_beta")], ids=["gate", "no gate"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_packed_weights(cell, query, without, dtype):
    """The same bits, a step at a time; the weights themselves are not read."""
    inputs, options = problem(cell, query, **ODD[1], without=without)
    inputs = to(inputs, dtype)
    packed = native.pack_weights(*(getattr(inputs, name) for name in PACKED), cell)
    keys = native.prepare_keys(inputs.key, "tanh")
    want = native.attention_decoder_forward(inputs, options, False)
    unread = {n: torch.full_like(w, torch.nan) for n in PACKED if (w := getattr(inputs, n)) is not None}
    state = inputs._replace(**unread)
    for s in range(inputs.x_gates.shape[1]):
        step = state._replace(x_gates=inputs.x_gates[:, s : s + 1])
        got = native.attention_decoder_forward(step, options, False, keys, packed)
        for name in ("output", "context", "weights"):
            torch.testing.assert_close(getattr(got, name)[:, 0], getattr(want, name)[:, s], **tolerances.EXACT)
        state = state._replace(h0=got.h_n, cell0=got.cell_n, context0=got.context[:, 0])
    torch.testing.assert_close((got.h_n, got.cell_n), (want.h_n, want.cell_n), **tolerances.EXACT)


@cells
@queries
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_rows_share_the_memory(cell, query, prepared, activation):
    """Three for each entry: the same bits as if it were there three times."""
    inputs, options = problem(cell, query, **(ODD[1] | {"batch": 6}), **VARIANTS["everything"])
    inputs, options = to(inputs, ROWS_DTYPE), options._replace(activation=Activation(activation, 0.01))
    entries = {name: getattr(inputs, name)[:2] for name in ("key", "value", "mask")}
    repeated = inputs._replace(**{name: t.repeat_interleave(3, 0) for name, t in entries.items()})
    shared = inputs._replace(**entries)
    keys = [native.prepare_keys(i.key, activation) if prepared else None for i in (repeated, shared)]
    want, got = (
        native.attention_decoder_forward(i, options, False, k) for i, k in zip((repeated, shared), keys, strict=True)
    )
    torch.testing.assert_close(got, want, **SAME_ROWS)


@pytest.mark.parametrize("entries", [0, 4, 5, 12])
def test_rows_that_cannot_share(entries):
    inputs, options = problem("lstm", "previous", **(ODD[1] | {"batch": 6}))
    memory = {
        name: getattr(inputs, name).new_zeros(entries, *getattr(inputs, name).shape[1:]) for name in ("key", "value")
    }
    with pytest.raises(RuntimeError, match=f"key must have an entry for each row, or for each so many, got {entries}"):
        native.attention_decoder_forward(inputs._replace(**memory), options, False)


@pytest.mark.parametrize("change", [*SIZES, "dtype", "cell"])
def test_packed_for_another(change):
    """Of another dtype, cell, or size they are refused, also where they are as many bytes."""
    other = SIZES | ({change: SIZES[change] + 1} if change in SIZES else {})
    inputs, options = problem("lstm", "previous", **SIZES)
    of_other, _ = problem("gru" if change == "cell" else "lstm", "previous", **other)
    if change == "dtype":
        of_other = to(of_other, torch.float16)
        inputs = to(inputs, torch.float32)  # on the same operands
    packed = native.pack_weights(*(getattr(of_other, name) for name in PACKED), "gru" if change == "cell" else "lstm")
    if change in ("batch", "steps", "keys"):
        want, got = (native.attention_decoder_forward(inputs, options, False, None, p) for p in (None, packed))
        assert got.output.isfinite().all()
        assert got.output.shape == want.output.shape
        return
    with pytest.raises(RuntimeError, match="hybridops::attention_decoder_forward: packed must "):
        native.attention_decoder_forward(inputs, options, False, None, packed)


@pytest.mark.parametrize("name", ["w_q", "w_c", "w_h", "w_beta", "mask", "keep", "score_bias", "x_gates", "lengths"])
def test_strides(name):
    inputs, options = problem("lstm", "current", **ODD[1], **VARIANTS["everything"])
    given = getattr(inputs, name)
    layouts = [torch.stack([given, given], -1)[..., 0]]
    if given.dim() > 1:
        layouts += [given.transpose(-1, -2).contiguous().transpose(-1, -2)]
    for layout in layouts:
        got, want = (results(native, i, options) for i in (inputs._replace(**{name: layout}), inputs))
        torch.testing.assert_close(got, want, **tolerances.EXACT)


@pytest.fixture
def _thread_count() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("_thread_count")
@cells
@queries
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [2, 13, 131])
def test_threads(cell, query, dtype, batch):
    """The same bits, whichever rows go together."""
    inputs, options = problem(cell, query, **ODD[1] | {"batch": batch}, **VARIANTS["everything"])
    inputs = to(inputs, dtype)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(results(native, inputs, options))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **tolerances.EXACT)


@pytest.mark.parametrize("name", ["output", "context"])
def test_rows_are_independent(name):
    """A row alone has the bits that it has among others."""
    inputs, options = problem("gru", "previous", **ODD[1])
    together = getattr(native.attention_decoder_forward(inputs, options, False), name)
    alone = inputs._replace(**{n: getattr(inputs, n)[4:5] for n in ("x_gates", "key", "value", "h0", "context0")})
    torch.testing.assert_close(
        getattr(native.attention_decoder_forward(alone, options, False), name), together[4:5], **SAME_ROWS
    )


@pytest.mark.gpu
@cells
@queries
def test_captured_in_a_cuda_graph(cell, query):
    assert_decoder_captured(cell, query, "native")
