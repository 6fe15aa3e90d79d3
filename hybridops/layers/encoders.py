"""Encoders: what a decoder or a classifier looks back at, as a `Memory`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.checks import check_bool, check_choice, check_lengths, check_number, check_positive_int, check_shape

RECURRENT: dict[str, type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Memory(NamedTuple):
    """What every encoder gives and every decoder takes.

    values: (B, T, D), a vector for each region of an image, word of a sentence, frame of a video; zeros where masked.
    mask: (B, T) boolean, True = there is one; None: all of them.
    pooled: (B, P), of the whole.
    """

    values: Tensor
    mask: Tensor | None
    pooled: Tensor


def length_mask(lengths: Tensor | None, steps: int) -> Tensor | None:
    """(B, steps), True before the end of each row; None for None: no row ends early."""
    return None if lengths is None else torch.arange(steps, device=lengths.device) < lengths[:, None]


class RNNEncoder(nn.Module):
    """A recurrent network over a sequence, in one or both directions, that knows where each row ends.

    Args:
        input_dim, hidden_dim: channels E of x, H of a state.
        num_layers: of them, one on the other.
        cell: "rnn" (Elman 1990), "lstm" (Hochreiter & Schmidhuber 1997) or "gru" (Cho et al. 2014).
        bidirectional: whether a second network reads backwards, from each row's end (Schuster & Paliwal 1997).
        dropout: between the layers, in training.

    Shape: x (B, T, E), lengths None or integers (B,), where more than T is T. Gives a Memory: values (B, T, D), D = H
    or 2H, the last layer's states, zeros behind the end; mask, of the lengths; pooled (B, D): the state after the true
    last step, of the backward network that after the first. Padding may hold anything. A row without a step has zeros.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_layers: int = 1,
        *,
        cell: str = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_dim = check_positive_int("input_dim", input_dim)
        self.hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        make = RECURRENT[check_choice("cell", cell, tuple(RECURRENT))]
        directions = 2 if check_bool("bidirectional", bidirectional) else 1
        self.dim = directions * hidden_dim
        self.layers = nn.ModuleList()  # of each: the network that reads on, and the one that reads back
        for number in range(check_positive_int("num_layers", num_layers)):
            size = self.dim if number else input_dim
            self.layers.append(nn.ModuleList(make(size, hidden_dim, batch_first=True) for _ in range(directions)))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Memory:
        check_shape("x", x, ("B", "T", self.input_dim))
        mask = None
        if lengths is not None:
            check_lengths(lengths, x)
            lengths = lengths.long().clamp(0, x.shape[1])
            mask = length_mask(lengths, x.shape[1])
        if x.shape[0] == 0 or x.shape[1] == 0:
            return Memory(x.new_zeros(*x.shape[:2], self.dim), mask, x.new_zeros(x.shape[0], self.dim))
        steps = x.shape[1]
        if lengths is not None and not torch.compiler.is_compiling():
            x = x[:, : max(int(lengths.max()), 1)]  # less work, and the same bits however much padding there is
        values = self._last_layer(_blank(x, mask), lengths, mask)
        if lengths is None:
            last = values[:, -1]
        else:  # of a row without a step: zeros
            last = values.gather(1, (lengths.clamp(1) - 1)[:, None, None].expand(-1, 1, self.dim)).squeeze(1)
        pooled = torch.cat([last[:, : self.hidden_dim], values[:, 0, self.hidden_dim :]], 1)
        return Memory(F.pad(values, (0, 0, 0, steps - values.shape[1])), mask, pooled)

    def _last_layer(self, x: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
        """Not packed: on a CPU, the backward of a packed sequence takes seven times as long."""
        for number, networks in enumerate(self.layers):
            if number:
                x = self.dropout(x)
            directions = list(networks)  # type: ignore[call-overload]
            states = [directions[0](x)[0]]
            if len(directions) > 1:
                states.append(_reversed(directions[1](_reversed(x, lengths))[0], lengths))
            x = _blank(torch.cat(states, 2), mask)
        return x


def _blank(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask[:, : x.shape[1], None], 0.0)


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each row (T, D) from its end to its start, what is behind the end left where it is."""
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    index = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    return x.gather(1, index[..., None].expand_as(x))


class ConvEncoder(nn.Module):
    """A convolutional network over images: for each size in `channels` a 3×3 convolution, batch norm, ReLU and a
    halving of the image (2×2 maxima); `pool_last=False` leaves out the last halving.

    Args:
        strided: the convolutions halve, in strides of 2 and upwards what is odd: a quarter of the work.

    Shape: images (B, C, Y, X), at least 2 pixels high and wide for each halving. Gives a Memory: values (B, Y'·X', D),
    the regions row by row, D the last of `channels`; mask None; pooled (B, D), their mean. `map` gives (B, D, Y', X').

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        *,
        pool_last: bool = True,
        strided: bool = False,
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels must have a size for each layer, got none")
        check_bool("pool_last", pool_last)
        check_bool("strided", strided)
        self.in_channels = check_positive_int("in_channels", in_channels)
        sizes = [self.in_channels, *(check_positive_int("channels", size) for size in channels)]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(sizes), start=1):
            halves = pool_last or number < len(channels)
            conv = nn.Conv2d(before, after, 3, stride=2 if halves and strided else 1, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
            if halves and not strided:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.dim = sizes[-1]

    def forward(self, images: Tensor) -> Memory:
        return regions(self.map(images))

    def map(self, images: Tensor) -> Tensor:
        check_shape("images", images, ("B", self.in_channels, "Y", "X"))
        features: Tensor = self.layers(images)
        return features


class PretrainedEncoder(nn.Module):
    """Any feature extractor as an encoder: images -> features (B, D, Y, X), (B, T, D) or (B, D).

    Args:
        backbone: the module, with its weights.
        dim: the D of what it gives.
        frozen: it is not trained: no gradients, its parameters do not ask for any, and it stays in evaluation mode, so
            that statistics of its batch norms stay too.

    Gives a Memory: values (B, Y·X, D), (B, T, D) or (B, 1, D); mask None; pooled (B, D), their mean. `map` gives the
    features as they are, where they are (B, D, Y, X).

    Raises:
        TypeError, ValueError: an argument, or what the backbone gives, is not as said here.
    """

    def __init__(self, backbone: nn.Module, dim: int, *, frozen: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim = check_positive_int("dim", dim)
        self.frozen = check_bool("frozen", frozen)
        if frozen:
            backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PretrainedEncoder:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def map(self, images: Tensor) -> Tensor:
        features: Tensor = self._features(images)
        check_shape("what the backbone gives", features, (images.shape[0], self.dim, "Y", "X"))
        return features

    def _features(self, images: Tensor) -> Any:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone(images)

    def forward(self, images: Tensor) -> Memory:
        features = self._features(images)
        if isinstance(features, Tensor) and features.dim() == 4:
            check_shape("what the backbone gives", features, (images.shape[0], self.dim, "Y", "X"))
            return regions(features)
        if isinstance(features, Tensor) and features.dim() == 2:
            features = features[:, None]
        check_shape("what the backbone gives", features, (images.shape[0], "T", self.dim))
        return Memory(features, None, features.mean(1))


def regions(features: Tensor) -> Memory:
    """Of a map (B, D, Y, X): its regions (B, Y·X, D), row by row, and their mean."""
    values = features.flatten(2).transpose(1, 2)
    return Memory(values, None, values.mean(1))
