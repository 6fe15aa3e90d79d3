"""How exact the nonlinearities of the compiled code are, over all magnitudes."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from tests import tolerances
from tests.problems import attention_inputs, cast, fused_attention, plain_attention, with_gradients


def nonlinearities(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sigmoid and tanh of (N,) values: gates whose pre-activation is 1 * x, in an image of N pixels."""
    one, zero = values.new_ones(4, 1, 1, 1), values.new_zeros(4, 1, 1, 1)
    image = values.view(1, 1, 1, -1, 1)
    gates = torch.ops.hybridops.conv_lstm_forward.default(image, None, None, one, zero, None, None, 2, False, 0)[2]
    f, i, g, o = gates.flatten(0, 3).unbind(-1)
    torch.testing.assert_close((i, o), (f, f), equal_nan=True, **tolerances.EXACT)
    return f, g


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_in_the_last_place(dtype):
    """Measured: 2.5 (sigmoid) and 2.9 (tanh). Beyond -87 a float32 sigmoid would be subnormal: see below."""
    sweep = np.concatenate([np.linspace(-86, 100, 400_001), np.geomspace(1e-30, 1, 100_001)])
    values = torch.from_numpy(np.concatenate([sweep, -sweep[sweep > 0][sweep[sweep > 0] < 86]])).to(dtype)
    exact = values.numpy().astype(np.longdouble)
    for got, want in zip(nonlinearities(values), (1 / (1 + np.exp(-exact)), np.tanh(exact)), strict=True):
        rounded = want.astype(got.numpy().dtype)
        ulps = np.abs(got.numpy().astype(np.longdouble) - want) / np.spacing(np.abs(rounded))
        assert ulps.max() <= tolerances.NONLINEARITY_ULPS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_out(dtype):
    """On to zero and one: where sigmoid is subnormal, too, and where the exponential in it overflows."""
    values = torch.tensor([-torch.inf, -1e30, -2000.0, 200.0, 1e30, torch.inf, torch.nan], dtype=dtype)
    overflow = torch.linspace(0.98, 1.02, 1001, dtype=dtype) * -math.log(torch.finfo(dtype).max)
    values = torch.cat((values, overflow))
    for got, want in zip(nonlinearities(values), (values.sigmoid(), values.tanh()), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=torch.finfo(dtype).tiny * 2, equal_nan=True)
    assert nonlinearities(values)[0][0] == 0


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 1e-1])
def test_gradient_of_v_for_small_sums(size):
    """A small tanh keeps its digits: as a difference of numbers near one it had few."""
    inputs = cast(attention_inputs(batch=3, queries=9, keys=11, width=20), torch.float32)
    inputs |= {name: size * inputs[name] for name in ("query", "key")}
    exact = with_gradients(plain_attention, cast(inputs, torch.float64))["d v"]
    plain, got = (
        with_gradients(function, inputs)["d v"]
        for function in (plain_attention, partial(fused_attention, backend="native"))
    )
    ulps, _ = tolerances.FLOOR_ULPS[torch.float32]
    allowed = tolerances.TIMES_PLAIN * tolerances.largest(plain - exact)
    # a tanh of size z, which is good to a last place of 1 from 1/8 on: eight of its own
    allowed += ulps * torch.finfo(torch.float32).eps * tolerances.largest(exact)
    assert tolerances.largest(got - exact) <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weight_of_one_key_is_one(dtype):
    inputs = cast(attention_inputs(queries=40), dtype)
    mask = torch.tensor([1, 0, 0, 0, 0], dtype=torch.bool)
    weights = fused_attention(**inputs, mask=mask[None], backend="native")["weights"]
    torch.testing.assert_close(weights, mask.to(dtype).expand(2, 40, 5), **tolerances.EXACT)
