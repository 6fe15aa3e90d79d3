"""Films: a recurrent network over the frames, or two, over the frames of each shot and over shots."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridops.checks import check_bool, check_lengths, check_shape
from hybridops.layers.encoders import Memory, RNNEncoder
from hybridops.layers.frames import FrameEncoder
from hybridops.layers.pooling import MeanPooling


class VideoEncoder(nn.Module):
    """A recurrent network over what an image encoder makes of each frame: h_t = RNN(CNN(frame_t), h_{t-1}).

    Of a film in shots (`shots`) it is a `ShotEncoder`, and h_t = [f_t; g_i]: the state in shot i, and that of the shot.

    Args:
        encoder, regions: of a `FrameEncoder`.
        hidden_dim: H of a state.
        cell, bidirectional: as in `RNNEncoder`.
        shots: whether a film comes in shots.

    Shape: frames (B, T, C, Y, X); lengths None or integers (B,), frames of each film, with `shots` (B, N), frames of
    each of its shots, 0 behind the last one, None: one shot. Gives a Memory: values (B, T, D), D = H, twice as much if
    bidirectional and again if in shots, the h_t, zeros behind the end; mask, of the lengths; pooled (B, D), the mean of
    those that are there.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        encoder: nn.Module,
        hidden_dim: int,
        *,
        regions: int | None = None,
        cell: str = "lstm",
        bidirectional: bool = False,
        shots: bool = False,
    ) -> None:
        super().__init__()
        self.frames = FrameEncoder(encoder, regions)
        network = ShotEncoder if check_bool("shots", shots) else RNNEncoder
        self.rnn = network(self.frames.dim, hidden_dim, cell=cell, bidirectional=bidirectional)
        self.dim, self.pool = self.rnn.dim * (2 if shots else 1), MeanPooling()

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Memory:
        if isinstance(self.rnn, ShotEncoder):
            of_film, lengths = film_lengths(frames, lengths)
            film = self.rnn(self.frames(frames, of_film).values, lengths)
            of_shot = by_frame(film.shots.values[:, :, None], film.lengths, frames.shape[1])
            values, mask = torch.cat([film.frames.values, of_shot], 2), film.frames.mask
        else:
            values, mask, _ = self.rnn(self.frames(frames, lengths).values, lengths)
        return Memory(values, mask, self.pool(values, mask))


class ShotMemory(NamedTuple):
    """What `ShotEncoder` gives and `TwoLevelTokenDecoder` takes. `pooled` of both levels is that of the whole film.

    frames: values (B, T, D), in the order of the film, zeros behind its end.
    shots: values (B, N, D), zeros where there is no shot.
    lengths: int64 (B, N), frames of each shot, which follow one another in `frames`; 0 where there is none.
    """

    frames: Memory
    shots: Memory
    lengths: Tensor


class ShotEncoder(nn.Module):
    """A recurrent network over the frames of each shot, and one over the shots, Pan et al. 2016,
    https://arxiv.org/abs/1511.03476.

        f_t = RNN(x_t, f_{t-1}), from zeros where a shot begins
        g_i = RNN(f at the end of shot i, g_{i-1})                        film: g of the last shot

    Args:
        input_dim, hidden_dim: channels E of a frame's vector, H of a state.
        cell, bidirectional: of both networks, as in `RNNEncoder`.

    Shape: x (B, T, E), the frames' vectors, of a `FrameEncoder` say; lengths integers (B, N), frames of each shot in
    turn, 0 behind the last one. Gives a `ShotMemory` of channels D = H or 2H. Behind the end of a film may be anything.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, input_dim: int, hidden_dim: int, *, cell: str = "lstm", bidirectional: bool = False) -> None:
        super().__init__()
        self.frames = RNNEncoder(input_dim, hidden_dim, cell=cell, bidirectional=bidirectional)
        self.dim = self.frames.dim
        self.shots = RNNEncoder(self.dim, hidden_dim, cell=cell, bidirectional=bidirectional)

    def forward(self, x: Tensor, lengths: Tensor) -> ShotMemory:
        check_shape("x", x, ("B", "T", self.frames.input_dim))
        lengths = checked_shots(lengths, x)
        states, _, ends = self.frames(by_shot(x, lengths).flatten(0, 1), lengths.flatten())
        there = lengths > 0
        shots = self.shots(ends.unflatten(0, lengths.shape), there.sum(1))
        mask = torch.arange(x.shape[1], device=x.device) < lengths.sum(1, keepdim=True)
        film = by_frame(states.unflatten(0, lengths.shape), lengths, x.shape[1])
        return ShotMemory(Memory(film, mask, shots.pooled), shots._replace(mask=there), lengths)


def film_lengths(frames: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Of films (B, T, ...) in shots: frames of each film, (B,) or None, all of them, and of each shot, (B, N)."""
    if lengths is None:  # one shot
        return None, torch.full((frames.shape[0], 1), frames.shape[1], device=frames.device)
    check_shape("lengths", lengths, (frames.shape[0], "N"))
    return lengths.sum(1), lengths


def checked_shots(lengths: Tensor, x: Tensor) -> Tensor:
    """lengths (B, N) of shots of x (B, T, ...), int64, once they are found to be right."""
    check_shape("lengths", lengths, (x.shape[0], "N"))
    if x.shape[1] == 0 or lengths.shape[1] == 0:
        raise ValueError(f"x must have a frame and lengths a shot, got {tuple(x.shape)} and {tuple(lengths.shape)}")
    check_lengths(lengths.flatten(), x.new_empty(1).expand(lengths.numel()))
    if lengths.numel() and not torch.compiler.is_compiling():
        most, gap = int(lengths.sum(1).max()), bool(((lengths[:, :-1] == 0) & (lengths[:, 1:] > 0)).any())
        if most > x.shape[1] or gap or int(lengths.min()) < 0:
            found = lengths.tolist()
            raise ValueError(f"lengths must add up to at most {x.shape[1]} frames, 0 behind the last shot, got {found}")
    return lengths.long()


def by_shot(x: Tensor, lengths: Tensor) -> Tensor:
    """x (B, T, D), of a film, as (B, N, L, D): the frames of each shot, L of the longest, zeros behind the end."""
    longest = x.shape[1] if torch.compiler.is_compiling() or not lengths.numel() else max(int(lengths.max()), 1)
    step = torch.arange(longest, device=x.device)
    frame = (lengths.cumsum(1) - lengths)[..., None] + step  # (B, N, L)
    rows = torch.arange(x.shape[0], device=x.device)[:, None, None]
    return x[rows, frame.clamp(max=x.shape[1] - 1)].masked_fill((step >= lengths[..., None])[..., None], 0.0)


def by_frame(x: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """The reverse of `by_shot`: x (B, N, L, *) in the order of the film, (B, steps, *), zeros behind its end."""
    step = torch.arange(steps, device=x.device)
    ends = lengths.cumsum(1)
    shot = (step[:, None] >= ends[:, None]).sum(2)  # (B, T)
    behind, shot = shot == lengths.shape[1], shot.clamp(max=lengths.shape[1] - 1)
    within = (step - (ends - lengths).gather(1, shot)).clamp(0, x.shape[2] - 1)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, shot, within].masked_fill(behind.view(*behind.shape, *(1,) * (x.dim() - 3)), 0.0)
