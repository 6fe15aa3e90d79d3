"""Encoders of video: clips (B, T, C, Y, X), of which `lengths` says how many frames there are, give a `Memory`.

What is behind the end of a clip may be anything, and changes nothing: batch norm does not count it either.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hybridops.checks import check_lengths, check_positive_int, check_shape
from hybridops.layers.encoders import Memory, length_mask
from hybridops.layers.pooling import MeanPooling


class FrameEncoder(nn.Module):
    """One image encoder over all frames, in one call and with the same weights.

    Args:
        encoder: gives a Memory of images (N, C, Y, X), and has the channels of its `pooled` as `dim`; a `ConvEncoder`,
            say, or a `PretrainedEncoder`.

    Shape: frames (B, T, C, Y, X), lengths None or integers (B,), where more than T is T. Gives a Memory: values
    (B, T, D), the encoder's `pooled` of each frame, zeros behind the end; mask, of the lengths; pooled (B, D), the mean
    of the frames that are there. Only these are encoded. A clip without a frame has zeros.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        dim: Any = encoder.dim
        self.encoder, self.dim = encoder, check_positive_int("dim of encoder", dim)
        self.pool = MeanPooling()

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Memory:
        mask = _mask(frames, lengths)
        batch, steps = frames.shape[:2]
        images, there = frames.flatten(0, 1), None
        if mask is not None:
            there = mask.flatten().nonzero().squeeze(1)
            images = images[there]
        if images.shape[0] == 0:
            values = frames.new_zeros(batch, steps, self.dim)
        else:
            features = self.encoder(images).pooled
            check_shape("pooled of encoder", features, (images.shape[0], self.dim))
            if there is not None:
                features = features.new_zeros(batch * steps, self.dim).index_copy(0, there, features)
            values = features.unflatten(0, (batch, steps))
        return Memory(values, mask, self.pool(values, mask))


def _mask(frames: Tensor, lengths: Tensor | None) -> Tensor | None:
    """(B, T), once the arguments are found to be right."""
    check_shape("frames", frames, ("B", "T", "C", "Y", "X"))
    if lengths is not None:
        check_lengths(lengths, frames)
    return length_mask(lengths, frames.shape[1])
