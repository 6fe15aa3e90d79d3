"""A sequence and an image that are classified together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hybridops.checks import check_choice, check_number, check_positive_int
from hybridops.layers.encoders import ConvEncoder, RNNEncoder
from hybridops.layers.fusion import FUSIONS, LateFusion, vector_fusion


class MultimodalClassifier(nn.Module):
    """A recurrent branch for a sequence, a convolutional one for an image, and one decision.

        s = relu(W_s RNN(sequence))        v = relu(W_v CNN(image))        logits = W dropout(fusion(v, s))
        fusion="late":                                                     log(α softmax(W v) + (1 − α) softmax(W' s))

    Args:
        input_dim, in_channels: channels E of a sequence's step, C of the image.
        num_classes: to choose from.
        fusion: "late", α learned, or one of `layers.FUSIONS`; "concat" is [v; s].
        branches: "both", or the baselines "sequence" and "image", which have no fusion.
        hidden_dim, num_layers, cell, bidirectional: of the `RNNEncoder`.
        channels: of the `ConvEncoder`.
        branch_dim: channels of s and v, and of the fusion where it can choose.
        dropout: of what the last layer is applied to, in training.

    Shape: sequence (B, T, E), lengths None or integers (B,), images (B, C, Y, X); gives logits (B, num_classes), no
    probabilities: a softmax before a cross-entropy would be the second one. What is behind a sequence's end may be
    anything. The input without a branch is not looked at, and may be None.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        input_dim: int,
        in_channels: int,
        num_classes: int,
        *,
        fusion: str = "concat",
        branches: str = "both",
        hidden_dim: int = 64,
        num_layers: int = 1,
        cell: str = "lstm",
        bidirectional: bool = False,
        channels: Sequence[int] = (16, 32),
        branch_dim: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.branches = check_choice("branches", branches, ("both", "sequence", "image"))
        check_choice("fusion", fusion, (*FUSIONS, "late"))
        check_positive_int("num_classes", num_classes)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        if branches != "image":
            self.sequence_encoder = RNNEncoder(
                input_dim, hidden_dim, num_layers, cell=cell, bidirectional=bidirectional, dropout=dropout
            )
            self.sequence_proj = nn.Sequential(nn.Linear(self.sequence_encoder.dim, branch_dim), nn.ReLU())
        if branches != "sequence":
            self.image_encoder = ConvEncoder(in_channels, channels)
            self.image_proj = nn.Sequential(nn.Linear(self.image_encoder.dim, branch_dim), nn.ReLU())
        self.late = branches == "both" and fusion == "late"
        fused = branch_dim
        if self.late:
            self.fusion: nn.Module = LateFusion(learned=True)
            self.sequence_classifier = nn.Linear(branch_dim, num_classes)
        elif branches == "both":
            self.fusion = vector_fusion(fusion, branch_dim, branch_dim, dropout=dropout)
            fused = self.fusion.dim
        self.classifier = nn.Linear(fused, num_classes)

    def forward(self, sequence: Tensor | None, images: Tensor | None, lengths: Tensor | None = None) -> Tensor:
        logits: Tensor
        if self.branches == "sequence":
            logits = self.classifier(self.dropout(self._sequence(sequence, lengths)))
        elif self.branches == "image":
            logits = self.classifier(self.dropout(self._image(images)))
        else:
            v, s = self._image(images), self._sequence(sequence, lengths)
            if self.late:
                logits = self.fusion(self.classifier(self.dropout(v)), self.sequence_classifier(self.dropout(s)))
            else:
                logits = self.classifier(self.dropout(self.fusion(v, s)))
        return logits

    def _sequence(self, sequence: Tensor | None, lengths: Tensor | None) -> Tensor:
        s: Tensor = self.sequence_proj(self.sequence_encoder(sequence, lengths).pooled)
        return s

    def _image(self, images: Tensor | None) -> Tensor:
        v: Tensor = self.image_proj(self.image_encoder(images).pooled)
        return v
