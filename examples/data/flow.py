"""Optical flow of moving sprites, by scikit-image: where each pixel of a frame is in the next one.

It takes 10 ms for two frames, so it is kept (see cache.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from skimage.registration import optical_flow_ilk
from torch import Tensor

from examples.data import moving_sprites
from examples.data.cache import cached
from examples.data.moving_sprites import Clips


class FlowClips(NamedTuple):
    clips: Clips
    flow: Tensor  # float16 (N, T - 1, 2, FRAME, FRAME), x and y, in pixels


def clips_with_flow(part: str, count: int, steps: int = 8, seed: int = 0) -> FlowClips:
    """`moving_sprites.clips` and their flow."""
    clips = moving_sprites.clips(part, count, steps, seed)
    name = f"sprite_flow_{part}_{count}_{steps}_{seed}"
    return FlowClips(clips, cached(name, lambda: optical_flow(clips.frames).half()))


def optical_flow(frames: Tensor) -> Tensor:
    """Of uint8 (N, T, 1, Y, X), from each frame to the next: (N, T - 1, 2, Y, X), x to the right and y down, in pixels;
    iterative Lucas–Kanade, Le Besnerais & Champagnat 2005.
    """
    flow = torch.empty(len(frames), frames.shape[1] - 1, 2, *frames.shape[3:])
    for film, found in zip((frames[:, :, 0] / 255.0).numpy(), flow, strict=True):
        for t in range(len(found)):
            found[t] = torch.from_numpy(optical_flow_ilk(film[t], film[t + 1])[::-1].copy())  # rows come first
    return flow


def stacks(flow: Tensor, length: int) -> Tensor:
    """The flows of `length` steps in a row as channels, Simonyan & Zisserman 2014, https://arxiv.org/abs/1406.2199:
    (N, F, 2, Y, X) gives (N, F - length + 1, 2 · length, Y, X).
    """
    return flow.unfold(1, length, 1).movedim(-1, 2).flatten(2, 3)
