"""Encoders of video against loops over clips, each alone; what padding must not do, batch norm included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hybridops.layers import ConvEncoder, FrameEncoder, PretrainedEncoder
from tests.tolerances import FLOAT64

LENGTHS = torch.tensor([5, 2, 0, 4])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw() -> tuple[Tensor, Tensor]:
    """The same clips, with NaN behind the end and without."""
    clips = torch.randn(4, 5, 2, 8, 8, dtype=torch.float64)
    there = torch.arange(5) < LENGTHS[:, None]
    return clips.masked_fill(~there[..., None, None, None], torch.nan), clips


def test_each_frame_is_encoded_as_an_image():
    encoder = FrameEncoder(ConvEncoder(2, (3, 6))).double().eval()
    padded, clips = draw()
    memory = encoder(padded, LENGTHS)
    assert memory.values.shape == (4, 5, encoder.dim)
    assert memory.mask.sum(1).tolist() == LENGTHS.tolist()
    for row, length in enumerate(LENGTHS.tolist()):
        frames = [encoder.encoder(clips[row, t][None]).pooled[0] for t in range(length)]
        expected = torch.stack([*frames, *[torch.zeros(6, dtype=torch.float64)] * (5 - length)])
        torch.testing.assert_close(memory.values[row], expected, **FLOAT64)
        torch.testing.assert_close(memory.pooled[row], expected.sum(0) / max(length, 1), **FLOAT64)
    torch.testing.assert_close(encoder(clips).values, encoder(clips, torch.full((4,), 9)).values, **FLOAT64)


def test_batch_norm_counts_the_frames_that_are_there():
    """Values, gradients and running statistics are those of the frames alone, put side by side."""
    padded, clips = draw()
    encoder = FrameEncoder(ConvEncoder(2, (3, 6))).double()
    alone = copy.deepcopy(encoder.encoder)
    there = torch.arange(5) < LENGTHS[:, None]
    expected = alone(clips[there]).pooled
    values = encoder(padded.requires_grad_(), LENGTHS).values
    torch.testing.assert_close(values[there], expected, **FLOAT64)
    values.square().sum().backward()
    expected.square().sum().backward()
    for got, want in zip(encoder.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, **FLOAT64)
    for got, want in zip(encoder.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(got, want, **FLOAT64)
    assert padded.grad[~there].eq(0).all()


def test_one_call_for_all_frames():
    calls = []
    encoder = FrameEncoder(PretrainedEncoder(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), 3)).double()
    encoder.encoder.register_forward_hook(lambda module, args, output: calls.append(args[0].shape))
    encoder(draw()[0], LENGTHS)
    assert calls == [(11, 2, 8, 8)]


@pytest.mark.parametrize(("batch", "steps"), [(0, 5), (2, 0), (2, 5)])
def test_no_frame_at_all(batch, steps):
    memory = FrameEncoder(ConvEncoder(2, (3,)))(
        torch.zeros(batch, steps, 2, 8, 8), torch.zeros(batch, dtype=torch.int64)
    )
    assert memory.values.shape == (batch, steps, 3)
    assert memory.pooled.shape == (batch, 3)
    assert not memory.mask.any()
    assert not memory.values.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrameEncoder(ConvEncoder(2))(torch.zeros(3, 2, 8, 8)), r"frames must have shape \(B, T, C, Y, X\)"),
        (lambda: FrameEncoder(ConvEncoder(2))(torch.zeros(3, 5, 1, 8, 8)), "images must have shape"),
        (lambda: FrameEncoder(ConvEncoder(2))(draw()[1].float(), torch.tensor([1])), "lengths must have shape"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
