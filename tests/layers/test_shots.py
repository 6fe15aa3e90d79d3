"""Encoders of films: what they give is what their networks give of each clip, and of each shot, alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridops.layers import ConvEncoder, ShotEncoder, VideoEncoder
from hybridops.layers.shots import by_frame, by_shot
from tests.tolerances import EXACT, FLOAT64

LENGTHS = torch.tensor([[3, 1, 4], [2, 5, 0], [6, 0, 0]])
T = 9


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw() -> tuple[Tensor, Tensor]:
    """Vectors of frames with NaN behind the end of each film, and without."""
    x = torch.randn(3, T, 5).double()
    behind = torch.arange(T) >= LENGTHS.sum(1, keepdim=True)
    return x.masked_fill(behind[..., None], torch.nan), x


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3), st.integers(0, 2))
def test_frames_by_shot(films, behind):
    number, steps = max(map(len, films)), max(map(sum, films)) + behind
    lengths = torch.tensor([film + [0] * (number - len(film)) for film in films])
    x = torch.randn(len(films), steps, 2)
    shots = by_shot(x, lengths)
    back = by_frame(shots, lengths, steps)
    assert shots.shape[2] == lengths.max()
    for row, film in enumerate(films):
        for shot, part in enumerate(x[row, : sum(film)].split(film)):
            assert torch.equal(shots[row, shot, : len(part)], part)
            assert not shots[row, shot, len(part) :].any()
        assert torch.equal(back[row, : sum(film)], x[row, : sum(film)])
        assert not back[row, sum(film) :].any()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_shot_is_read_alone(cell, bidirectional):
    encoder = ShotEncoder(5, 4, cell=cell, bidirectional=bidirectional).double()
    padded, x = draw()
    frames, shots, lengths = encoder(padded, LENGTHS)
    assert torch.equal(lengths, LENGTHS)
    assert torch.equal(frames.mask, torch.arange(T) < LENGTHS.sum(1, keepdim=True))
    assert torch.equal(shots.mask, LENGTHS > 0)
    for row, counts in enumerate(LENGTHS.tolist()):
        parts = [part[None] for part in x[row, : sum(counts)].split([count for count in counts if count])]
        read = [encoder.frames(part) for part in parts]
        film = encoder.shots(torch.stack([each.pooled for each in read], 1))
        torch.testing.assert_close(frames.values[row, : sum(counts)], torch.cat([m.values[0] for m in read]), **FLOAT64)
        torch.testing.assert_close(shots.values[row, : len(parts)], film.values[0], **FLOAT64)
        torch.testing.assert_close(shots.pooled[row], film.pooled[0], **FLOAT64)
        assert not frames.values[row, sum(counts) :].any()
        assert not shots.values[row, len(parts) :].any()
    torch.testing.assert_close(frames.pooled, shots.pooled, **EXACT)


def test_gradients_of_shots_are_finite_and_stay_within():
    encoder = ShotEncoder(5, 4).double()
    padded, _ = draw()
    padded.requires_grad_()
    memory = encoder(padded, LENGTHS)
    memory.frames.values[0, 3].sum().backward()  # the second shot, which has one frame
    assert padded.grad.isfinite().all()
    assert padded.grad[0].any(1).nonzero().flatten().tolist() == [3]


def test_no_films_and_no_shots():
    encoder = ShotEncoder(5, 4)
    none = encoder(torch.randn(0, T, 5), LENGTHS[:0])
    assert none.frames.values.shape == (0, T, 4)
    assert none.shots.values.shape == (0, 3, 4)
    empty = encoder(torch.randn(2, T, 5), torch.zeros(2, 3, dtype=torch.int64))
    assert not empty.frames.values.any()
    assert not empty.shots.pooled.any()


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([[5, 5]] * 3), r"lengths must add up to at most 9 frames"),
        (
            torch.tensor([[3, 0, 2]] * 3),
            r"lengths must add up to at most 9 frames, 0 behind the last shot, got \[\[3, 0",
        ),
        (torch.tensor([[5, -1]] * 3), r"lengths must add up"),
        (torch.zeros(3, 0, dtype=torch.int64), r"x must have a frame and lengths a shot, got \(3, 9, 5\) and \(3, 0\)"),
        (torch.tensor([3, 3, 3]), r"lengths must have shape \(3, N\), got \(3\)"),
    ],
)
def test_lengths_that_do_not_fit(lengths, message):
    with pytest.raises(ValueError, match=message):
        ShotEncoder(5, 4)(torch.randn(3, T, 5), lengths)


def test_lengths_are_integers():
    with pytest.raises(TypeError, match="lengths must be a tensor of integers"):
        ShotEncoder(5, 4)(torch.randn(3, T, 5), LENGTHS.float())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_film_is_a_recurrent_network_over_encoded_frames(cell):
    encoder = VideoEncoder(ConvEncoder(3, (4, 6)), 5, cell=cell, bidirectional=True).double().eval()
    film, lengths = torch.rand(3, 4, 3, 8, 8).double(), torch.tensor([4, 1, 3])
    behind = torch.arange(4) >= lengths[:, None]
    memory = encoder(film.masked_fill(behind[..., None, None, None], torch.nan), lengths)
    assert torch.equal(memory.mask, ~behind)
    assert encoder.dim == 10
    for row, length in enumerate(lengths.tolist()):
        vectors = encoder.frames.encoder(film[row, :length]).pooled
        states = encoder.rnn(vectors[None]).values[0]
        torch.testing.assert_close(memory.values[row, :length], states, **FLOAT64)
        torch.testing.assert_close(memory.pooled[row], states.mean(0), **FLOAT64)
        assert not memory.values[row, length:].any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_film_in_shots_has_the_state_in_a_shot_and_that_of_the_shot(bidirectional):
    encoder = VideoEncoder(ConvEncoder(3, (4, 6)), 5, cell="gru", bidirectional=bidirectional, shots=True)
    encoder = encoder.double().eval()
    film, lengths = torch.rand(3, 5, 3, 8, 8).double(), torch.tensor([[2, 1, 2], [1, 3, 0], [1, 0, 0]])
    behind = torch.arange(5) >= lengths.sum(1, keepdim=True)
    memory = encoder(film.masked_fill(behind[..., None, None, None], torch.nan), lengths)
    assert torch.equal(memory.mask, ~behind)
    assert encoder.dim == memory.values.shape[2] == (20 if bidirectional else 10)
    for row, counts in enumerate(lengths.tolist()):
        count = sum(counts)
        vectors = encoder.frames.encoder(film[row, :count]).pooled
        read = [encoder.rnn.frames(part[None]) for part in vectors.split([each for each in counts if each])]
        shots = encoder.rnn.shots(torch.stack([part.pooled for part in read], 1)).values[0]
        states = [torch.cat([state, shot]) for part, shot in zip(read, shots, strict=True) for state in part.values[0]]
        torch.testing.assert_close(memory.values[row, :count], torch.stack(states), **FLOAT64)
        torch.testing.assert_close(memory.pooled[row], torch.stack(states).mean(0), **FLOAT64)
        assert not memory.values[row, count:].any()


def test_without_lengths_a_film_is_one_shot():
    encoder = VideoEncoder(ConvEncoder(3, (4, 6)), 5, shots=True).double().eval()
    film = torch.rand(2, 4, 3, 8, 8).double()
    expected = encoder(film, torch.tensor([[4, 0], [4, 0]]))
    torch.testing.assert_close(encoder(film).values, expected.values, **FLOAT64)


def test_a_film_in_shots_has_their_lengths():
    with pytest.raises(TypeError, match="shots must be a bool"):
        VideoEncoder(ConvEncoder(3, (4, 6)), 5, shots=1)
    encoder = VideoEncoder(ConvEncoder(3, (4, 6)), 5, shots=True)
    with pytest.raises(ValueError, match=r"lengths must have shape \(2, N\), got \(2\)"):
        encoder(torch.rand(2, 4, 3, 8, 8), torch.tensor([4, 4]))
