"""The ConvGRU's formulas against `nn.GRUCell`, which they are on one pixel, and against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridops.formulas.conv_gru import ConvGRUInputs, conv_gru_backward, conv_gru_forward
from tests import tolerances
from tests.reference.test_conv_lstm import CLOSE


def make_inputs(space=(4, 3), kernel=(3, 3), steps=3, batch=2, states=True) -> ConvGRUInputs:
    torch.manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    h0 = randn(batch, *space, 5) if states else None
    weights = (randn(15, 3, *kernel), randn(15, 5, *kernel), randn(15), randn(15))
    return ConvGRUInputs(randn(steps, batch, *space, 3), h0, *weights)


def test_one_pixel_is_a_gru_cell():
    inputs = make_inputs(space=(1, 1), kernel=(1, 1))
    cell = nn.GRUCell(3, 5, dtype=torch.float64)
    for parameter, given in zip(cell.parameters(), inputs[2:], strict=True):
        parameter.data = given.detach().reshape(parameter.shape)
    h, want = inputs.h0[:, 0, 0], []
    for x_t in inputs.x[:, :, 0, 0]:
        h = cell(x_t, h)
        want.append(h)
    torch.testing.assert_close(conv_gru_forward(inputs)[0][:, :, 0, 0], torch.stack(want), **CLOSE)


@pytest.mark.parametrize(("space", "kernel"), [((4, 3), (3, 3)), ((1, 5), (1, 3)), ((2, 3, 2), (3, 1, 3))])
@pytest.mark.parametrize("states", [True, False])
def test_backward_is_autograd(space, kernel, states):
    """db_ih and db_hh are the sums of the gradients of u and v."""
    inputs = make_inputs(space, kernel, states=states)
    hs, gates = conv_gru_forward(inputs)
    grad = torch.randn_like(hs)
    wanted = [t for t in (inputs.b_ih, inputs.b_hh, inputs.h0) if t is not None]
    want = torch.autograd.grad(hs, wanted, grad)
    du, dv, dh0 = conv_gru_backward(grad, None, inputs, hs, gates)
    got = [t.sum([*range(t.dim() - 1)]) for t in (du, dv)] + ([dh0] if states else [])
    torch.testing.assert_close(got, list(want), **CLOSE)


def test_the_last_states_gradient_adds():
    inputs = make_inputs()
    hs, gates = conv_gru_forward(inputs)
    grad = torch.randn_like(hs)
    late = torch.zeros_like(hs)
    late[-1] = grad[-1]
    by_steps, by_state = (conv_gru_backward(*given, inputs, hs, gates) for given in ((late, None), (None, grad[-1])))
    torch.testing.assert_close(by_steps, by_state, **tolerances.EXACT)
