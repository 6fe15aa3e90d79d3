"""Classifiers of video: clips (B, T, C, Y, X), of which `lengths` says how many frames there are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hybridops.checks import check_choice, check_number, check_positive_int
from hybridops.layers.encoders import ConvEncoder, Memory, RNNEncoder, length_mask
from hybridops.layers.frames import Conv3dEncoder, FrameEncoder
from hybridops.layers.pooling import AttentionPooling, LastState, MeanPooling
from hybridops.modules import FusedConvLSTM

POOLINGS = ("last", "mean", "attention", "none")


class VideoClassifier(nn.Module):
    """Frames → CNN → recurrent network → pooling: a long-term recurrent convolutional network, Donahue et al. 2015,
    https://arxiv.org/abs/1411.4389.

        v_t = CNN(frame_t)        h_t = LSTM(v)_t        logits = W_o dropout(pool_t(h_t)) + b_o

    What `pooling` makes of the h_t:

        "last"       the state after the last frame; bidirectional: and that of the backward network after the first
        "mean"       their mean
        "attention"  their mean weighted by learned scores (`AttentionPooling`); see `weights`
        "none"       nothing: logits for every frame

    Args:
        in_channels, num_classes: of a frame, of the logits.
        hidden_dim, num_layers, bidirectional: of the recurrent network.
        pooling: one of those above.
        cell: "lstm", "gru" or "rnn"; None: no recurrent network, h = v, for which order does not count. With "mean"
            that is the baseline that motion is held against. Not with "last".
        channels: of the `ConvEncoder`.
        encoder: another encoder of images in its place, see `FrameEncoder`.
        regions: of a frame, side by side in v; None: v is their mean. See `FrameEncoder`.
        attn_dim: of "attention".
        dropout: of the v_t, between recurrent layers and of what is pooled, in training.

    Shape: frames (B, T, C, Y, X), lengths None or integers (B,); gives logits (B, num_classes), for "none"
    (B, T, num_classes). What stands behind the end of a clip changes nothing.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 128,
        num_layers: int = 1,
        *,
        pooling: str = "last",
        cell: str | None = "lstm",
        bidirectional: bool = False,
        channels: Sequence[int] = (16, 32, 64),
        encoder: nn.Module | None = None,
        regions: int | None = None,
        attn_dim: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pooling = check_choice("pooling", pooling, POOLINGS)
        if cell is None and pooling == "last":
            raise ValueError("pooling must be 'mean', 'attention' or 'none' where cell is None, got 'last'")
        self.frames = FrameEncoder(ConvEncoder(in_channels, channels) if encoder is None else encoder, regions)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.recurrent, dim = None, self.frames.dim
        if cell is not None:
            self.recurrent = RNNEncoder(
                dim, hidden_dim, num_layers, cell=cell, bidirectional=bidirectional, dropout=dropout
            )
            dim = self.recurrent.dim
        self.pool = AttentionPooling(dim, attn_dim) if pooling == "attention" else MeanPooling()
        self.classifier = nn.Linear(dim, check_positive_int("num_classes", num_classes))

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        memory = self._encode(frames, lengths)
        if self.pooling == "none":
            found = memory.values
        else:
            found = memory.pooled if self.pooling == "last" else self.pool(memory.values, memory.mask)
        logits: Tensor = self.classifier(self.dropout(found))
        return logits

    def weights(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """How much "attention" makes of each frame: (B, T), which sum to 1."""
        if not isinstance(self.pool, AttentionPooling):
            raise ValueError(f"pooling must be 'attention' for there to be weights, got {self.pooling!r}")
        memory = self._encode(frames, lengths)
        return self.pool.weights(memory.values, memory.mask)

    def _encode(self, frames: Tensor, lengths: Tensor | None) -> Memory:
        memory: Memory = self.frames(frames, lengths)
        return memory if self.recurrent is None else self.recurrent(self.dropout(memory.values), lengths)


class ConvLSTMClassifier(nn.Module):
    """Frames → CNN → ConvLSTM → pooling: states are maps, so that how things move is seen where they are.

        v_t = CNN(frame_t)        h_t = ConvLSTM(v)_t        logits = W dropout(BN(mean over space of h_T)) + b

    h_T is of the last layer, after the last frame. The batch norm is there because most of a map shows background:
    means over it differ little from clip to clip, and a linear layer alone learns slowly from them.

    Args:
        in_channels, num_classes: of a frame, of the logits.
        hidden_dim, kernel_size, num_layers: of the ConvLSTM.
        channels: of the strided `ConvEncoder`, all but the last of which halve the frame.
        encoder: another encoder of images in its place, with a `map`, see `FrameEncoder`.
        dropout: of what is pooled, in training.

    Shape: frames (B, T, C, Y, X), lengths None or integers (B,); gives logits (B, num_classes). What stands behind the
    end of a clip changes nothing. In training B is at least 2.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 32,
        kernel_size: int = 3,
        num_layers: int = 1,
        *,
        channels: Sequence[int] = (16, 32, 32),
        encoder: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.frames = FrameEncoder(
            ConvEncoder(in_channels, channels, pool_last=False, strided=True) if encoder is None else encoder
        )
        self.recurrent = FusedConvLSTM(self.frames.dim, hidden_dim, kernel_size, num_layers)
        self.pool = LastState()
        self.norm = nn.BatchNorm1d(hidden_dim)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.classifier = nn.Linear(hidden_dim, check_positive_int("num_classes", num_classes))

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        h, _ = self.recurrent(self.frames.maps(frames, lengths))
        found = self.pool(h.mean((3, 4)), length_mask(lengths, frames.shape[1]))
        logits: Tensor = self.classifier(self.dropout(self.norm(found)))
        return logits


class Conv3dClassifier(nn.Module):
    """A convolutional network over space and time, and the mean of what it found: `Conv3dEncoder`, a linear layer.

    Args:
        in_channels, num_classes: of a frame, of the logits.
        channels, pool_time: of the `Conv3dEncoder`.
        dropout: of the mean, in training.

    Shape: frames (B, T, C, Y, X), lengths None or integers (B,); gives logits (B, num_classes). What stands behind the
    end of a clip changes nothing.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: Sequence[int] = (16, 32, 64),
        pool_time: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = Conv3dEncoder(in_channels, channels, pool_time=pool_time)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.classifier = nn.Linear(self.encoder.dim, check_positive_int("num_classes", num_classes))

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.encoder(frames, lengths).pooled))
        return logits
