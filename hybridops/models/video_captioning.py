"""Video captioning: sentences about a film, from the mean of its frames, from its frames, or from its shots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybridops.checks import check_choice, check_shape
from hybridops.layers.decoding import AttentionTokenDecoder, RecurrentTokenDecoder, TokenDecoder
from hybridops.layers.encoders import ConvEncoder
from hybridops.layers.frames import FrameEncoder
from hybridops.layers.search import Hypotheses, search_best
from hybridops.layers.shots import ShotEncoder, VideoEncoder, film_lengths
from hybridops.layers.two_level import TwoLevelTokenDecoder

CONTEXTS = ("mean", "temporal", "hierarchical")


class VideoCaptioner(nn.Module):
    """An image encoder on each frame, a recurrent network over frames, and a decoder that writes about them.

    What the decoder has of the film (`context`):

        "mean"          the mean of the states, beside every word: Venugopalan et al. 2015,
                        https://arxiv.org/abs/1412.4729
        "temporal"      attention over the states at every word: Yao et al. 2015, https://arxiv.org/abs/1502.08029
        "hierarchical"  networks over the frames of each shot and over shots, and attention over both:
                        Pan et al. 2016, https://arxiv.org/abs/1511.03476; see `ShotEncoder`, `TwoLevelTokenDecoder`

    Args:
        vocab_size: words V.
        embed_dim, hidden_dim: channels of a word, of a state, be it of words, frames or shots.
        attn_dim: of the attention; None: hidden_dim.
        context: "mean", "temporal" or "hierarchical".
        encoder: of images (N, C, Y, X); None: a `ConvEncoder` of RGB images.
        regions: of those, how many a frame's vector keeps apart, see `FrameEncoder`; None: it is their mean.
        cell: of all recurrent networks, "lstm" or "gru".
        bidirectional: whether those over frames and over shots are.
        dropout: of words and states, in training.
        pad, start, end: numbers of the words that fill up, begin and end a sentence.

    Shape: frames (B, T, C, Y, X); tokens int64 (B, S), beginning with `start`; lengths None or integers (B,), frames of
    each film, for "hierarchical" (B, N), frames of each of its shots, 0 behind the last one, None: one shot. Gives
    logits (B, S, V), of the word after each of tokens. What is behind a film's end may be anything.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        attn_dim: int | None = None,
        *,
        context: str = "temporal",
        encoder: nn.Module | None = None,
        regions: int | None = None,
        cell: str = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
        pad: int = 0,
        start: int = 1,
        end: int = 2,
    ) -> None:
        super().__init__()
        self.context = check_choice("context", context, CONTEXTS)
        self.start_token, self.end_token = start, end
        encoder = ConvEncoder(3) if encoder is None else encoder
        attn_dim = hidden_dim if attn_dim is None else attn_dim
        of_words: dict[str, Any] = {"cell": check_choice("cell", cell, ("lstm", "gru")), "dropout": dropout, "pad": pad}
        of_film: dict[str, Any] = {"cell": cell, "bidirectional": bidirectional}
        self.encoder: VideoEncoder | FrameEncoder
        self.decoder: TokenDecoder
        if context == "hierarchical":
            self.encoder = FrameEncoder(encoder, regions)
            self.shots = ShotEncoder(self.encoder.dim, hidden_dim, **of_film)
            sizes = vocab_size, embed_dim, hidden_dim, self.shots.dim
            self.decoder = TwoLevelTokenDecoder(*sizes, attn_dim, **of_words)
        else:
            self.encoder = VideoEncoder(encoder, hidden_dim, regions=regions, **of_film)
            sizes = vocab_size, embed_dim, hidden_dim, self.encoder.dim
            if context == "temporal":
                self.decoder = AttentionTokenDecoder(*sizes, attn_dim, **of_words)
            else:
                self.decoder = RecurrentTokenDecoder(*sizes, pooled_at="every", **of_words)

    def encode(self, frames: Tensor, lengths: Tensor | None = None) -> Any:
        """What the decoder takes: a `Memory`, or of "hierarchical" a `ShotMemory`."""
        check_shape("frames", frames, ("B", "T", "C", "Y", "X"))
        if self.context != "hierarchical":
            return self.encoder(frames, lengths)
        of_film, lengths = film_lengths(frames, lengths)
        return self.shots(self.encoder(frames, of_film).values, lengths)

    def forward(self, frames: Tensor, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.attend(frames, tokens, lengths, need_weights=False)[0]

    def attend(
        self, frames: Tensor, tokens: Tensor, lengths: Tensor | None = None, *, need_weights: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, and the attention's weights (B, S, T) over frames, None of "mean"; those of "hierarchical" sum to β
        over the frames of a shot.
        """
        check_shape("tokens", tokens, (frames.shape[0], "S"))
        logits, weights = self.decoder(tokens, self.encode(frames, lengths), need_weights=need_weights)
        return logits, weights

    @torch.no_grad()
    def generate(
        self,
        frames: Tensor,
        lengths: Tensor | None = None,
        *,
        max_length: int = 20,
        beam_size: int = 1,
        length_penalty: float = 1.0,
        need_weights: bool = False,
    ) -> Hypotheses:
        """The best sentences, (B,): each the likeliest word after the other, with beam_size > 1 of a beam search."""
        start = torch.full((frames.shape[0],), self.start_token, device=frames.device)
        state = self.decoder.start(self.encode(frames, lengths))
        return search_best(
            self.decoder, state, start, end=self.end_token, max_length=max_length, beam_size=beam_size,
            length_penalty=length_penalty, need_weights=need_weights,
        )  # fmt: skip
