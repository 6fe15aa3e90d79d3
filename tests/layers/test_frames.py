"""Encoders of video against loops over clips, each alone; what padding must not do, batch norm included."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridops.layers import Conv3dEncoder, ConvEncoder, FrameEncoder, MeanPooling, PretrainedEncoder, SegmentConsensus
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


def test_regions_say_what_is_where():
    encoder = FrameEncoder(ConvEncoder(2, (3, 6)), regions=4).double().eval()
    padded, clips = draw()
    memory = encoder(padded, LENGTHS)
    assert memory.values.shape == (4, 5, 24)
    torch.testing.assert_close(memory.values[0], encoder.encoder(clips[0]).values.flatten(1), **FLOAT64)
    assert not torch.allclose(encoder(clips.flip(4)).pooled, encoder(clips).pooled)


def test_maps_are_of_each_frame():
    encoder = FrameEncoder(ConvEncoder(2, (3, 6))).double().eval()
    padded, clips = draw()
    maps = encoder.maps(padded, LENGTHS)
    assert maps.shape == (4, 5, 6, 2, 2)
    there = torch.arange(5) < LENGTHS[:, None]
    torch.testing.assert_close(maps[there], encoder.encoder.layers(clips[there]), **FLOAT64)
    assert maps[~there].eq(0).all()
    torch.testing.assert_close(encoder.maps(clips)[0], maps[0], **FLOAT64)
    assert encoder.maps(padded, torch.zeros(4, dtype=torch.int64)).eq(0).all()


def plain_conv3d(encoder: Conv3dEncoder, pool_time: bool) -> nn.Sequential:
    """As one would write it for a clip (1, C, T, Y, X) without padding, with the encoder's weights."""
    layers = []
    for number, layer in enumerate(encoder.layers):
        stride = (2 if number and pool_time else 1, 2, 2)
        layers += [layer.conv, layer.norm, nn.ReLU(), nn.MaxPool3d(stride, ceil_mode=True)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("pool_time", [False, True])
def test_conv3d_reads_each_clip_as_if_it_were_alone(pool_time):
    encoder = Conv3dEncoder(2, (3, 4, 6), pool_time=pool_time).double().eval()
    for norm in (module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d)):
        nn.init.normal_(norm.bias)  # so that what is no frame is not zero by chance
    plain = plain_conv3d(encoder, pool_time)
    padded, clips = draw()
    memory = encoder(padded, LENGTHS)
    assert memory.values.shape == (4, 2 if pool_time else 5, 6)
    for row, length in enumerate(LENGTHS.tolist()):
        left = -(-length // 4) if pool_time else length
        assert memory.mask[row].sum() == left
        assert memory.values[row, left:].eq(0).all()
        if length:
            alone = plain(clips[row, :length].transpose(0, 1)[None]).mean((3, 4))[0].T
            torch.testing.assert_close(memory.values[row, :left], alone, **FLOAT64)
            torch.testing.assert_close(memory.pooled[row], alone.mean(0), **FLOAT64)
    assert memory.pooled[2].eq(0).all()


def test_conv3d_is_trained_as_pytorchs_own():
    """Values, gradients and statistics of whole clips."""
    encoder, (_, clips) = Conv3dEncoder(2, (3, 4)).double(), draw()
    other = copy.deepcopy(encoder)
    plain = plain_conv3d(other, True)
    memory = encoder(clips)
    expected = plain(clips.transpose(1, 2)).mean((3, 4)).transpose(1, 2)
    torch.testing.assert_close(memory.values, expected, **FLOAT64)
    memory.values.square().sum().backward()
    expected.square().sum().backward()
    for got, want in zip(encoder.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, **FLOAT64)
    for got, want in zip(encoder.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(got, want, **FLOAT64)


@given(length=st.integers(1, 6), more=st.integers(0, 4), rows=st.integers(1, 3))
def test_conv3d_is_trained_alike_however_much_padding_there_is(length, more, rows):
    """Batch norm included: the same clips with a tail of NaN, and a clip that is nothing else."""
    torch.manual_seed(0)
    encoder = Conv3dEncoder(1, (2, 3)).double()
    clips = torch.randn(rows, length, 1, 5, 6, dtype=torch.float64)
    tailed = F.pad(clips, (0, 0, 0, 0, 0, 0, 0, more, 0, 1), value=torch.nan)
    other = copy.deepcopy(encoder)
    memory = other(tailed, torch.tensor([length] * rows + [0]))
    expected = encoder(clips)
    torch.testing.assert_close(memory.pooled[:rows], expected.pooled, **FLOAT64)
    memory.pooled.square().sum().backward()
    expected.pooled.square().sum().backward()
    for got, want in zip(other.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, **FLOAT64)
    for got, want in zip(other.buffers(), encoder.buffers(), strict=True):
        torch.testing.assert_close(got, want, **FLOAT64)


@pytest.mark.parametrize(("batch", "steps"), [(0, 5), (2, 0), (2, 5)])
def test_conv3d_of_no_frame_at_all(batch, steps):
    memory = Conv3dEncoder(2, (3, 4))(torch.zeros(batch, steps, 2, 8, 8), torch.zeros(batch, dtype=torch.int64))
    assert memory.values.shape == (batch, (steps + 1) // 2, 4)
    assert memory.mask.shape == memory.values.shape[:2]
    assert memory.pooled.shape == (batch, 4)
    assert not memory.pooled.any()


def test_consensus_is_of_scores_not_of_probabilities():
    logits = torch.tensor([[[4.0, 0.0], [-1.0, 1.0]], [[2.0, 1.0], [torch.nan, torch.nan]]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    found = SegmentConsensus()(logits, mask)
    torch.testing.assert_close(found, torch.tensor([[1.5, 0.5], [2.0, 1.0]], dtype=torch.float64), **FLOAT64)
    probabilities = MeanPooling()(logits.softmax(2), mask)
    assert not torch.allclose(found.softmax(1)[0], probabilities[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrameEncoder(ConvEncoder(2))(torch.zeros(3, 2, 8, 8)), r"frames must have shape \(B, T, C, Y, X\)"),
        (lambda: FrameEncoder(ConvEncoder(2))(torch.zeros(3, 5, 1, 8, 8)), "images must have shape"),
        (lambda: FrameEncoder(ConvEncoder(2))(draw()[1].float(), torch.tensor([1])), "lengths must have shape"),
        (lambda: FrameEncoder(ConvEncoder(2), regions=0), "regions must be a positive int"),
        (lambda: FrameEncoder(ConvEncoder(2), regions=4)(draw()[1].float()), r"values of encoder must have .*4, 128"),
        (lambda: Conv3dEncoder(2, ()), "channels must have a size"),
        (lambda: Conv3dEncoder(2)(torch.zeros(3, 5, 1, 8, 8)), r"frames must have shape \(B, T, 2, Y, X\)"),
        (lambda: Conv3dEncoder(2)(draw()[1].float(), torch.tensor([1])), "lengths must have shape"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
