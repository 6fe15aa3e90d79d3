"""Forecasts and classes of frames against plain loops over steps and layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hybridops.models import ConvLSTMForecaster
from hybridops.models.video_forecasting import from_patches, to_patches
from tests import tolerances


def frames_of(steps, batch=2):
    return torch.rand(batch, steps, 2, 4, 6, dtype=torch.float64)


def plain_step(cells, x, states):
    """One step of all layers, each a textbook ConvLSTM: the hidden states, and the states after it."""
    after = []
    for cell, (h, c) in zip(cells, states, strict=True):
        a = F.conv2d(torch.cat([x, h], 1), cell.conv.weight, cell.conv.bias, padding=cell.kernel_size[0] // 2)
        f, i, g, o = a.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        x = o.sigmoid() * c.tanh()
        after.append((x, c))
    return [h for h, _ in after], after


def plain_states(cells, frames, patch):
    """The states after each frame (B, T, C, Y, X)."""
    frames = F.pixel_unshuffle(frames, patch)
    zeros = [frames.new_zeros(len(frames), cell.hidden_dim, *frames.shape[3:]) for cell in cells]
    states = [list(zip(zeros, zeros, strict=True))]
    for x in frames.unbind(1):
        states.append(plain_step(cells, x, states[-1])[1])
    return states[1:]


def plain_forecasts(model, frames, steps, future=None, own=None):
    """own: (S, B), whether the forecaster reads its own frame; None: always."""
    origin = frames[:, -1] if model.relative else torch.zeros_like(frames[:, -1])
    states = plain_states([layer.cell_list[0] for layer in model.encoder], frames - origin[:, None], model.patch)[-1]
    weight, bias = model.head.weight[..., None, None], model.head.bias
    read, forecasts = frames[:, -1] - origin, []
    for s in range(steps):
        if s > 0:
            mine = forecasts[-1].sigmoid() if model.logits else forecasts[-1] - origin
            read = mine if own is None else torch.where(own[s][:, None, None, None], mine, future[:, s - 1] - origin)
        x = F.pixel_unshuffle(read, model.patch)
        x = x if model.conditional else torch.zeros_like(x[:, :1])
        hidden, states = plain_step([layer.cell_list[0] for layer in model.forecaster], x, states)
        forecasts.append(F.pixel_shuffle(F.conv2d(torch.cat(hidden, 1), weight, bias), model.patch) + origin)
    return torch.stack(forecasts, 1)


@pytest.fixture(params=["logits", "values", "relative"])
def output(request):
    return {"logits": request.param == "logits", "relative": request.param == "relative"}


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("patch", "kernel_size", "num_layers"), [(1, 3, 1), (2, 5, 2), (2, 1, 3)])
def test_forecasts_are_those_of_the_loop(output, conditional, patch, kernel_size, num_layers):
    torch.manual_seed(0)
    model = ConvLSTMForecaster(2, 5, kernel_size, num_layers, patch=patch, conditional=conditional, **output).double()
    frames = frames_of(3)
    expected = plain_forecasts(model, frames, 4)
    found = model(frames, steps=4)
    torch.testing.assert_close(found, expected, **tolerances.FLOAT64)
    parameters = list(model.parameters())
    weights = torch.rand_like(found)
    grads = [torch.autograd.grad((weights * of).sum(), parameters) for of in (found, expected)]
    torch.testing.assert_close(*grads, **tolerances.FLOAT64)


def test_teacher_forcing(output):
    torch.manual_seed(0)
    model = ConvLSTMForecaster(2, 5, conditional=True, **output).double()
    frames, future = frames_of(3), frames_of(4)
    never = torch.zeros(4, 2, dtype=torch.bool)
    torch.testing.assert_close(
        model(frames, future), plain_forecasts(model, frames, 4, future, never), **tolerances.FLOAT64
    )
    assert torch.equal(model(frames, future, sampling=1.0), model(frames, steps=4))


def test_scheduled_sampling(output):
    torch.manual_seed(0)
    model = ConvLSTMForecaster(2, 5, conditional=True, **output).double()
    frames, future = frames_of(3, batch=5), frames_of(4, batch=5)
    torch.manual_seed(1)
    found = model(frames, future, sampling=0.5)
    torch.manual_seed(1)
    own = torch.stack([torch.zeros(5, dtype=torch.bool), *(torch.rand(5, 1, 1, 1).flatten() < 0.5 for _ in range(3))])
    assert 3 < own.sum() < 12
    torch.testing.assert_close(found, plain_forecasts(model, frames, 4, future, own), **tolerances.FLOAT64)


@pytest.mark.parametrize("conditional", [False, True])
def test_more_steps_begin_with_fewer(conditional):
    torch.manual_seed(0)
    model, frames = ConvLSTMForecaster(2, 5, steps=3, conditional=conditional).double(), frames_of(3)
    assert model(frames).shape == (2, 3, 2, 4, 6)
    torch.testing.assert_close(model(frames, steps=5)[:, :3], model(frames), **tolerances.FLOAT64)


@pytest.mark.parametrize("conditional", [False, True])
def test_relative_forecasts_begin_at_the_last_frame(conditional):
    torch.manual_seed(0)
    model = ConvLSTMForecaster(2, 5, conditional=conditional, logits=False, relative=True).double()
    frames = frames_of(3)
    torch.testing.assert_close(model(frames + 7.0), model(frames) + 7.0, **tolerances.FLOAT64)
    with torch.no_grad():
        model.head.weight.zero_(), model.head.bias.zero_()
    assert torch.equal(model(frames), frames[:, -1:].expand(-1, 10, -1, -1, -1))


def test_a_dot_that_moves_is_forecast():
    torch.manual_seed(0)
    start, row = torch.randint(8, (2, 64))
    films = torch.zeros(64, 7, 1, 8, 8)
    for t in range(7):
        films[torch.arange(64), t, 0, row, (start + t) % 8] = 1.0
    model = ConvLSTMForecaster(1, 8, steps=3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(films[:48, :4]), films[:48, 4:]).backward()
        optimizer.step()
    forecasts = model(films[48:, :4]).sigmoid()
    copied = F.mse_loss(films[48:, 3:4].expand(-1, 3, -1, -1, -1), films[48:, 4:])
    assert F.mse_loss(forecasts, films[48:, 4:]) < 0.6 * copied


@given(st.tuples(*[st.integers(0, 3)] * 2, *[st.integers(1, 3)] * 4))
def test_patches(sizes):
    batch, steps, channels, height, width, patch = sizes
    frames = torch.randn(batch, steps, channels, height * patch, width * patch)
    patches = to_patches("frames", frames, channels, patch)
    assert patches.shape == (steps, batch, height, width, channels * patch**2)
    assert torch.equal(from_patches(patches, patch), frames)
    if batch and steps:  # of nothing, PyTorch's own gives another shape
        assert torch.equal(patches.permute(1, 0, 4, 2, 3), F.pixel_unshuffle(frames, patch))


X = torch.rand(2, 3, 1, 4, 6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ConvLSTMForecaster(0), ValueError, "in_channels"),
        (lambda: ConvLSTMForecaster(num_layers=0), ValueError, "num_layers"),
        (lambda: ConvLSTMForecaster(patch=2.0), TypeError, "patch"),
        (lambda: ConvLSTMForecaster(steps=0), ValueError, "steps"),
        (lambda: ConvLSTMForecaster(conditional=1), TypeError, "conditional"),
        (lambda: ConvLSTMForecaster(relative=True), ValueError, "relative must be False, or logits too"),
        (lambda: ConvLSTMForecaster(2)(X), ValueError, r"frames must have shape \(B, T, 2, Y, X\)"),
        (lambda: ConvLSTMForecaster()(X[:, :0]), ValueError, "frames must have at least one step"),
        (lambda: ConvLSTMForecaster(patch=4)(X), ValueError, "height and width that 4 divides"),
        (lambda: ConvLSTMForecaster()(X, steps=0), ValueError, "steps"),
        (lambda: ConvLSTMForecaster()(X, X), ValueError, "future must be None"),
        (lambda: ConvLSTMForecaster(conditional=True)(X, X[:, :0]), ValueError, "the steps of future"),
        (lambda: ConvLSTMForecaster(conditional=True)(X, X, steps=4), ValueError, r"future must have shape \(2, 4, 1"),
        (lambda: ConvLSTMForecaster(conditional=True)(X, X[:1]), ValueError, r"future must have shape \(2, S, 1"),
        (lambda: ConvLSTMForecaster(conditional=True)(X, X, sampling=1.1), ValueError, "sampling"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
