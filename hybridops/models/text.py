"""Classifiers of text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridops.checks import check_lengths, check_number, check_positive_int, check_shape
from hybridops.layers.encoders import RNNEncoder, length_mask


class TextClassifier(nn.Module):
    """A convolution over words, then a recurrent network over what it found.

        x = E[tokens]        y = max over two neighbours of relu(W * x + b), ⌈T/2⌉ steps        logits = W_o h_end + b_o

    with h_end the LSTM's last layer after the true last step. A C-LSTM, Zhou et al. 2015,
    https://arxiv.org/abs/1511.08630.

    Args:
        vocab_size, embed_dim: words V, channels E of a word.
        num_classes: of the logits.
        hidden_dim, num_layers: of the recurrent network.
        channels, kernel_size: of the convolution, which has 'same' zero padding; odd.
        cell, bidirectional: as in `RNNEncoder`.
        dropout: of embedded words, between layers and of h_end, in training.

    Shape: tokens int64 (B, T), T at least 1, lengths None or integers (B,); gives logits (B, num_classes). What stands
    behind the end of a row changes nothing, and neither does how much of it there is.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_classes: int,
        hidden_dim: int,
        num_layers: int = 1,
        *,
        channels: int = 128,
        kernel_size: int = 5,
        cell: str = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if check_positive_int("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.embedding = nn.Embedding(check_positive_int("vocab_size", vocab_size), embed_dim)
        self.conv = nn.Conv1d(embed_dim, check_positive_int("channels", channels), kernel_size, padding="same")
        self.pool = nn.MaxPool1d(2, ceil_mode=True)
        self.encoder = RNNEncoder(
            channels, hidden_dim, num_layers, cell=cell, bidirectional=bidirectional, dropout=dropout
        )
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.classifier = nn.Linear(self.encoder.dim, check_positive_int("num_classes", num_classes))

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        tokens, mask = _checked(tokens, lengths)
        x = self.dropout(self.embedding(tokens))
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)  # as the convolution's own padding
        features = self.conv(x.transpose(1, 2)).relu()
        if mask is not None:
            features = features.masked_fill(~mask[:, None], 0.0)  # nothing relu gives is less
        lengths = None if lengths is None else (lengths + 1) // 2
        memory = self.encoder(self.pool(features).transpose(1, 2), lengths)
        logits: Tensor = self.classifier(self.dropout(memory.pooled))
        return logits


class SentimentClassifier(nn.Module):
    """A recurrent network over words, in one or both directions, that ends where each text ends.

        logits = W_o [last forward state; last backward state] + b_o

    Args:
        vocab_size, embedding_dim: words V, channels E of a word.
        hidden_dim, n_layers, bidirectional: of the LSTM.
        output_dim: logits, 1 for good or bad.
        dropout: of embedded words, between layers and of the last states, in training.
        pad_idx: the number of the word that only fills up.

    Shape: text int64 (B, T), T at least 1, text_lengths None or integers (B,); gives logits (B, output_dim). What
    stands behind the end of a row changes nothing, and neither does how much of it there is.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        hidden_dim: int,
        output_dim: int,
        n_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        pad_idx: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(check_positive_int("vocab_size", vocab_size), embedding_dim, pad_idx)
        self.encoder = RNNEncoder(embedding_dim, hidden_dim, n_layers, bidirectional=bidirectional, dropout=dropout)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.classifier = nn.Linear(self.encoder.dim, check_positive_int("output_dim", output_dim))

    def forward(self, text: Tensor, text_lengths: Tensor | None = None) -> Tensor:
        text, _ = _checked(text, text_lengths)
        memory = self.encoder(self.dropout(self.embedding(text)), text_lengths)
        logits: Tensor = self.classifier(self.dropout(memory.pooled))
        return logits


def _checked(tokens: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens up to the end of the longest row, 0 behind the end of each, and the mask, (B, T)."""
    check_shape("tokens", tokens, ("B", "T"))
    if tokens.shape[1] == 0:
        raise ValueError(f"tokens must have at least one step, got shape {tuple(tokens.shape)}")
    if lengths is None:
        return tokens, None
    check_lengths(lengths, tokens)
    if lengths.shape[0] > 0 and not torch.compiler.is_compiling():
        longest = int(lengths.max())
        if longest > tokens.shape[1]:
            raise ValueError(f"lengths must be at most {tokens.shape[1]}, the steps of tokens, got {longest}")
        tokens = tokens[:, : max(longest, 1)]  # a convolution of another length may round in another order
    mask = length_mask(lengths, tokens.shape[1])
    assert mask is not None
    return tokens.masked_fill(~mask, 0), mask
