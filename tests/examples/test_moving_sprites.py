"""Moving sprites: what the clips are said to show, and only that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn")
from examples.data import moving_sprites as sprites


def centres(frames: Tensor) -> Tensor:
    """Where the light of frames (T, 1, Y, X) is, on a circle: (T,), 0 ... LOOP."""
    angle = torch.arange(sprites.FRAME) * 2 * torch.pi / sprites.FRAME
    columns = (frames.float() - 60).clamp(min=0).sum((1, 2))
    turn = torch.atan2((columns * angle.sin()).sum(1), (columns * angle.cos()).sum(1))
    return turn.remainder(2 * torch.pi) * sprites.LOOP / (2 * torch.pi)


@pytest.fixture(autouse=True)
def without_noise(request, monkeypatch):
    if "noise" not in request.node.name:
        monkeypatch.setattr(sprites, "NOISE", 0.0)


def test_only_the_order_tells_the_motion():
    """Frames of a clip are the same ones, but for their order, whatever the motion."""
    clips = sprites.clips("test", 12)
    for frames in clips.frames:
        orders = {tuple(frames.flatten(1).float().mul(torch.arange(1024)).sum(1).sort().values.tolist())}
        shifted = torch.stack([frames[0].roll(2 * place, 2) for place in range(sprites.LOOP)])
        orders.add(tuple(shifted.flatten(1).float().mul(torch.arange(1024)).sum(1).sort().values.tolist()))
        assert len(orders) == 1


def test_motions():
    clips = sprites.clips("train", 40)
    assert set(clips.motion.tolist()) == {0, 1, 2, 3}
    for frames, motion in zip(clips.frames, clips.motion, strict=True):
        moved = centres(frames).diff()
        expected = torch.tensor(list(sprites.MOTIONS.values())[motion]).expand_as(moved)
        difference = (moved - expected + 8).remainder(sprites.LOOP) - 8
        torch.testing.assert_close(difference, torch.zeros(15), atol=0.05, rtol=0)


def test_long_clips_drift_in_one_stretch():
    clips = sprites.long_clips("train", 8)
    assert clips.frames.shape == (8, 64, 1, 32, 32)
    for frames, motion in zip(clips.frames, clips.motion, strict=True):
        step = list(sprites.MOTIONS.values())[motion]
        drifts = [
            ((centres(stretch).diff() - step + 8).remainder(16) - 8).abs().max() < 0.1 for stretch in frames.split(16)
        ]
        assert sum(drifts) == 1


def test_needles():
    clips = sprites.needles("validation", 20, steps=5)
    assert clips.frames.shape == (20, 5, 1, 32, 32)
    assert set(clips.at.tolist()) == set(range(5))
    images, digits = (of_all[sprites.PARTS["validation"]] for of_all in sprites.load_sprites())
    known = (255 * images).round().to(torch.uint8)
    for frames, digit, at in zip(clips.frames, clips.digit, clips.at, strict=True):
        windows = frames[at, 0].roll(16, 1).repeat(1, 2).unfold(0, 16, 1).unfold(1, 16, 1).flatten(0, 1)
        same = (windows[:, None] == known[digits == digit]).all((2, 3))
        assert same.any()


def test_shots():
    shots = sprites.shots("train", 30)
    assert shots.frames.shape == (30, 30, 3, 32, 32)
    assert shots.lengths.min() >= 6
    assert shots.lengths.max() <= 10
    for frames, lengths, colour in zip(shots.frames, shots.lengths, shots.colour, strict=True):
        assert frames[int(lengths.sum()) :].sum() == 0
        light = frames[: int(lengths.sum())].float().sum((2, 3))
        for part, number in zip(light.split(lengths.tolist()), colour, strict=True):
            tint = torch.tensor(list(sprites.COLOURS.values()))[number]
            torch.testing.assert_close(
                part / part.sum(1, keepdim=True), (tint / tint.sum()).expand_as(part), atol=0.01, rtol=0
            )
    for kinds in (shots.digit, shots.motion, shots.colour):
        assert all(len(set(row.tolist())) == 3 for row in kinds)


def test_seeds_and_noise():
    first, again, other = (sprites.clips("train", 3, seed=seed).frames for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first[0, 0].unique()) > 20
