"""Classifiers of feature vectors, sequences and images: a perceptron, recurrent networks, a convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from hybridops.checks import check_number, check_positive_int, check_shape
from hybridops.layers.encoders import RNNEncoder


class MLP(nn.Module):
    """A multilayer perceptron: linear layers with ReLU between them.

    Args:
        input_dim: features D.
        hidden_dims: units of each hidden layer.
        output_dim: of the logits.
        dropout: of hidden units, in training.

    Shape: x (..., D); gives logits (..., output_dim).

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self, input_dim: int, hidden_dims: Sequence[int] = (64, 32), output_dim: int = 1, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.input_dim = check_positive_int("input_dim", input_dim)
        sizes = [self.input_dim, *(check_positive_int("hidden_dims", size) for size in hidden_dims)]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], check_positive_int("output_dim", output_dim)))

    def forward(self, x: Tensor) -> Tensor:
        check_shape("x", x, (*("*" for _ in x.shape[:-1]), self.input_dim))
        logits: Tensor = self.layers(x)
        return logits


class SequenceClassifier(nn.Module):
    """Many to one: a recurrent network over a sequence of vectors, a linear layer on its last states.

        logits = W_o h_T + b_o              bidirectional: h_T = [state after the last step; backwards after the first]

    With num_layers > 1 the recurrent network is stacked: each layer reads the states of the one below. That is not
    Moniz & Krueger's nested LSTM (2017, https://arxiv.org/abs/1801.10308), whose memory cell is itself an LSTM.

    Args:
        input_dim, hidden_dim: channels of x, of a state.
        output_dim: of the logits.
        num_layers, cell, bidirectional: as in `RNNEncoder`: "rnn", "lstm" or "gru".
        dropout: between layers and of the last states, in training.

    Shape: x (B, T, input_dim), lengths None or integers (B,); gives logits (B, output_dim). What stands behind the end
    of a row changes nothing.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_layers: int = 1,
        *,
        cell: str = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = RNNEncoder(
            input_dim, hidden_dim, num_layers, cell=cell, bidirectional=bidirectional, dropout=dropout
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.encoder.dim, check_positive_int("output_dim", output_dim))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.encoder(x, lengths).pooled))
        return logits


class ConvClassifier(nn.Module):
    """Three 3×3 convolutions with ReLU, the third dilated by 2, and a perceptron.

        16 channels, 2×2 maxima; 32 channels, 2×2 means; 64 channels, maxima of a 4×4 grid; 128, 64 units; logits

    Args:
        in_channels: of the images.
        num_classes: of the logits.
        dropout: of the perceptron's hidden units, in training.

    Shape: images (B, in_channels, Y, X), at least 4 pixels high and wide; gives logits (B, num_classes).

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(32, 64, 3, padding=2, dilation=2), nn.ReLU(), nn.AdaptiveMaxPool2d(4),
        )  # fmt: skip
        self.classifier = MLP(64 * 4 * 4, (128, 64), num_classes, dropout=dropout)

    def forward(self, images: Tensor) -> Tensor:
        check_shape("images", images, ("B", self.in_channels, "Y", "X"))
        if min(images.shape[2:]) < 4:
            raise ValueError(f"images must be at least 4 pixels high and wide, got {tuple(images.shape)}")
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
