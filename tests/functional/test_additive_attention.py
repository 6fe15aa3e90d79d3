"""functional.additive_scores and additive_attention: every back end against text books, values and gradients."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import hybridops.functional as HF
from tests import tolerances
from tests.problems import (
    ACTIVATIONS,
    DTYPES,
    SLOPE,
    assert_parity,
    attention_inputs,
    cast,
    fused_attention,
    plain_attention,
    plain_scores,
    with_gradients,
)

activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def check(target, dtype=torch.float64, activation="tanh", mask=None, scale=1.0, **sizes) -> None:
    options = {"activation": activation, "mask": None if mask is None else mask.to(target.device), "scale": scale}
    inputs, plain = attention_inputs(**sizes), partial(plain_attention, **options)
    assert_parity(plain, fused_attention, inputs, dtype, target.device, backend=target.backend, **options)


def plain_scores_alone(query, key, v, activation):
    return {"scores": plain_scores(query, key, v, activation)}


def scores_alone(query, key, v, **options):
    return {"scores": HF.additive_scores(query, key, v, negative_slope=SLOPE, **options)}


# ---------------------------------------------------------------------------------------------------------- sizes


@activations
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [*range(1, 21), 33, 63, 64, 65, 130])
def test_widths(target, dtype, width, activation):
    """Vectors hold 4, 8 or 16 channels, and four of them may share a reciprocal; no width has to be a multiple."""
    check(target, dtype, activation, queries=2, keys=3, width=width)


@activations
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 70), (3, 4), (5, 7), (17, 65), (33, 2), (40, 131)])
def test_queries_and_keys(target, dtype, queries, keys, activation):
    """Tiles are a few keys and queries large, blocks some dozens."""
    check(target, dtype, activation, queries=queries, keys=keys, width=9)


@activations
@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 1, "queries": 130, "keys": 70, "width": 37},
        {"batch": 1, "queries": 9, "keys": 200, "width": 5},
    ],
    ids=["many queries", "many keys"],
)
def test_many_tiles(target, sizes, activation):
    check(target, torch.float32, activation, **sizes)


def test_many_tiles_of_a_large_batch(target):
    """So many that on a GPU a block of threads takes several in turn."""
    check(target, torch.float32, "relu", batch=520, queries=70, keys=8, width=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 128, "queries": 1, "keys": 530, "width": 2}, {"batch": 128, "queries": 9, "keys": 150, "width": 3},
        {"batch": 2, "queries": 3, "keys": 300, "width": 5}, {"batch": 2, "queries": 20, "keys": 300, "width": 5},
    ],
    ids=["single", "stretches", "shares of few", "shares"],
)  # fmt: skip
def test_long_rows(target, sizes, dtype):
    """So long that on a GPU a block of threads takes the keys in stretches, or that they are shared out among blocks.
    Some queries find nothing to attend to in their first half, some nowhere.
    """
    shape = sizes["batch"], sizes["queries"], sizes["keys"]
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[0, :, : shape[2] // 2], mask[1] = False, False
    check(target, dtype, mask=mask, score_bias=True, **sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [2, 9])
@pytest.mark.parametrize("values", [1, 8, 70, 264])
def test_widths_of_values(target, values, queries, dtype):
    check(target, dtype, queries=queries, keys=11, values=values)


@activations
@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 0}, {"queries": 0}, {"keys": 0}, {"width": 0}, {"values": 0}, {"batch": 0, "keys": 0},
        {"batch": 1, "queries": 1, "keys": 1, "width": 1, "values": 1},
    ],
    ids=["no batch", "no queries", "no keys", "no channels", "no values", "no batch, no keys", "one of everything"],
)  # fmt: skip
def test_empty_and_single(target, sizes, activation):
    check(target, activation=activation, **sizes)


@activations
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(target, dtype, activation):
    sizes = {"batch": 3, "queries": 13, "keys": 21, "width": 40, "values": 10}
    check(target, dtype, activation, **sizes)
    inputs = {name: attention_inputs(**sizes)[name] for name in ("query", "key", "v")}
    assert_parity(
        partial(plain_scores_alone, activation=activation),
        scores_alone,
        inputs,
        dtype,
        target.device,
        activation=activation,
        backend=target.backend,
    )
    inputs = cast(inputs, dtype, target.device)
    assert HF.additive_scores(**inputs, activation=activation, backend=target.backend).dtype == dtype


# ------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 5), (1, 5), (5,), (2, 3, 5), (2, 1, 5), (1, 3, 5), (2, 3, 1), (1, 1, 1), (1,), ()], ids=str
)
def test_masks(target, shape, dtype):
    """Some rows are masked in part, some wholly; gradients of those are zeros, as in the text-book form."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    check(target, dtype, mask=mask)


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_a_row_that_may_attend_nothing(target, dropout_p):
    inputs = cast(attention_inputs(), torch.float32, target.device)
    mask = torch.ones(2, 3, 5, dtype=torch.bool, device=target.device)
    mask[0, 1] = False
    mask[1] = False
    options = {"mask": mask, "backend": target.backend, "dropout_p": dropout_p}
    results = with_gradients(fused_attention, inputs, **options)
    assert all(tensor.isfinite().all() for tensor in results.values())
    for name in ("context", "weights", "d query"):
        assert not results[name][0, 1].any()
    for name in ("context", "weights", "d query", "d key", "d value"):
        assert not results[name][1].any()
        assert results[name][0].any()


def test_a_masked_position_does_not_count_whatever_it_holds(target):
    inputs = cast(attention_inputs(), torch.float64, target.device)
    mask = torch.tensor([True, True, False, True, False], device=target.device)
    want = with_gradients(fused_attention, inputs, mask=mask, backend=target.backend)
    for garbage in (math.nan, math.inf, 1e30):
        changed = inputs | {"key": inputs["key"].clone()}
        changed["key"][:, ~mask] = garbage
        got = fused_attention(**changed, mask=mask, backend=target.backend)
        torch.testing.assert_close(got, {name: want[name] for name in got}, **tolerances.FLOAT64)


@activations
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, -0.7, 30.0])
def test_scale_bias_and_mask(target, dtype, scale, activation):
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    check(target, dtype, activation, mask, scale, score_bias=True)


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 3, 5), (2, 1, 1), (3, 5), (5,), (3, 1), ()], ids=str)
def test_score_bias_shapes(target, shape):
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = attention_inputs() | {"score_bias": bias}
    assert_parity(plain_attention, fused_attention, inputs, device=target.device, backend=target.backend)


def test_dropout_zeroes_weights_and_scales_up_the_others(target):
    inputs = cast(attention_inputs(keys=50), torch.float64, target.device)
    torch.manual_seed(0)
    dropped = fused_attention(**inputs, dropout_p=0.3, backend=target.backend)
    full = fused_attention(**inputs, backend=target.backend)
    kept = dropped["weights"] != 0
    assert 0.6 < kept.double().mean() < 0.8  # of 300 weights: within four standard deviations of 0.7
    torch.testing.assert_close(dropped["weights"][kept], full["weights"][kept] / 0.7, **tolerances.FLOAT64)
    torch.testing.assert_close(dropped["context"], dropped["weights"] @ inputs["value"], **tolerances.FLOAT64)
    torch.manual_seed(0)
    again = fused_attention(**inputs, dropout_p=0.3, backend=target.backend)
    torch.testing.assert_close(again, dropped, **tolerances.EXACT)
    everything = fused_attention(**inputs, dropout_p=1.0, backend=target.backend)
    assert not everything["context"].any()


def test_weights_are_returned_on_request(target):
    inputs = cast(attention_inputs(), torch.float32, target.device)
    del inputs["score_bias"]
    want = fused_attention(**inputs, backend=target.backend)
    context = HF.additive_attention(**inputs, negative_slope=SLOPE, backend=target.backend)
    torch.testing.assert_close(context, want["context"], **tolerances.EXACT)


# --------------------------------------------------------------------------------------------------- log-sum-exp


def plain_with_lse(query, key, value, v, score_bias=None, mask=None, scale=1.0, activation="tanh"):
    """Of rows that may attend something."""
    scores = scale * plain_scores(query, key, v, activation)
    scores = scores if score_bias is None else scores + score_bias
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return {**plain_attention(query, key, value, v, score_bias, mask, scale, activation), "lse": scores.logsumexp(-1)}


def fused_with_lse(query, key, value, v, score_bias=None, **options):
    names = ("context", "weights", "lse")
    results = HF.additive_attention(
        query, key, value, v, score_bias=score_bias, negative_slope=SLOPE, return_weights=True, return_lse=True,
        **options,
    )  # fmt: skip
    return dict(zip(names, results, strict=True))


@activations
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_log_sum_exp(target, dtype, masked, activation):
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.3 if masked else None
    assert mask is None or mask.any(-1).all()
    options = {"scale": 0.7, "activation": activation, "mask": None if mask is None else mask.to(target.device)}
    inputs = attention_inputs(score_bias=True)
    plain = partial(plain_with_lse, **options)
    assert_parity(plain, fused_with_lse, inputs, dtype, target.device, backend=target.backend, **options)
    inputs = cast(inputs, dtype, target.device)
    lse = fused_with_lse(**inputs, backend=target.backend, **options)["lse"]
    assert lse.dtype == torch.promote_types(dtype, torch.float32)


def test_log_sum_exp_of_a_row_that_may_attend_nothing(target):
    """-inf, with zero gradients, also where the loss has an infinite derivative there."""
    inputs = cast(attention_inputs(), torch.float64, target.device)
    leaves = {name: t.requires_grad_() for name, t in inputs.items() if t is not None}
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool, device=target.device)
    results = fused_with_lse(**leaves, mask=mask, backend=target.backend)
    assert results["lse"][1].eq(-math.inf).all()
    for create_graph in (False, True):  # by the back end, and by the formulas
        loss = results["context"].sum() + results["lse"].square().sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, create_graph=create_graph)
        for name, grad in zip(leaves, grads, strict=True):
            assert grad.isfinite().all()
            assert name == "v" or (grad[0].any() and not grad[1].any())


@pytest.mark.parametrize("sizes", [{"keys": 0}, {"queries": 0}, {"batch": 0}, {"values": 0}, {"width": 0}], ids=str)
def test_log_sum_exp_of_nothing(target, sizes):
    inputs = cast(attention_inputs(**sizes), torch.float32, target.device)
    results = fused_with_lse(**inputs, backend=target.backend)
    wanted = {"keys": -math.inf, "width": math.log(5)}
    assert results["lse"].shape == results["context"].shape[:2]
    if "width" in sizes or "keys" in sizes:
        want = torch.full_like(results["lse"], wanted[next(iter(sizes))])
        torch.testing.assert_close(results["lse"], want)
    got = with_gradients(fused_with_lse, inputs, backend=target.backend)
    assert all(t.isfinite().all() for name, t in got.items() if name != "lse")


@pytest.mark.parametrize("training", [True, False])
def test_log_sum_exp_alone(target, training):
    """Without the weights, and the same under dropout, which comes after it."""
    inputs = cast(attention_inputs(), torch.float64, target.device)
    want = fused_with_lse(**inputs, backend=target.backend)
    inputs["query"].requires_grad_(training)
    del inputs["score_bias"]
    context, lse = HF.additive_attention(**inputs, return_lse=True, backend=target.backend)
    torch.testing.assert_close((context, lse), (want["context"], want["lse"]), **tolerances.FLOAT64)
    _, lse = HF.additive_attention(**inputs, return_lse=True, dropout_p=0.5, backend=target.backend)
    torch.testing.assert_close(lse, want["lse"], **tolerances.FLOAT64)
    prepared = HF.prepare_exponentials(inputs["key"], backend=target.backend)
    got = HF.additive_attention(**inputs, return_lse=True, prepared=prepared, backend=target.backend)
    torch.testing.assert_close(got, (context, want["lse"]), **tolerances.FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sentinel_joins_the_softmax(target, dtype):
    """By the log-sum-exp alone: what is concatenated in the text book (Lu et al. 2017), gradients included."""
    inputs = attention_inputs() | {"sentinel": torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 3, 2)}
    del inputs["score_bias"]

    def plain(query, key, value, v, sentinel):
        score, shown = sentinel.split(1, -1)
        weights = torch.cat([plain_scores(query, key, v), score], -1).softmax(-1)
        return {"context": weights[..., :-1] @ value + weights[..., -1:] * shown}

    def fused(query, key, value, v, sentinel, backend):
        score, shown = sentinel.split(1, -1)
        context, lse = HF.additive_attention(query, key, value, v, return_lse=True, backend=backend)
        beta = torch.sigmoid(score - lse[..., None])
        return {"context": beta * shown + (1 - beta) * context}

    assert_parity(plain, fused, inputs, dtype, target.device, backend=target.backend)


# --------------------------------------------------------------------------------------------- layouts and magnitudes


@activations
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
        lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2],
        lambda x: x[..., :1].expand(x.shape),
        lambda x: x[:1].expand(x.shape),
    ],
    ids=["transposed", "every other", "expanded channels", "expanded batch"],
)
def test_layouts(target, layout, activation):
    inputs = attention_inputs(score_bias=True)
    inputs = {name: t if name == "v" else layout(t) for name, t in inputs.items()}
    inputs["v"] = torch.stack([inputs["v"]] * 2, 1)[:, 0]
    assert not any(t.is_contiguous() for t in inputs.values())
    plain = partial(plain_attention, activation=activation)
    options = {"activation": activation, "backend": target.backend}
    assert_parity(plain, fused_attention, inputs, device=target.device, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [3, 9])
def test_layouts_that_are_not_aligned(target, queries, dtype):
    """Contiguous, but none of 16 bytes that are read at a time begins at a multiple of 16."""

    def shifted(x):
        return torch.cat([x.new_empty(1), x.flatten()])[1:].view(x.shape)

    def fused(**inputs):
        return fused_attention(**{name: t if t is None else shifted(t) for name, t in inputs.items()}, **options)

    options = {"backend": target.backend}
    inputs = attention_inputs(queries=queries, width=8, values=16, score_bias=True)
    assert_parity(plain_attention, fused, inputs, dtype, target.device)


@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["alone", "opposite"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 10.0, 20.0, 40.0, 90.0, 1000.0])
def test_scores_of_any_magnitude(target, scale, offset):
    """`opposite`: a large query on a key nearly as large the other way, where clamping either alone would be wrong."""
    inputs = cast(attention_inputs(batch=3, queries=20, keys=70, width=50), torch.float32, target.device)
    query, v = scale * inputs["query"], inputs["v"]
    key = inputs["key"] - offset * query[:, :1] if offset else scale * inputs["key"]
    scores = HF.additive_scores(query, key, v, backend=target.backend)
    exact = plain_scores(query.double(), key.double(), v.double())
    assert tolerances.largest(scores - exact) <= tolerances.SCORE * v.abs().sum()


@pytest.mark.parametrize("scale", [1.0, 15.0])
@pytest.mark.parametrize("magnitude", [1e-36, 1e-20, 1e10])
def test_v_of_any_magnitude(target, scale, magnitude):
    """It stands in the numerator of quotients whose denominators are large or small themselves."""
    inputs = cast(attention_inputs(batch=2, queries=5, keys=9, width=50), torch.float32, target.device)
    query, key, v = scale * inputs["query"], scale * inputs["key"], magnitude * inputs["v"]
    scores = HF.additive_scores(query, key, v, backend=target.backend)
    exact = plain_scores(query.double(), key.double(), v.double())
    assert tolerances.largest(scores - exact) <= tolerances.SCORE * v.abs().sum()


@pytest.mark.parametrize("scale", [1.0, 15.0, 30.0])
def test_largest_v(target, scale):
    """The next power of two is beyond float32, and so is twice a score."""
    inputs = cast(attention_inputs(batch=2, queries=5, keys=9, width=50), torch.float32, target.device)
    query, key, v = scale * inputs["query"], scale * inputs["key"], torch.zeros_like(inputs["v"])
    v[7] = 3e38
    scores = HF.additive_scores(query, key, v, backend=target.backend)
    exact = plain_scores(query.double(), key.double(), v.double())
    assert tolerances.largest(scores - exact) <= tolerances.SCORE * v.abs().sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [6.0, 15.0, 25.0, 50.0, 100.0, 200.0, 400.0])
def test_sums_near_the_limits_of_the_factored_form(target, dtype, limit):
    """All channels of a row alike: the product of many factors is as large as the row's bound lets it be."""
    edge = torch.linspace(-limit, limit, 61, dtype=torch.float64)[None, :, None].expand(1, 61, 40)
    v = attention_inputs(width=40)["v"].to(target.device, dtype)  # its gradient, a sum of thousands, is for other tests

    def plain(query, key):
        return plain_scores_alone(query, key, v.to(query.dtype), "tanh")

    def fused(query, key):
        return scores_alone(query, key, v, backend=target.backend)

    assert_parity(plain, fused, {"query": edge, "key": edge}, dtype, target.device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_magnitudes_side_by_side(target, dtype):
    """Rows within the range of the factored form next to rows beyond it, in one tile and in all of them."""
    inputs = attention_inputs(queries=9, keys=13, width=10)
    inputs["query"] *= 10.0 ** torch.arange(-3, 6)[:, None]
    inputs["key"] *= 10.0 ** (torch.arange(13) % 7 - 3)[:, None]
    assert_parity(plain_attention, fused_attention, inputs, dtype, target.device, backend=target.backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [10.0, 40.0, 1000.0])
def test_gradients_of_any_magnitude(target, dtype, scale):
    inputs = attention_inputs(queries=9, keys=13, width=10)
    inputs |= {name: scale * inputs[name] for name in ("query", "key")}
    assert_parity(plain_attention, fused_attention, inputs, dtype, target.device, backend=target.backend)
