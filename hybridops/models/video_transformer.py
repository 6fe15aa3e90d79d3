"""Classifiers of video that attend, within a frame, over time, or along the edges of a graph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hybridops.checks import check_bool, check_number, check_positive_int
from hybridops.layers.encoders import ConvEncoder
from hybridops.layers.graph import GraphEncoder
from hybridops.layers.vision_transformer import SpaceTimeTransformer, VisionTransformer
from hybridops.models.video import VideoClassifier


class ViTRecurrentClassifier(VideoClassifier):
    """A Vision Transformer for each frame, then a recurrent network: `VideoClassifier` with another encoder.

        v_t = ViT(frame_t)        h_t = LSTM(v)_t        logits = W_o dropout(pool_t(h_t)) + b_o

    with v_t what became of the class token, or, where motion counts, of all patches, side by side.

    Args:
        in_channels, image_size, patch_size: of square frames; those of other sizes have positions interpolated.
        num_classes: of the logits.
        dim, num_layers, num_heads: of the `VisionTransformer`.
        side_by_side: whether v_t is all patches; then frames are of image_size.
        hidden_dim, pooling, cell, bidirectional: of the recurrent network, as in `VideoClassifier`.
        dropout: in the transformer's blocks, of the v_t and of what is pooled, in training.

    Shape: frames (B, T, C, Y, X), lengths None or integers (B,); gives logits (B, num_classes), for pooling="none"
    (B, T, num_classes). What stands behind the end of a clip changes nothing.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        patch_size: int,
        num_classes: int,
        dim: int = 192,
        num_layers: int = 4,
        num_heads: int = 3,
        hidden_dim: int = 128,
        *,
        side_by_side: bool = False,
        pooling: str = "last",
        cell: str | None = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        pool = "mean" if check_bool("side_by_side", side_by_side) else "class"
        encoder = VisionTransformer(
            in_channels, image_size, patch_size, dim, num_layers, num_heads, pool=pool, dropout=dropout
        )
        patches = (image_size // patch_size) ** 2
        super().__init__(
            in_channels, num_classes, hidden_dim, pooling=pooling, cell=cell, bidirectional=bidirectional,
            encoder=encoder, regions=patches if side_by_side else None, dropout=dropout,
        )  # fmt: skip


class GraphRecurrentClassifier(VideoClassifier):
    """A graph of each frame's regions, then a recurrent network: `VideoClassifier` with another encoder.

        o_ti = regions of CNN(frame_t)        v_t = mean_i GCN(o_t, similarities of o_t)_i        (`GraphEncoder`)
        h_t = LSTM(v)_t                       logits = W_o dropout(pool_t(h_t)) + b_o

    or, where motion counts, v_t all nodes of the graph, side by side.

    Args:
        in_channels, num_classes: of a frame, of the logits.
        num_regions: that `channels` leave of a frame: one for each 2^n × 2^n pixels, n the number of `channels`.
        channels: of the `ConvEncoder`.
        node_dim, num_layers: channels of a node, graph convolutions.
        side_by_side: whether v_t is all nodes.
        hidden_dim, pooling, cell, bidirectional: of the recurrent network, as in `VideoClassifier`.
        dropout: of the v_t and of what is pooled, in training.

    Shape: frames (B, T, C, Y, X), lengths None or integers (B,); gives logits (B, num_classes), for pooling="none"
    (B, T, num_classes). What stands behind the end of a clip changes nothing.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int,
        num_regions: int,
        num_classes: int,
        node_dim: int = 64,
        num_layers: int = 2,
        hidden_dim: int = 128,
        *,
        channels: Sequence[int] = (16, 32, 64),
        side_by_side: bool = False,
        pooling: str = "last",
        cell: str | None = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        encoder = GraphEncoder(ConvEncoder(in_channels, channels), num_regions, node_dim, num_layers)
        super().__init__(
            in_channels, num_classes, hidden_dim, pooling=pooling, cell=cell, bidirectional=bidirectional,
            encoder=encoder, regions=num_regions if check_bool("side_by_side", side_by_side) else None, dropout=dropout,
        )  # fmt: skip


class SpaceTimeClassifier(nn.Module):
    """A transformer over the patches of all frames, and the mean of what it found: `SpaceTimeTransformer` (Bertasius
    et al. 2021, https://arxiv.org/abs/2102.05095) and a linear layer.

    Args:
        in_channels, image_size, patch_size: of square frames; those of other sizes have positions interpolated.
        max_frames: of a clip.
        num_classes: of the logits.
        dim, num_layers, num_heads: of the transformer.
        dropout: in its blocks, and of the mean, in training.

    Shape: frames (B, T, C, Y, X), T at most max_frames, lengths None or integers (B,); gives logits (B, num_classes).
    What stands behind the end of a clip changes nothing.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        patch_size: int,
        max_frames: int,
        num_classes: int,
        dim: int = 192,
        num_layers: int = 4,
        num_heads: int = 3,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = SpaceTimeTransformer(
            in_channels, image_size, patch_size, max_frames, dim, num_layers, num_heads, dropout=dropout
        )
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.classifier = nn.Linear(dim, check_positive_int("num_classes", num_classes))

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.encoder(frames, lengths).pooled))
        return logits
