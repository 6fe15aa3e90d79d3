"""Questions about images, or about whatever else an encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hybridops.checks import check_choice, check_number, check_positive_int, check_shape
from hybridops.layers.co_attention import AlternatingCoAttention, CoAttention, CrossModalAttention
from hybridops.layers.encoders import ConvEncoder, Memory, RNNEncoder
from hybridops.layers.fusion import FUSIONS, ElementwiseFusion, vector_fusion

ATTENTIONS = ("cross_modal", "additive", "co_attention", "alternating_co_attention")


class VisualQuestionAnswering(nn.Module):
    """An encoder of images, one of questions, a fusion of both, and the answer as one of a list.

        v_i = W CNN(image)_i        q_t = GRU(E question)_t
        logits = W_2 dropout(relu(W_1 fusion(v, q)))

    A fusion of `layers.FUSIONS` takes the mean of v_i and the state after the question's last word. The others attend
    first, and v̂ ∘ q̂ is taken of what they give:

        "cross_modal", "additive":                   v̂ of the v_i the question asks for (`CrossModalAttention`), q̂ = q
        "co_attention", "alternating_co_attention":  v̂ and q̂ of Lu et al. 2016
        "none":                                      q alone, the baseline that never sees the image

    Args:
        vocab_size, num_answers: words of questions, answers to choose from.
        fusion: one of those above; "product", v ∘ q, is plain and hard to beat (Antol et al. 2015,
            https://arxiv.org/abs/1505.00468).
        embed_dim, hidden_dim, fused_dim: channels of a word, of v and q, of the fusion (where it can choose) and of the
            layer after it.
        in_channels, channels: of the `ConvEncoder`.
        encoder: another one in its place, whose `dim` are the channels of the `Memory` it gives.
        cell: "gru" or "lstm".
        dropout: of words, of fused vectors and of the layer after them, in training.
        pad: the number of the word that only fills up.

    Shape: images (N, C, Y, X), or what `encoder` takes; questions int64 (B, T), question_lengths None or integers (B,);
    image_index int64 (B,), the image of each question, None: N = B, its own; video_lengths None or integers (N,), for
    an encoder that takes them beside the images. Gives logits (B, num_answers). Words behind a question's end may be
    any. With fusion="none" the images are not looked at, and may be None.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        *,
        fusion: str = "product",
        embed_dim: int = 64,
        hidden_dim: int = 128,
        fused_dim: int = 256,
        in_channels: int = 3,
        channels: Sequence[int] = (32, 64, 128),
        encoder: nn.Module | None = None,
        cell: str = "gru",
        dropout: float = 0.0,
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.kind = check_choice("fusion", fusion, (*FUSIONS, *ATTENTIONS, "none"))
        check_positive_int("num_answers", num_answers)
        self.embedding = nn.Embedding(check_positive_int("vocab_size", vocab_size), embed_dim, padding_idx=pad)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.question_encoder = RNNEncoder(embed_dim, hidden_dim, cell=cell)
        fused = hidden_dim
        if fusion != "none":
            images: Any = ConvEncoder(in_channels, channels) if encoder is None else encoder  # Any: it has a `dim`
            self.image_encoder, self.image_proj = images, nn.Linear(images.dim, hidden_dim)
            self.attention = _attention(fusion, hidden_dim)
            self.fusion = (
                vector_fusion(fusion, hidden_dim, fused_dim, dropout=dropout)
                if self.attention is None
                else ElementwiseFusion(hidden_dim)
            )
            fused = self.fusion.dim
        self.classifier = nn.Sequential(
            nn.Linear(fused, fused_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(fused_dim, num_answers)
        )

    def forward(
        self,
        images: Tensor | None,
        questions: Tensor,
        question_lengths: Tensor | None = None,
        image_index: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> Tensor:
        v, q, _ = self._modalities(images, questions, question_lengths, image_index, video_lengths)
        logits: Tensor = self.classifier(q if v is None else self.dropout(self.fusion(v, q)))
        return logits

    def weights(
        self,
        images: Tensor,
        questions: Tensor,
        question_lengths: Tensor | None = None,
        image_index: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> Tensor:
        """Where a model with attention looks: (B, regions), which sum to 1."""
        _, _, weights = self._modalities(images, questions, question_lengths, image_index, video_lengths)
        if weights is None:
            raise ValueError(f"fusion must be one of {', '.join(map(repr, ATTENTIONS))}, got {self.kind!r}")
        return weights

    def _modalities(
        self,
        images: Tensor | None,
        questions: Tensor,
        lengths: Tensor | None,
        image_index: Tensor | None,
        video_lengths: Tensor | None,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The vectors to be fused, (B, hidden_dim) each, and where the image was attended, if so."""
        check_shape("questions", questions, ("B", "T"))
        question: Memory = self.question_encoder(self.dropout(self.embedding(questions)), lengths)
        if self.kind == "none":
            return None, question.pooled, None
        image: Memory = self.image_encoder(*(x for x in (images, video_lengths) if x is not None))
        v = self.image_proj(image.pooled if self.attention is None else image.values)
        mask = image.mask
        if image_index is not None:
            check_shape("image_index", image_index, questions.shape[:1])
            v, mask = v[image_index], None if mask is None else mask[image_index]
        if self.attention is None:
            return v, question.pooled, None
        if isinstance(self.attention, CrossModalAttention):
            v, weights = self.attention(v, question.pooled, mask)
            return v, question.pooled, weights
        attended = self.attention(v, question.values, mask, question.mask)
        return attended.v, attended.q, attended.v_weights


def _attention(fusion: str, dim: int) -> nn.Module | None:
    if fusion == "cross_modal":
        return CrossModalAttention(dim, dim)
    if fusion == "additive":
        return CrossModalAttention(dim, dim, score="additive", attn_dim=dim)
    if fusion == "co_attention":
        return CoAttention(dim, dim, dim)
    return AlternatingCoAttention(dim, dim, dim) if fusion == "alternating_co_attention" else None
