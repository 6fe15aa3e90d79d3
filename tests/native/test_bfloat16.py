"""Convolutions of bfloat16 that the processor multiplies as it is: in pairs (AVX512-BF16), or in tiles (AMX)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import tolerances
from tests.problems import assert_parity, cast, conv_lstm_inputs, fused_conv_lstm, plain_conv_lstm, with_gradients

# Images that fill AMX's tiles of 16 pixels, and its sums over 32, and some that do not; of several blocks.
SPACES = [(1, 1), (2, 2), (3, 5), (4, 4), (7, 7), (8, 8), (6, 16), (9, 70), (40, 32)]


@settings(max_examples=40)
@example(kernel=(3, 3), space=(40, 32), channels=33, hidden=17, batch=1, states=True)
@example(kernel=(3, 3), space=(4, 4), channels=64, hidden=40, batch=5, states=False)
@example(kernel=(7, 7), space=(7, 7), channels=17, hidden=3, batch=3, states=True)
@example(kernel=(1, 1), space=(1, 1), channels=1, hidden=1, batch=1, states=False)
@example(kernel=(3, 3), space=(4, 4), channels=300, hidden=260, batch=8, states=True)  # all groups, planes after planes
@given(
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    space=st.sampled_from(SPACES),
    channels=st.sampled_from([1, 2, 3, 16, 17, 31, 33, 64, 70]),
    hidden=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16, 17, 33]),
    batch=st.integers(1, 5),
    states=st.booleans(),
)
def test_parity(kernel, space, channels, hidden, batch, states):
    sizes = {"batch": batch, "steps": 2, "channels": channels, "hidden": hidden, "states": states}
    inputs = conv_lstm_inputs(kernel=kernel, space=space, **sizes)
    assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, torch.bfloat16, backend="native")
    inputs = cast(inputs, torch.bfloat16)
    gates, recomputed = (
        with_gradients(fused_conv_lstm, inputs, backend="native", save=save) for save in ("gates", "recompute")
    )
    torch.testing.assert_close(recomputed, gates, **tolerances.EXACT)


def gradients(da: torch.Tensor, x: torch.Tensor, kernel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of x and of the weights, where da is of a convolution of x by weights of one."""
    weight = x.new_ones(da.shape[-1], x.shape[-1], kernel, kernel)
    dx, dweight = torch.empty_like(x), weight.new_zeros(weight.shape, dtype=torch.float32)
    torch.ops.hybridops.conv_input_gradient(da, weight, False, 0, dx)
    torch.ops.hybridops.conv_weight_gradient(da, x, None, False, 0, dweight, None)
    return dx, dweight


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("space", SPACES)
def test_what_is_not_finite_stays_where_it_is(space, value):
    """It reaches the pixels under the kernel and its own channel, and what fills up tiles beside it stays zero."""
    x = torch.ones(1, 3, *space, 20, dtype=torch.bfloat16)
    da = torch.ones(1, 3, *space, 24, dtype=torch.bfloat16)
    x[0, 1, -1, -1, 7] = value
    dweight = gradients(da, x, 3)[1]
    assert dweight[:, 7, 1, 1].isfinite().logical_not().all()
    assert dweight[:, torch.arange(20) != 7].isfinite().all()
    da[0, 1, -1, -1, 5] = value
    dx = gradients(da, torch.ones_like(x), 3)[0]
    near = torch.zeros(space, dtype=torch.bool)
    near[-2:, -2:] = True
    torch.testing.assert_close(~dx[0, 1].isfinite(), near[..., None].expand(*space, 20))
    assert dx[0, [0, 2]].isfinite().all()


@pytest.mark.parametrize("space", SPACES)
def test_gradients_of_weights_add_up_in_float32(space):
    """Small whole numbers, whose sums over all pixels are exact there, and not in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x, da = (torch.randint(-3, 4, (5, 2, *space, channels), generator=generator).bfloat16() for channels in (37, 20))
    got = gradients(da, x, 3)[1]
    images, grads = (t.flatten(0, 1).permute(0, 3, 1, 2).double() for t in (x, da))
    want = torch.nn.grad.conv2d_weight(images, (20, 37, 3, 3), grads, padding=1)
    torch.testing.assert_close(got.double(), want, **tolerances.EXACT)
