"""Frames of a video, or fields of any other kind, read by ConvLSTMs: what comes next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybridops.checks import check_bool, check_number, check_positive_int, check_shape
from hybridops.modules import FusedConvLSTM


class ConvLSTMForecaster(nn.Module):
    """ConvLSTM layers that read frames, and as many that write the next ones, beginning in the states where the others
    end: the encoder-forecaster of Shi et al. 2015, https://arxiv.org/abs/1506.04214.

        h^l, c^l of encoder layer l after x_T are the first states of forecaster layer l
        logits of x_{T+s} = W [h^1_s; ...; h^L_s] + b        s = 1 ... S, h^l_s of the forecaster
        logits=False:      x̂_{T+s} itself
        relative:          x̂_{T+s} = x_T + W [...] + b, and x_1 - x_T, ..., 0 are read: the level does not matter

    The forecaster reads nothing, that is zeros, and all of its steps are one op a layer. With `conditional` it reads
    the frame before, x_{T+s-1}: the true one where it is given (teacher forcing, one op a layer as well), else its own.

    Args:
        in_channels: C of a frame.
        hidden_dim, kernel_size, num_layers: of the encoder, and of the forecaster.
        patch: pixels a side that become channels, so that a kernel looks `patch` times as far, at fewer places.
        steps: S, frames to forecast where a call does not say.
        conditional: whether the forecaster reads the frame before.
        logits: whether frames are in [0, 1] and `forward` returns logits of them; else it returns their values.
        relative: whether the last frame is taken from all frames and added to the forecasts; of values, not of logits.

    Shape: frames (B, T, C, Y, X), T at least 1, Y and X multiples of patch; gives (B, S, C, Y, X).

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_dim: int = 32,
        kernel_size: int = 3,
        num_layers: int = 2,
        *,
        patch: int = 1,
        steps: int = 10,
        conditional: bool = False,
        logits: bool = True,
        relative: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.patch = check_positive_int("patch", patch)
        self.steps = check_positive_int("steps", steps)
        self.conditional, self.logits = check_bool("conditional", conditional), check_bool("logits", logits)
        if check_bool("relative", relative) and logits:
            raise ValueError("relative must be False, or logits too: a frame cannot be added to logits")
        self.relative = relative
        channels = in_channels * patch**2
        sizes = hidden_dim, kernel_size, check_positive_int("num_layers", num_layers)
        self.encoder = _stack(channels, *sizes)
        self.forecaster = _stack(channels if conditional else 1, *sizes)
        self.head = nn.Linear(num_layers * hidden_dim, channels)

    def forward(
        self, frames: Tensor, future: Tensor | None = None, *, steps: int | None = None, sampling: float = 0.0
    ) -> Tensor:
        """`future`: the true frames (B, S, C, Y, X), for teacher forcing. `sampling`: the probability that an own frame
        stands in for a true one, scheduled sampling (Bengio et al. 2015, https://arxiv.org/abs/1506.03099).
        """
        check_number("sampling", sampling, 0.0, 1.0)
        steps = None if steps is None else check_positive_int("steps", steps)
        x = to_patches("frames", frames, self.in_channels, self.patch)
        if x.shape[0] == 0:
            raise ValueError(f"frames must have at least one step, got shape {tuple(frames.shape)}")
        origin = x[-1:] if self.relative else x.new_zeros(())
        x = x - origin
        if future is None:
            read = x[-1:].expand(self.steps if steps is None else steps, *x.shape[1:])
        elif self.conditional:
            check_shape("future", future, (frames.shape[0], "S" if steps is None else steps, *frames.shape[2:]))
            check_positive_int("the steps of future", future.shape[1])
            true = to_patches("future", future, self.in_channels, self.patch)
            read = torch.cat([x[-1:], true[:-1] - origin])
        else:
            raise ValueError("future must be None, as only a conditional forecaster reads it")

        _, states = _run(self.encoder, x)
        if not self.conditional:
            forecasts, _ = self._write(read.new_zeros(()).expand_as(read[..., :1]), states)
        elif future is not None and sampling == 0.0:
            forecasts, _ = self._write(read, states)
        else:
            forecasts = self._write_step_by_step(read, states, 1.0 if future is None else sampling)
        return from_patches(forecasts + origin, self.patch)

    def _write(self, read: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        """Forecasts (S, B, Y', X', C'), and the states after them."""
        hidden, states = _run(self.forecaster, read, states)
        forecasts: Tensor = self.head(torch.cat(hidden, -1))
        return forecasts, states

    def _write_step_by_step(self, true: Tensor, states: list[Any], sampling: float) -> Tensor:
        forecasts: list[Tensor] = []
        for read in true.split(1):
            if forecasts:
                own = forecasts[-1].sigmoid() if self.logits else forecasts[-1]
                chosen = torch.rand(read.shape[1], 1, 1, 1, device=read.device) < sampling
                read = torch.where(chosen, own, read)
            forecast, states = self._write(read, states)
            forecasts.append(forecast)
        return torch.cat(forecasts)


def to_patches(name: str, frames: Tensor, channels: int, patch: int) -> Tensor:
    """(B, T, C, Y, X) -> (T, B, Y', X', C'), with Y' = Y/patch, X' = X/patch and C' = C·patch²: the op's own layout."""
    check_shape(name, frames, ("B", "T", channels, "Y", "X"))
    batch, steps, _, height, width = frames.shape
    if height % patch or width % patch:
        raise ValueError(f"{name} must have a height and width that {patch} divides, got shape {tuple(frames.shape)}")
    parts = frames.reshape(batch, steps, channels, height // patch, patch, width // patch, patch)
    return parts.permute(1, 0, 3, 5, 2, 4, 6).flatten(4)


def from_patches(x: Tensor, patch: int) -> Tensor:
    """The reverse."""
    parts: Tensor = x.unflatten(4, (-1, patch, patch))
    return parts.permute(1, 0, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4)


def _stack(channels: int, hidden_dim: int, kernel_size: int, num_layers: int) -> nn.ModuleList:
    """Layers of one each, as a `FusedConvLSTM` of several gives the hidden states of the last alone."""
    sizes = [channels] + [hidden_dim] * (num_layers - 1)
    return nn.ModuleList(FusedConvLSTM(size, hidden_dim, kernel_size, batch_first=False) for size in sizes)


def _run(layers: nn.ModuleList, x: Tensor, states: list[Any] | None = None) -> tuple[list[Tensor], list[Any]]:
    """x (T, B, Y', X', C') -> the hidden states (T, B, Y', X', H) and the last state of each layer."""
    hidden, last = [], []
    for layer, state in zip(layers, states or [None] * len(layers), strict=True):
        x, state = layer(x.movedim(4, 2), state)
        x = x.movedim(2, 4)
        hidden.append(x)
        last.append(state)
    return hidden, last
