"""Encoders: what a decoder or a classifier looks back at, as a `Memory`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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

    Shape: x (B, T, E), lengths None or integers (B,). Gives a Memory: values (B, T, D), D = H or 2H, the last layer's
    states, zeros behind the end; mask, of the lengths; pooled (B, D): the state after the true last step, of the
    backward network that after the first. Padding may hold anything. A row without a step has zeros.

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
        check_number("dropout", dropout, 0.0, 1.0)
        self.rnn: nn.RNNBase = RECURRENT[check_choice("cell", cell, tuple(RECURRENT))](
            self.input_dim, check_positive_int("hidden_dim", hidden_dim), check_positive_int("num_layers", num_layers),
            batch_first=True, bidirectional=check_bool("bidirectional", bidirectional),
            dropout=dropout if num_layers > 1 else 0.0,
        )  # fmt: skip
        self.dim = hidden_dim * (2 if bidirectional else 1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Memory:
        check_shape("x", x, ("B", "T", self.input_dim))
        if lengths is None:
            values, states = self.rnn(x)
            return Memory(values, None, self._last_layer(states))
        check_lengths(lengths, x)
        mask = length_mask(lengths, x.shape[1])
        assert mask is not None
        if x.numel() == 0:
            return Memory(x.new_zeros(*x.shape[:2], self.dim), mask, x.new_zeros(x.shape[0], self.dim))
        # A row without a step is read as one of zeros, which is then taken away.
        x = x.masked_fill(~mask[..., None], 0.0)
        packed = pack_padded_sequence(x, lengths.clamp(1).cpu(), batch_first=True, enforce_sorted=False)
        packed_values, states = self.rnn(packed)
        values, _ = pad_packed_sequence(packed_values, batch_first=True, total_length=x.shape[1])
        pooled = torch.where((lengths > 0)[:, None], self._last_layer(states), 0.0)
        return Memory(values.masked_fill(~mask[..., None], 0.0), mask, pooled)

    def _last_layer(self, states: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """(B, D) of the states (layers · directions, B, H) after the last step."""
        h = states[0] if isinstance(states, tuple) else states
        return torch.cat([h[-2], h[-1]], 1) if self.rnn.bidirectional else h[-1]


class ConvEncoder(nn.Module):
    """A convolutional network over images: for each size in `channels` a 3×3 convolution, batch norm, ReLU and a
    halving of the image (2×2 maxima); `pool_last=False` leaves out the last halving.

    Shape: images (B, C, Y, X), at least 2 pixels high and wide for each halving. Gives a Memory: values (B, Y'·X', D),
    the regions row by row, D the last of `channels`; mask None; pooled (B, D), their mean.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, in_channels: int, channels: Sequence[int] = (32, 64, 128), *, pool_last: bool = True) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels must have a size for each layer, got none")
        check_bool("pool_last", pool_last)
        self.in_channels = check_positive_int("in_channels", in_channels)
        sizes = [self.in_channels, *(check_positive_int("channels", size) for size in channels)]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(sizes), start=1):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            if pool_last or number < len(channels):
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.dim = sizes[-1]

    def forward(self, images: Tensor) -> Memory:
        check_shape("images", images, ("B", self.in_channels, "Y", "X"))
        return regions(self.layers(images))


class PretrainedEncoder(nn.Module):
    """Any feature extractor as an encoder: images -> features (B, D, Y, X), (B, T, D) or (B, D).

    Args:
        backbone: the module, with its weights.
        dim: the D of what it gives.
        frozen: it is not trained: no gradients, its parameters do not ask for any, and it stays in evaluation mode, so
            that statistics of its batch norms stay too.

    Gives a Memory: values (B, Y·X, D), (B, T, D) or (B, 1, D); mask None; pooled (B, D), their mean.

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

    def forward(self, images: Tensor) -> Memory:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(images)
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
