"""Classifiers of video against loops over clips, frames and segments; what order means to each."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.layers import PretrainedEncoder
from hybridops.models import (
    Conv3dClassifier,
    ConvLSTMClassifier,
    SegmentClassifier,
    TwoStreamClassifier,
    VideoClassifier,
)
from hybridops.models.video_fusion import split
from tests.tolerances import FLOAT64

LENGTHS = torch.tensor([6, 2, 5, 3])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(in_channels: int = 2, **options) -> VideoClassifier:
    return VideoClassifier(in_channels, 3, 7, channels=(4, 6), attn_dim=5, **options).double().eval()


def draw(channels: int = 2, steps: int = 6) -> Tensor:
    return torch.randn(4, steps, channels, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_last_is_a_loop_over_frames(cell):
    model, clips = make(cell=cell), draw()
    network = model.recurrent.layers[0][0]
    logits = model(clips, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        state = None
        for t in range(length):
            features = model.frames.encoder(clips[row, t][None]).pooled
            output, state = network(features[:, None], state)
        torch.testing.assert_close(logits[row], model.classifier(output[0, 0]), **FLOAT64)


def test_none_is_last_of_every_beginning():
    every, last = make(pooling="none"), make()
    last.load_state_dict(every.state_dict())
    clips = draw()
    logits = every(clips, LENGTHS)
    assert logits.shape == (4, 6, 3)
    for t in range(6):
        there = t < LENGTHS
        torch.testing.assert_close(logits[there, t], last(clips[there, : t + 1]), **FLOAT64)


def test_mean_is_that_of_every_frame():
    """Of linear logits."""
    mean, every = make(pooling="mean"), make(pooling="none")
    mean.load_state_dict(every.state_dict())
    clips = draw()
    for row, length in enumerate(LENGTHS.tolist()):
        expected = every(clips[row : row + 1, :length]).mean(1)
        torch.testing.assert_close(mean(clips, LENGTHS)[row : row + 1], expected, **FLOAT64)


@pytest.mark.parametrize("cell", ["lstm", None])
def test_attention_weighs_frames(cell):
    model, clips = make(pooling="attention", cell=cell), draw()
    weights, memory = model.weights(clips, LENGTHS), model._encode(clips, LENGTHS)
    there = torch.arange(6) < LENGTHS[:, None]
    assert weights[~there].eq(0).all()
    assert (weights[there] > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64), **FLOAT64)
    expected = model.classifier((weights[..., None] * memory.values).sum(1))
    torch.testing.assert_close(model(clips, LENGTHS), expected, **FLOAT64)


@pytest.mark.parametrize(
    ("options", "matters"),
    [
        ({"cell": None, "pooling": "mean"}, False),
        ({"cell": None, "pooling": "attention", "regions": 4}, False),
        ({"pooling": "mean"}, True),
        ({"pooling": "last"}, True),
    ],
)
def test_whether_the_order_of_frames_matters(options, matters):
    model, clips = make(**options), draw()
    other = model(clips[:, torch.tensor([3, 0, 5, 1, 4, 2])])
    assert torch.allclose(other, model(clips), rtol=0, atol=1e-12) != matters


def test_of_both_directions_each_where_it_ends():
    model, clips = make(bidirectional=True), draw()
    memory = model._encode(clips, LENGTHS)
    rows = torch.arange(4)
    states = torch.cat([memory.values[rows, LENGTHS - 1, :7], memory.values[:, 0, 7:]], 1)
    torch.testing.assert_close(model(clips, LENGTHS), model.classifier(states), **FLOAT64)


def test_another_encoder():
    encoder = PretrainedEncoder(nn.Sequential(nn.Flatten(), nn.Linear(128, 9)), 9)
    model = VideoClassifier(2, 3, 7, encoder=encoder)
    model(draw().float(), LENGTHS).sum().backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert model.recurrent.input_dim == 9


def textbook_step(cell: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    f, i, g, o = F.conv2d(torch.cat([x, h], 1), cell.conv.weight, cell.conv.bias, padding=1).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@pytest.mark.parametrize("lengths", [None, [6, 2, 0, 9]])
def test_conv_lstm_is_a_loop_over_frames(lengths):
    """Two layers over maps of half the size; the state after the last frame, averaged over space and normed."""
    model, clips = ConvLSTMClassifier(2, 3, 5, num_layers=2, channels=(4, 6)).double().train(), draw()
    model(clips)  # so that the statistics of batch norm are some
    model.eval()
    expected = []
    for row, length in enumerate(lengths or [6] * 4):
        states = [(torch.zeros(1, 5, 4, 4, dtype=torch.float64),) * 2] * 2
        for t in range(min(length, 6)):
            x = model.frames.encoder.layers(clips[row, t][None])
            assert x.shape == (1, 6, 4, 4)
            for layer, cell in enumerate(model.recurrent.cell_list):
                states[layer] = textbook_step(cell, x, *states[layer])
                x = states[layer][0]
        expected.append(model.classifier(model.norm(states[-1][0].mean((2, 3)))))
    found = model(clips, None if lengths is None else torch.tensor(lengths))
    torch.testing.assert_close(found, torch.cat(expected), **FLOAT64)


def test_behind_the_end_a_conv_lstm_has_no_gradient():
    model, clips = ConvLSTMClassifier(2, 3, 5, channels=(4,)).double(), draw()
    there = torch.arange(6) < LENGTHS[:, None]
    clips[~there] = torch.nan
    model(clips.requires_grad_(), LENGTHS)[:, 0].square().sum().backward()
    assert clips.grad[~there].eq(0).all()
    assert clips.grad[there].ne(0).flatten(1).any(1).all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_conv_lstm_over_another_encoder():
    encoder = PretrainedEncoder(nn.Conv2d(2, 9, 4, stride=4), 9)
    model = ConvLSTMClassifier(2, 3, 7, encoder=encoder)
    model(draw().float(), LENGTHS).square().sum().backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert model.recurrent.cell_list[0].conv.weight.shape == (28, 16, 3, 3)
    assert model.recurrent.cell_list[0].conv.weight.grad.any()


def test_conv3d_pools_what_it_found():
    model, clips = Conv3dClassifier(2, 3, channels=(4, 6), dropout=0.5).double().eval(), draw()
    pooled = model.encoder(clips, LENGTHS).pooled
    torch.testing.assert_close(model(clips, LENGTHS), model.classifier(pooled), **FLOAT64)
    assert not torch.allclose(model(clips.flip(1)), model(clips))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_segments_are_all_of_the_clip_in_order(count):
    clips = draw()
    for lengths in LENGTHS, None:
        parts, part_lengths = split(clips, count, lengths)
        if part_lengths is None:
            assert 6 % count == 0
            part_lengths = torch.full((len(parts),), parts.shape[1])
        assert len(parts) == 4 * count
        for row, length in enumerate([6] * 4 if lengths is None else lengths.tolist()):
            own, sizes = parts.unflatten(0, (4, count))[row], part_lengths.view(4, count)[row].tolist()
            assert max(sizes) - min(sizes) <= 1
            joined = torch.cat([part[:size] for part, size in zip(own, sizes, strict=True)])
            assert torch.equal(joined, clips[row, :length])


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("segments", [1, 2, 4])
def test_consensus_of_segments(segments, with_lengths):
    classifier, clips = make(), draw()
    model = SegmentClassifier(classifier, segments)
    logits = model(clips, LENGTHS if with_lengths else None)
    for row, length in enumerate(LENGTHS.tolist() if with_lengths else [6] * 4):
        edges = [s * length // segments for s in range(segments + 1)]
        scores = [classifier(clips[row : row + 1, low:high]) for low, high in pairwise(edges) if high > low]
        torch.testing.assert_close(logits[row], torch.cat(scores).mean(0), **FLOAT64)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_two_streams(average):
    frame_stream, flow_stream = make(), make(4)
    model = TwoStreamClassifier(frame_stream, flow_stream, alpha=0.3, average=average).double()
    clips, flow = draw(), draw(4, steps=4)
    v, q = frame_stream(clips, LENGTHS), flow_stream(flow, LENGTHS - 2)
    mixed = {"logits": 0.3 * v + 0.7 * q, "probabilities": (0.3 * v.softmax(1) + 0.7 * q.softmax(1)).log()}
    torch.testing.assert_close(
        model(clips, flow, LENGTHS), mixed[average], rtol=1e-6, atol=1e-6
    )  # α is kept in float32


def test_a_learned_mixture():
    fixed, learned = (TwoStreamClassifier(make(), make(4), learned=learned) for learned in (False, True))
    assert len(list(learned.parameters())) == len(list(fixed.parameters())) + 1
    learned.double()(draw(), draw(4, steps=5)).log_softmax(1)[:, 0].sum().backward()
    assert learned.fusion.voting.scores.grad.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(pooling="max"), "pooling must be one of 'last', .* got 'max'"),
        (lambda: make(cell=None), "pooling must be 'mean', 'attention' or 'none' where cell is None, got 'last'"),
        (lambda: make(cell="elman"), "cell must be one of"),
        (lambda: make()(draw()[0]), r"frames must have shape \(B, T, C, Y, X\), got \(6, 2, 8, 8\)"),
        (lambda: make()(draw(), LENGTHS[:2]), r"lengths must have shape \(4\), got \(2\)"),
        (lambda: make().weights(draw()), "pooling must be 'attention' for there to be weights, got 'last'"),
        (lambda: Conv3dClassifier(2, 0), "num_classes must be a positive int"),
        (lambda: ConvLSTMClassifier(2, 0), "num_classes must be a positive int"),
        (lambda: ConvLSTMClassifier(2, 3, dropout=2.0), "dropout must be"),
        (lambda: ConvLSTMClassifier(2, 3)(draw()[0]), r"frames must have shape \(B, T, C, Y, X\), got \(6, 2, 8, 8\)"),
        (lambda: ConvLSTMClassifier(2, 3)(draw(3).float()), r"images must have shape \(B, 2, Y, X\)"),
        (lambda: ConvLSTMClassifier(2, 3)(draw(), LENGTHS[:2]), r"lengths must have shape \(4\), got \(2\)"),
        (lambda: ConvLSTMClassifier(2, 3)(draw(), LENGTHS.float()), "lengths must be a tensor of int"),
        (lambda: SegmentClassifier(make(), 0), "segments must be a positive int"),
        (lambda: SegmentClassifier(make(pooling="none"), 2)(draw()), r"what the classifier gives must have shape"),
        (lambda: TwoStreamClassifier(make(), make(4), alpha=1.5), r"alpha must be a number in \[0, 1\]"),
        (
            lambda: TwoStreamClassifier(make(), make(4))(draw(), draw(4, steps=7)),
            "flow must have at most 6 steps, those of frames, got 7",
        ),
        (
            lambda: TwoStreamClassifier(make(), make(4))(draw(), draw(4)[:2]),
            r"flow must have shape \(4, T', 2L, Y, X\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
