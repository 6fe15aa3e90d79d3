"""How exact the nonlinearities of the compiled code are, over all magnitudes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests import tolerances


def nonlinearities(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sigmoid and tanh of (N,) values: gates whose pre-activation is 1 * x, in an image of N pixels."""
    one, zero = values.new_ones(4, 1, 1, 1), values.new_zeros(4, 1, 1, 1)
    image = values.view(1, 1, 1, 1, -1)
    gates = torch.ops.hybridops.conv_lstm_forward.default(image, None, None, one, zero, None, None, 2, 0)[2]
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
