"""Winograd's convolutions: the numbers of direct ones, as exact as is said, and nothing spreads through a tile."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.measure import peak_bytes
from hybridops.layouts import image_inside, sequence_inside
from hybridops.native.conv_lstm import precision
from tests import tolerances
from tests.problems import Tensors, cast, conv_lstm_inputs, fused_conv_lstm, plain_conv_lstm, with_gradients

OPS = torch.ops.hybridops
TILES = [-4, -8, -16]  # outputs of a tile, and no other; 0 is the direct form, 4, 8, 16 the largest that may be taken


def root_mean_square(tensor: torch.Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


def gradients(da, x, h, w_ih, w_hh, tile) -> Tensors:
    """Those of the two factors of W_ih * x and of W_hh * h."""
    dx, dh = da.new_empty(*da.shape[:4], x.shape[4]), torch.empty_like(h)
    dw_ih, dw_hh = torch.zeros_like(w_ih), torch.zeros_like(w_hh)
    OPS.conv_input_gradient(da, w_ih, False, tile, dx)
    OPS.conv_input_gradient(da, w_hh, False, tile, dh)
    OPS.conv_weight_gradient(da, x, h, False, tile, dw_ih, dw_hh)
    return {"dx": dx, "dh": dh, "dw_ih": dw_ih, "dw_hh": dw_hh}


def run(inputs: Tensors, tile: int) -> Tensors:
    """Every op that convolves, without the Python around it."""
    x, w_ih, w_hh, bias = (inputs[name] for name in ("x", "weight_ih", "weight_hh", "bias"))
    x, h0, c0 = sequence_inside(x), *(image_inside(inputs[name]).contiguous() for name in ("h0", "c0"))
    hs, cs, gates = OPS.conv_lstm_forward(x, h0, c0, w_ih, w_hh, bias, None, 2, False, tile)
    grad = torch.ones_like(hs)
    da, dh0, _ = OPS.conv_lstm_backward(grad, None, None, gates, cs, c0, w_hh, None, True, False, tile)
    states = (x, h0, hs, cs, c0, w_ih, w_hh, bias, None, True, False, tile)
    again = OPS.conv_lstm_backward_from_states(grad, None, None, *states)[0]
    results = {"hs": hs, "cs": cs, "gates": gates, "da": da, "dh0": dh0, "da again": again}
    return results | gradients(da, x, hs, w_ih, w_hh, tile)


@settings(max_examples=60)
@example(kernel=3, space=(10, 9), channels=13, hidden=7, batch=7, tile=-16)  # gradients of 39
@given(
    kernel=st.sampled_from([3, 5]),
    space=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    channels=st.integers(1, 30),
    hidden=st.integers(1, 20),
    batch=st.integers(1, 9),
    tile=st.sampled_from([*TILES, 16]),
)
def test_parity(kernel, space, channels, hidden, batch, tile):
    """Images that tiles do not fit into, small ones that go together, and channels that vectors do not."""
    sizes = {"batch": batch, "steps": 2, "channels": channels, "hidden": hidden, "space": space}
    inputs = conv_lstm_inputs(kernel=(kernel, kernel), **sizes)
    got, want = run(cast(inputs, torch.float32), tile), run(inputs, 0)
    for name, exact in want.items():
        unit = max(1.0, tolerances.largest(exact) / 10)  # those of weights are sums over many pixels
        torch.testing.assert_close(got[name].double() / unit, exact / unit, msg=name, **tolerances.WINOGRAD)


@pytest.mark.parametrize("tile", TILES)
def test_none_in_float64_or_for_other_kernels(tile):
    inputs = conv_lstm_inputs(channels=9, hidden=12, space=(9, 9))
    torch.testing.assert_close(run(inputs, tile), run(inputs, 0), **tolerances.EXACT)
    for kernel in (1, 1), (3, 5), (7, 7):
        inputs = cast(conv_lstm_inputs(channels=9, hidden=12, space=(9, 9), kernel=kernel), torch.float32)
        torch.testing.assert_close(run(inputs, tile), run(inputs, 0), **tolerances.EXACT)


def test_tiles_follow_the_precision_asked_for():
    inputs = cast(conv_lstm_inputs(channels=9, hidden=12, space=(40, 40)), torch.float32)
    before = torch.get_float32_matmul_precision()
    outputs = {}
    for setting in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(setting)
        outputs[setting] = fused_conv_lstm(**inputs, backend="native")["output"]
    torch.set_float32_matmul_precision(before)
    exact, fast = (run(inputs, tile)["hs"].permute(1, 0, 4, 2, 3) for tile in (precision(torch.float32)[1], 16))
    assert not torch.equal(exact, fast)
    for setting, want in ("highest", exact), ("high", fast), ("medium", fast):
        torch.testing.assert_close(outputs[setting], want, **tolerances.EXACT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {"channels": 64, "hidden": 64, "space": (24, 24)},
        {"channels": 3, "hidden": 16, "space": (32, 32)},
        {"channels": 16, "hidden": 64, "space": (16, 16), "kernel": (5, 5)},
        {"channels": 128, "hidden": 128, "space": (12, 12), "kernel": (5, 5)},
    ],
    ids=str,
)
def test_accuracy(sizes):
    """Root mean squares of the errors, over thousands of elements: by default within twice those of plain PyTorch."""
    inputs = conv_lstm_inputs(batch=2, steps=6, **sizes)
    exact, single = with_gradients(plain_conv_lstm, inputs), cast(inputs, torch.float32)
    plain, fused = (with_gradients(f, single) for f in (plain_conv_lstm, fused_conv_lstm))
    for name, want in exact.items():
        error, allowed = (root_mean_square(results[name].double() - want) for results in (fused, plain))
        assert error <= tolerances.TIMES_PLAIN * allowed, name


@pytest.mark.parametrize("channels", [1, 9])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("tile", TILES)
def test_one_large_value(tile, kernel, channels):
    """Its rounding error stays where it is summed, and does not come to the rest of its tile. Nor does the direct sum
    disturb other outputs: there are two groups of them or more, which one thread computes.
    """
    sizes = {"batch": 1, "steps": 1, "channels": channels, "hidden": 17, "space": (46, 15)}
    inputs = conv_lstm_inputs(kernel=(kernel, kernel), **sizes)
    inputs["x"][0, 0, channels // 2, 7, 6] = 1e5
    got, want = run(cast(inputs, torch.float32), tile)["hs"].double(), run(inputs, 0)["hs"]
    torch.testing.assert_close(got, want, **tolerances.WINOGRAD)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["x", "h0", "weight_ih", "weight_hh"])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("tile", TILES)
def test_nonfinite(tile, kernel, name, value):
    """In the same places as in a direct sum, gradients included."""
    inputs = conv_lstm_inputs(batch=2, steps=2, channels=9, hidden=12, space=(9, 8), kernel=(kernel, kernel))
    inputs[name].flatten()[inputs[name].numel() // 2] = value
    inputs = cast(inputs, torch.float32)
    got, want = run(inputs, tile), run(inputs, 0)
    for key, direct in want.items():
        kinds = [t.nan_to_num(math.nan, 1.0, -1.0).where(~t.isfinite(), 0.0) for t in (got[key], direct)]
        torch.testing.assert_close(*kinds, equal_nan=True, msg=key, **tolerances.EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, math.inf, math.nan])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("tile", [0, *TILES])
def test_weight_gradients_are_added(tile, kernel, value):
    """To what is there, by several units of work, in no memory but the threads' own. A unit that meets what is not
    finite sums directly.
    """
    generator = torch.Generator().manual_seed(0)
    da, x, h, before_x, before_h = (
        torch.randn(shape, generator=generator)
        for shape in (
            (3, 2, 18, 21, 150),
            (3, 2, 18, 21, 50),
            (3, 2, 18, 21, 18),
            (150, 50, kernel, kernel),
            (150, 18, kernel, kernel),
        )
    )
    da /= 50  # then sums are of order one
    if value is not None:
        x[1, 1, 9, 10, 20] = value
    got_x, got_h, got_alone = before_x.clone(), before_h.clone(), before_h.clone()
    want_x, want_h = before_x.double(), before_h.double()
    assert peak_bytes(lambda: OPS.conv_weight_gradient(da, x, h, False, tile, got_x, got_h)) == 0
    OPS.conv_weight_gradient(da, h, None, False, tile, got_alone, None)
    OPS.conv_weight_gradient(da.double(), x.double(), h.double(), False, 0, want_x, want_h)
    for got, want in (got_x, want_x), (got_h, want_h), (got_alone, want_h):
        torch.testing.assert_close(got.double(), want, equal_nan=True, **tolerances.WINOGRAD)
        assert want.isfinite().any()
