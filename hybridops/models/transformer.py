"""Sequence to sequence by attention alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hybridops.checks import check_lengths, check_number, check_positive_int, check_shape
from hybridops.layers.decoding import TokenDecoder, rows_of_entries
from hybridops.layers.encoders import Memory, length_mask
from hybridops.layers.pooling import MeanPooling
from hybridops.layers.search import Hypotheses, search_best


class TransformerSeq2Seq(nn.Module):
    """The Transformer of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, of PyTorch's own layers.

        memory = encoder(√H E_source[source] + P)        logits = W_o decoder(√H E_target[target] + P, memory) + b_o

    with P the sinusoids of the positions. A word of target sees those before it and itself, and all of source.

    Args:
        source_vocab_size, target_vocab_size: words of either language.
        hidden_dim: channels H of words and layers, a multiple of 2 and of num_heads.
        num_heads, feedforward_dim: of each layer.
        num_encoder_layers, num_decoder_layers: of them.
        dropout: as in `nn.Transformer`, in training.
        pad, start, end: numbers of the words that fill up, begin and end a sentence, in both languages.

    Shape: source int64 (B, T), source_lengths None or integers (B,), at least 1, target int64 (B, S), beginning with
    `start`; gives logits (B, S, V), of the word after each of target. Source words behind a sentence's end may be any.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        hidden_dim: int = 256,
        num_heads: int = 4,
        num_encoder_layers: int = 2,
        num_decoder_layers: int = 2,
        *,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        pad: int = 0,
        start: int = 1,
        end: int = 2,
    ) -> None:
        super().__init__()
        check_positive_int("num_heads", num_heads)
        if check_positive_int("hidden_dim", hidden_dim) % 2 or hidden_dim % num_heads:
            raise ValueError(f"hidden_dim must be a multiple of 2 and of num_heads, got {hidden_dim} and {num_heads}")
        check_number("dropout", dropout, 0.0, 1.0)
        self.pad, self.start_token, self.end_token = pad, start, end
        sizes = hidden_dim, num_heads, feedforward_dim, dropout
        self.embedding = _PositionedEmbedding(source_vocab_size, hidden_dim, dropout, pad)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*sizes, batch_first=True), num_encoder_layers, enable_nested_tensor=False
        )
        self.pooling = MeanPooling()
        self.decoder = TransformerTokenDecoder(target_vocab_size, *sizes, num_decoder_layers, pad)

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Memory:
        check_shape("source", source, ("B", "T"))
        if source_lengths is not None:
            check_lengths(source_lengths, source)
            if source.shape[0] > 0 and int(source_lengths.min()) < 1:
                raise ValueError(f"source_lengths must be at least 1, got {int(source_lengths.min())}")
        mask = length_mask(source_lengths, source.shape[1])
        if mask is not None:
            source = source.masked_fill(~mask, self.pad)
        values = self.encoder(self.embedding(source), src_key_padding_mask=_hidden_keys(mask))
        if mask is not None:
            values = values.masked_fill(~mask[..., None], 0.0)
        return Memory(values, mask, self.pooling(values, mask))

    def forward(self, source: Tensor, target: Tensor, source_lengths: Tensor | None = None) -> Tensor:
        check_shape("target", target, (source.shape[0], "S"))
        logits, _ = self.decoder(target, self.encode(source, source_lengths))
        return logits  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        source_lengths: Tensor | None = None,
        *,
        max_length: int = 100,
        beam_size: int = 1,
        length_penalty: float = 1.0,
    ) -> Hypotheses:
        """The best sentences, (B,): each the likeliest word after the other, with beam_size > 1 of a beam search."""
        start = source.new_full((source.shape[0],), self.start_token)
        state = self.decoder.start(self.encode(source, source_lengths))
        return search_best(
            self.decoder, state, start, end=self.end_token, max_length=max_length, beam_size=beam_size,
            length_penalty=length_penalty,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class PrefixState:
    """Of a TransformerTokenDecoder: R rows, m for each of `entries`."""

    tokens: Tensor  # (R, S) so far
    values: Tensor  # (R, T, D)
    mask: Tensor | None  # (R, T)
    entries: int

    def reorder(self, index: Tensor) -> PrefixState:
        mask = None if self.mask is None else self.mask[index]
        return replace(self, tokens=self.tokens[index], values=self.values[index], mask=mask)

    def select(self, index: Tensor) -> PrefixState:
        return replace(self.reorder(rows_of_entries(index, len(self.tokens), self.entries)), entries=len(index))


class TransformerTokenDecoder(TokenDecoder):
    """Words to logits by self-attention over the words so far and attention over the memory: `TransformerSeq2Seq`'s.

    A step reads all words so far anew: `nn.TransformerDecoder` keeps no keys, so that S words cost S² word-steps.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        num_layers: int,
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = _PositionedEmbedding(vocab_size, hidden_dim, dropout, pad)
        layer = nn.TransformerDecoderLayer(hidden_dim, num_heads, feedforward_dim, dropout, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, num_layers)
        self.vocabulary = nn.Linear(hidden_dim, vocab_size)

    def forward(self, tokens: Tensor, memory: Memory, *, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """The weights are None: there are some of every head and layer, and PyTorch's layers do not give them."""
        return self.vocabulary(self._hidden(tokens, memory.values, memory.mask)), None

    def start(self, memory: Memory) -> PrefixState:
        rows = len(memory.values)
        none = torch.empty(rows, 0, dtype=torch.int64, device=memory.values.device)
        return PrefixState(none, memory.values, memory.mask, rows)

    def step(self, tokens: Tensor, state: PrefixState) -> tuple[Tensor, Tensor | None, PrefixState]:
        state = replace(state, tokens=torch.cat([state.tokens, tokens[:, None]], 1))
        return self.vocabulary(self._hidden(state.tokens, state.values, state.mask)[:, -1]), None, state

    def _hidden(self, tokens: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).triu(1)
        h: Tensor = self.decoder(
            self.embedding(tokens), values, tgt_mask=future, tgt_is_causal=True,
            memory_key_padding_mask=_hidden_keys(mask),
        )  # fmt: skip
        return h


def _hidden_keys(mask: Tensor | None) -> Tensor | None:
    """As PyTorch's layers want it, True = may not be attended; None without a row, where they fail on a mask."""
    return None if mask is None or mask.shape[0] == 0 else ~mask


class _PositionedEmbedding(nn.Module):
    """√H E[tokens] + P, P[s, 2i] = sin(s / 10000^(2i/H)), P[s, 2i+1] = cos of the same."""

    def __init__(self, vocab_size: int, hidden_dim: int, dropout: float, pad: int) -> None:
        super().__init__()
        self.words = nn.Embedding(check_positive_int("vocab_size", vocab_size), hidden_dim, pad)
        nn.init.normal_(self.words.weight, std=hidden_dim**-0.5)  # √H times that is of the sinusoids' size
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        dim = self.words.embedding_dim
        x: Tensor = self.words(tokens) * math.sqrt(dim)
        rate = 10000.0 ** (-torch.arange(0, dim, 2, device=x.device) / dim)
        angle = torch.arange(tokens.shape[1], device=x.device)[:, None] * rate
        positions = torch.stack([angle.sin(), angle.cos()], 2).flatten(1)
        out: Tensor = self.dropout(x + positions.to(x.dtype))
        return out
