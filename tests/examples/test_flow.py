"""Optical flow of sprites whose motion is known."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from examples.data import flow, moving_sprites
from examples.data.moving_sprites import FRAME, LOOP, MOTIONS


def test_flow_is_the_motion_of_the_sprites():
    clips = moving_sprites.clips("train", 12, 3)
    slow = torch.tensor([abs(places) == 1 for places in MOTIONS.values()])[clips.motion]
    found = flow.optical_flow(clips.frames)
    assert found.shape == (12, 2, 2, FRAME, FRAME)
    bright = clips.frames[:, 0, 0] > 128
    places = torch.tensor(list(MOTIONS.values()))[clips.motion] * FRAME // LOOP
    assert slow.sum() > 2
    for row in slow.nonzero().flatten():  # fast ones now and then pass the edge, or are lost
        x, y = found[row, 0].flatten(1)[:, bright[row].flatten()].median(1).values
        assert (x - places[row]).abs() < 0.3
        assert y.abs() < 0.3


def test_stacks_are_steps_in_a_row():
    some = torch.randn(2, 5, 2, 3, 4)
    stacked = flow.stacks(some, 3)
    assert stacked.shape == (2, 3, 6, 3, 4)
    for t in range(3):
        for k in range(3):
            assert torch.equal(stacked[:, t, 2 * k : 2 * k + 2], some[:, t + k])


def test_it_is_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDOPS_CACHE", str(tmp_path))
    first = flow.clips_with_flow("validation", 2, 3)
    monkeypatch.setattr(flow, "optical_flow", None)
    again = flow.clips_with_flow("validation", 2, 3)
    assert torch.equal(again.flow, first.flow)
    assert torch.equal(again.clips.frames, first.clips.frames)
