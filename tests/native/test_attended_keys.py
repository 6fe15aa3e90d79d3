"""Keys behind a mask that are left out: the numbers are those of a call that computes all of them."""

from __future__ import annotations

import math
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import hybridops.functional as HF
from hybridops.functional import attended_keys
from tests import tolerances
from tests.decoder_problems import decoder_inputs, fused_decoder, plain_decoder
from tests.problems import assert_parity, attention_inputs, cast, fused_attention, plain_attention, with_gradients

QUERIES = attended_keys.FEWEST_QUERIES
native = partial(fused_attention, backend="native")


def few(batch: int, keys: int, seed: int = 0) -> torch.Tensor:
    """(batch, keys), fewer than half of each entry's, of the last one none."""
    share = torch.linspace(0.45, 0.0, batch)[:, None] if batch > 1 else torch.full((1, 1), 0.45)
    order = torch.rand(batch, keys, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order < (share * keys).floor()


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """How many keys the calls leave, None of one that computes all."""
    numbers = []

    def spy(*args):
        found = attended_keys.attended_keys(*args)
        numbers.append(None if found is None else found.mask.shape[2])
        return found

    for module in (HF.additive_attention, HF.attention_decoder):
        monkeypatch.setitem(module.__globals__, "attended_keys", spy)
    return numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", ["(B, T)", "(B, 1, T)", "(T,)"])
def test_attention(seen, shape, biased, dtype):
    inputs = attention_inputs(batch=3, queries=QUERIES, keys=41, width=19, values=13, score_bias=biased)
    mask = {"(B, T)": few(3, 41), "(B, 1, T)": few(3, 41)[:, None], "(T,)": few(1, 41)[0]}[shape]
    assert_parity(partial(plain_attention, mask=mask), native, inputs, dtype, mask=mask)
    assert seen == [18]
    results = with_gradients(native, inputs, mask=mask)
    behind = ~mask.reshape(-1, 41).expand(3, 41)
    assert not results["d key"][behind].any()
    assert not results["d value"][behind].any()


@given(
    batch=st.integers(1, 5), queries=st.integers(QUERIES, 20), keys=st.integers(2, 70), width=st.integers(1, 40),
    values=st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_sizes(batch, queries, keys, width, values, seed):
    inputs = attention_inputs(batch=batch, queries=queries, keys=keys, width=width, values=values)
    options = {"mask": few(batch, keys, seed)}
    got, want = (with_gradients(form, inputs, **options) for form in (native, plain_attention))
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


@given(
    batch=st.integers(1, 4), queries=st.integers(1, 70), keys=st.integers(1, 90), seed=st.integers(0, 99),
    own=st.booleans(), activation=st.sampled_from(["tanh", "relu"]),
)  # fmt: skip
def test_ends(batch, queries, keys, seed, own, activation):
    """Of keys that end before the others, or that no query of some may attend to, in the kernels themselves."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, keys + 1, (batch, queries if own else 1, 1), generator=generator)
    options = {"mask": torch.arange(keys) < ends, "activation": activation}
    inputs = attention_inputs(batch=batch, queries=queries, keys=keys, width=9, values=21)
    with mock.patch.object(attended_keys, "MOST_ATTENDED", -1):
        got = with_gradients(native, inputs, **options)
    torch.testing.assert_close(got, with_gradients(plain_attention, inputs, **options), **tolerances.FLOAT64)


@pytest.mark.parametrize("wanted", [{"return_lse": True}, {"return_lse": True, "return_weights": True}])
def test_log_sum_exp(seen, wanted):
    inputs = cast(attention_inputs(batch=2, queries=QUERIES, keys=30), torch.float64)
    options = {"mask": few(2, 30), **wanted}
    del inputs["score_bias"]
    got, want = (HF.additive_attention(**inputs, **options, backend=name) for name in ("native", "reference"))
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)
    assert seen == [13, None]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["query", "key", "value", "v"])
def test_what_is_not_finite_is_computed(seen, name, value):
    """Also behind the mask: its products with zeros come out as those of the other back ends."""
    inputs = attention_inputs(batch=2, queries=QUERIES, keys=30)
    mask = few(2, 30)
    masked = int((~mask[0]).nonzero()[0])
    (inputs[name] if name == "v" else inputs[name][0, min(masked, QUERIES - 1)])[0] = value
    got, want = (with_gradients(fused_attention, inputs, mask=mask, backend=b) for b in ("native", "reference"))
    torch.testing.assert_close(got, want, equal_nan=True, **tolerances.FLOAT64)
    assert seen == [None, None]


def test_second_derivatives(seen):
    inputs = {name: t for name, t in attention_inputs(queries=QUERIES, keys=6).items() if t is not None}
    leaves = [t.requires_grad_() for t in inputs.values()]

    def attend(*tensors):
        return HF.additive_attention(
            **dict(zip(inputs, tensors, strict=True)), mask=mask, return_weights=True, backend="native"
        )

    mask = torch.tensor([[True, False, False, True, False, False], [False, True, False, False, False, False]])
    assert gradcheck(attend, leaves)
    assert gradgradcheck(attend, leaves)
    assert set(seen) == {2}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("options", [{}, {"lengths": torch.tensor([QUERIES, 0, 3])}], ids=["", "lengths"])
def test_decoder(seen, cell, options):
    inputs = decoder_inputs(batch=3, steps=QUERIES, keys=37, cell=cell, gate=True, score_bias=True)
    options = {"mask": few(3, 37), "cell": cell, **options}
    got = with_gradients(fused_decoder, inputs, backend="native", **options)
    torch.testing.assert_close(got, with_gradients(plain_decoder, inputs, **options), **tolerances.FLOAT64)
    assert seen == [16]


def test_decoder_with_dropout(seen):
    """The same weights are dropped as of all keys."""
    inputs = decoder_inputs(batch=3, steps=QUERIES, keys=37)
    options = {"mask": few(3, 37), "dropout_p": 0.4, "backend": "native"}
    results = []
    for most in (0.5, -1):
        torch.manual_seed(0)
        with mock.patch.object(attended_keys, "MOST_ATTENDED", most):
            results.append(with_gradients(fused_decoder, inputs, **options))
    torch.testing.assert_close(*results, **tolerances.FLOAT64)
    assert seen == [16, None]


@pytest.mark.parametrize(
    ("queries", "options"), [(QUERIES - 1, {}), (QUERIES, {"dropout_p": 0.1}), (QUERIES, {"backend": "reference"})]
)
def test_all_keys_are_computed(seen, queries, options):
    """Of few queries, for which keys are not worth moving; of other back ends; and where weights are dropped."""
    inputs = attention_inputs(queries=queries, keys=30)
    fused_attention(**inputs, mask=few(2, 30), **{"backend": "native", **options})
    assert set(seen) <= {None}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_captured(seen):
    """Under torch.compile and vmap, and while tracing, nothing depends on what the mask holds."""
    inputs = cast(attention_inputs(queries=QUERIES, keys=30), torch.float64)
    del inputs["score_bias"]

    def attend(mask):
        return HF.additive_attention(**inputs, mask=mask, backend="native")

    one, other = few(2, 30), few(2, 30, seed=1)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        traced = torch.jit.trace(attend, (one,), check_trace=False)
    batched = torch.vmap(attend)(torch.stack([one, other]))
    assert set(seen) <= {None}
    for form in (compiled, traced, lambda mask: batched[int(mask is other)]):
        for mask in (one, other):
            torch.testing.assert_close(form(mask), attend(mask), **tolerances.FLOAT64)
