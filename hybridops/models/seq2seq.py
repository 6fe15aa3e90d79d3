"""Sequence to sequence with attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridops.checks import check_bool, check_number, check_positive_int, check_shape
from hybridops.layers.decoding import AttentionTokenDecoder, RecurrentTokenDecoder, TokenDecoder
from hybridops.layers.encoders import Memory, RNNEncoder
from hybridops.layers.search import Hypotheses, search_best


class Seq2Seq(nn.Module):
    """An encoder that reads a sentence in both directions, and a decoder that attends to it at every word it writes.

        memory = BiRNN(E source)        h_0 = tanh(W_0 [last forward state; last backward state])
        logits of the word after target_0 ... target_s:  AttentionTokenDecoder, h_{s-1} asking (Bahdanau et al. 2015,
                                                         https://arxiv.org/abs/1409.0473)
        attention=False: a decoder that has h_0 alone    (Sutskever et al. 2014, https://arxiv.org/abs/1409.3215)

    Args:
        source_vocab_size, target_vocab_size: words of either language.
        embed_dim, hidden_dim: channels of a word, of a state; the encoder has as many in each direction.
        attn_dim: of the attention; None: hidden_dim.
        num_layers: of the encoder.
        cell: "lstm" or "gru".
        attention: whether the decoder has it.
        dropout: of words and states, in training.
        pad, start, end: numbers of the words that fill up, begin and end a sentence, in both languages.

    Shape: source int64 (B, T), source_lengths None or integers (B,), target int64 (B, S), beginning with `start`; gives
    logits (B, S, V), of the word after each of target. Source words behind a sentence's end may be any.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        attn_dim: int | None = None,
        num_layers: int = 1,
        *,
        cell: str = "gru",
        attention: bool = True,
        dropout: float = 0.0,
        pad: int = 0,
        start: int = 1,
        end: int = 2,
    ) -> None:
        super().__init__()
        self.pad, self.start_token, self.end_token = pad, start, end
        self.embedding = nn.Embedding(check_positive_int("source_vocab_size", source_vocab_size), embed_dim, pad)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.encoder = RNNEncoder(embed_dim, hidden_dim, num_layers, cell=cell, bidirectional=True, dropout=dropout)
        sizes = target_vocab_size, embed_dim, hidden_dim, self.encoder.dim
        self.decoder: TokenDecoder
        if check_bool("attention", attention):
            attn_dim = hidden_dim if attn_dim is None else attn_dim
            self.decoder = AttentionTokenDecoder(*sizes, attn_dim, cell=cell, dropout=dropout, pad=pad)
        else:
            self.decoder = RecurrentTokenDecoder(*sizes, cell=cell, dropout=dropout, pad=pad)

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Memory:
        check_shape("source", source, ("B", "T"))
        memory: Memory = self.encoder(self.dropout(self.embedding(source)), source_lengths)
        return memory

    def forward(
        self, source: Tensor, target: Tensor, source_lengths: Tensor | None = None, *, sampling: float = 0.0
    ) -> Tensor:
        """`sampling`: the probability of scheduled sampling, see `TokenDecoder`; 0 is teacher forcing, in one op."""
        memory = self.encode(source, source_lengths)
        check_shape("target", target, (source.shape[0], "S"))
        return self.decoder.scheduled_sampling(target, memory, sampling)

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        source_lengths: Tensor | None = None,
        *,
        max_length: int = 100,
        beam_size: int = 1,
        length_penalty: float = 1.0,
        need_weights: bool = False,
    ) -> Hypotheses:
        """The best sentences, (B,): each the likeliest word after the other, with beam_size > 1 of a beam search."""
        start = source.new_full((source.shape[0],), self.start_token)
        state = self.decoder.start(self.encode(source, source_lengths))
        return search_best(
            self.decoder, state, start, end=self.end_token, max_length=max_length, beam_size=beam_size,
            length_penalty=length_penalty, need_weights=need_weights,
        )  # fmt: skip
