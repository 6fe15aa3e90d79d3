"""Questions about videos."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hybridops.layers.encoders import ConvEncoder
from hybridops.layers.shots import VideoEncoder
from hybridops.models.question_answering import VisualQuestionAnswering


class VideoQuestionAnswering(VisualQuestionAnswering):
    """`VisualQuestionAnswering` of videos: what is attended, or else pooled to a mean, are frames.

        h_t = GRU(CNN(frame_t), h_{t-1})        v_t = W h_t        q = GRU(E question), the last state

        "additive":      α = softmax_t(w · tanh(W_q q + W_v v_t)), v̂ = Σ_t α_t v_t, and v̂ ∘ q is classified: temporal
                         attention, Jang et al. 2017, https://arxiv.org/abs/1704.04497
        of `FUSIONS`:    of the mean of v_t and q; "product" is v ∘ q, "bilinear" vᵀ W_d q
        "none":          q alone

    Of films in `shots`, h_t = [f_t; g_i]: a network reads the frames of each shot, and one the shots, Pan et al. 2016,
    https://arxiv.org/abs/1511.03476; see `VideoEncoder`.

    Args:
        vocab_size, num_answers, embed_dim, hidden_dim, fused_dim, dropout, pad: as of `VisualQuestionAnswering`.
        fusion: one of those above, or of the others that `VisualQuestionAnswering` knows.
        in_channels, channels: of the `ConvEncoder` of frames.
        encoder: another one in its place, of images (N, C, Y, X).
        regions: of those, how many a frame's vector keeps apart, see `FrameEncoder`; None: it is their mean.
        cell: of the networks over words and over frames, "gru" or "lstm".
        bidirectional: whether those over frames and over shots are.
        shots: whether a film comes in shots.

    Shape: frames (N, T, C, Y, X), in place of images; video_lengths None or integers (N,), frames of each video, with
    `shots` (N, S), frames of each of its shots, 0 behind the last one, None: one shot; all else as of
    `VisualQuestionAnswering`. `weights` gives α, (B, T). What is behind a video's end may be anything.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        *,
        fusion: str = "additive",
        embed_dim: int = 64,
        hidden_dim: int = 128,
        fused_dim: int = 256,
        in_channels: int = 3,
        channels: Sequence[int] = (32, 64, 128),
        encoder: nn.Module | None = None,
        regions: int | None = None,
        cell: str = "gru",
        bidirectional: bool = False,
        shots: bool = False,
        dropout: float = 0.0,
        pad: int = 0,
    ) -> None:
        encoder = ConvEncoder(in_channels, channels) if encoder is None else encoder
        encoder = VideoEncoder(
            encoder, hidden_dim, regions=regions, cell=cell, bidirectional=bidirectional, shots=shots
        )  # fmt: skip
        super().__init__(
            vocab_size, num_answers, fusion=fusion, embed_dim=embed_dim, hidden_dim=hidden_dim, fused_dim=fused_dim,
            encoder=encoder, cell=cell, dropout=dropout, pad=pad,
        )  # fmt: skip
