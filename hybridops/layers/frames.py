"""Encoders of video: clips (B, T, C, Y, X), of which `lengths` says how many frames there are, give a `Memory`.

What is behind the end of a clip may be anything and changes nothing: batch norm does not count it either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.checks import check_bool, check_lengths, check_positive_int, check_shape
from hybridops.layers.encoders import Memory, length_mask
from hybridops.layers.pooling import MeanPooling


class FrameEncoder(nn.Module):
    """One image encoder over all frames, in one call and with the same weights.

    Args:
        encoder: gives a Memory of images (N, C, Y, X), and has its channels as `dim`; a `ConvEncoder`, say, or a
            `PretrainedEncoder`. For `maps` it has a `map` of images too, (N, D, Y', X').
        regions: None: a frame is the encoder's `pooled`. R: it is the encoder's R values side by side, which say what
            is where, as motion needs it; of images of one size.

    Shape: frames (B, T, C, Y, X), lengths None or integers (B,), where more than T is T. Gives a Memory: values
    (B, T, D), D the encoder's, or R times as much, zeros behind the end; mask, of the lengths; pooled (B, D), the mean
    of the frames that are there. Only these are encoded. A clip without a frame has zeros.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, encoder: nn.Module, regions: int | None = None) -> None:
        super().__init__()
        dim: Any = encoder.dim
        self.encoder, self.dim = encoder, check_positive_int("dim of encoder", dim)
        self.regions = None if regions is None else check_positive_int("regions", regions)
        if self.regions is not None:
            self.dim *= self.regions
        self.pool = MeanPooling()

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Memory:
        check_clips(frames, lengths)
        mask = length_mask(lengths, frames.shape[1])
        values = _each_frame(self._encode, frames, mask, (self.dim,))
        return Memory(values, mask, self.pool(values, mask))

    def maps(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The encoder's `map` of each frame, (B, T, D, Y', X'), zeros behind the end; 1×1 zeros if no clip has one."""
        check_clips(frames, lengths)
        network: Any = self.encoder
        return _each_frame(network.map, frames, length_mask(lengths, frames.shape[1]), (network.dim, 1, 1))

    def _encode(self, images: Tensor) -> Tensor:
        """(N, D)."""
        memory: Memory = self.encoder(images)
        if self.regions is None:
            check_shape("pooled of encoder", memory.pooled, (images.shape[0], self.dim))
            return memory.pooled
        check_shape("values of encoder", memory.values, (images.shape[0], self.regions, self.dim // self.regions))
        return memory.values.flatten(1)


class Conv3dEncoder(nn.Module):
    """A convolutional network over space and time, Tran et al. 2015, https://arxiv.org/abs/1412.0767: for each size in
    `channels` a 3×3×3 convolution, batch norm, ReLU and a halving (maxima of 2×2×2; 1×2×2 in the first layer).

    Args:
        in_channels: C of a frame.
        channels: of each layer.
        pool_time: whether time is halved; False: maxima of 1×2×2 in all layers.

    Shape: frames (B, T, C, Y, X), lengths None or integers (B,), where more than T is T. What is odd is halved upwards.
    Gives a Memory: values (B, T', D), each time step's mean over the image, D the last of `channels` and T' the T that
    is left, zeros behind the end; mask, of the lengths that are left; pooled (B, D), the mean over time. A clip without
    a frame has zeros.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, in_channels: int, channels: Sequence[int] = (16, 32, 64), *, pool_time: bool = True) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels must have a size for each layer, got none")
        check_bool("pool_time", pool_time)
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.layers, before = nn.ModuleList(), self.in_channels
        for number, size in enumerate(channels):
            self.layers.append(_Conv3dLayer(before, check_positive_int("channels", size), pool_time and number > 0))
            before = size
        self.dim = before
        self.halvings = len(channels) - 1 if pool_time else 0
        self.pool = MeanPooling()

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Memory:
        check_clips(frames, lengths, self.in_channels)
        batch, steps = frames.shape[:2]
        if lengths is not None:
            lengths = lengths.long().clamp(0, steps)
            if batch and not torch.compiler.is_compiling():
                frames = frames[:, : int(lengths.max())]  # less work, and the same bits however much padding there is
        if 0 in frames.shape[:2]:
            values = frames.new_zeros(batch, 0, self.dim)
        else:
            values = self._features(frames.transpose(1, 2), lengths)
        for _ in range(self.halvings):
            steps, lengths = -(-steps // 2), None if lengths is None else (lengths + 1) // 2
        values = F.pad(values, (0, 0, 0, steps - values.shape[1]))
        mask = length_mask(lengths, steps)
        return Memory(values, mask, self.pool(values, mask))

    def _features(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T', D) of (B, C, T, Y, X)."""
        mask = length_mask(lengths, x.shape[2])
        x = _blank(x, mask)
        for layer in self.layers:
            x = layer(x, mask)
            if lengths is not None and mask is not None and mask.shape[1] != x.shape[2]:
                lengths = (lengths + 1) // 2
                mask = length_mask(lengths, x.shape[2])
        return x.mean((3, 4)).transpose(1, 2)


class _Conv3dLayer(nn.Module):
    """Of (B, C, T, Y, X), zeros behind the end: as the convolution's own padding, and no more than what ReLU gives."""

    def __init__(self, before: int, after: int, pool_time: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, after, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(after)
        self.pool = nn.MaxPool3d((2 if pool_time else 1, 2, 2), ceil_mode=True)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.conv(x)
        if mask is None or not self.training:
            x = self.norm(x)
        else:
            frames = x.transpose(1, 2)
            there = mask.flatten().nonzero().squeeze(1)
            normed = self.norm(frames.flatten(0, 1)[there].unsqueeze(2)).squeeze(2)
            x = _put(normed, there, frames).unflatten(0, frames.shape[:2]).transpose(1, 2)
        out: Tensor = self.pool(_blank(x.relu(), mask))
        return out


class SegmentConsensus(MeanPooling):
    """What the segments of a video say together: the mean of their scores *before* the softmax, Wang et al. 2016,
    https://arxiv.org/abs/1608.00859.

    Shape: logits (B, S, K), mask None or boolean (B, S), True = there is such a segment; gives logits (B, K).
    """


def check_clips(frames: Tensor, lengths: Tensor | None, channels: int | str = "C") -> None:
    check_shape("frames", frames, ("B", "T", channels, "Y", "X"))
    if lengths is not None:
        check_lengths(lengths, frames)


def _each_frame(
    network: Callable[[Tensor], Tensor], frames: Tensor, mask: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """What the network gives of the frames that are there, in one call, (B, T, *); zeros for the others, of this shape
    if none is there.
    """
    images, there = frames.flatten(0, 1), None
    if mask is not None:
        there = mask.flatten().nonzero().squeeze(1)
        images = images[there]
    if images.shape[0] == 0:
        return frames.new_zeros(*frames.shape[:2], *shape)
    features = network(images)
    if there is not None:
        features = _put(features, there, frames)
    found: Tensor = features.unflatten(0, frames.shape[:2])
    return found


def _put(features: Tensor, there: Tensor, frames: Tensor) -> Tensor:
    """Features (N, *) of some of the frames among those of all, (B·T, *); zeros for the others."""
    count = frames.shape[0] * frames.shape[1]
    return features.new_zeros(count, *features.shape[1:]).index_copy(0, there, features)


def _blank(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask[:, None, :, None, None], 0.0)
