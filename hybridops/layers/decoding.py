"""Decoders of words: they read the words so far and score the next one, over a `Memory`.

All have the calls that training and `layers.search` need:

    forward(tokens (B, S), memory)     -> logits (B, S, V) of the word after each, attention weights (B, S, T) or None
    start(memory)                      -> state
    step(tokens (R,), state)           -> logits (R, V), weights (R, T) or None, the state after the step
    likeliest(tokens (R,), state, k)   -> the k largest log-probabilities (R, k), their words (R, k), and the latter two

A state has `reorder(index)` and `select(index)`, as `reference.DecoderState`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hybridops.checks import check_choice, check_number, check_positive_int
from hybridops.layers.encoders import Memory
from hybridops.modules import FusedAttentionDecoder
from hybridops.reference.attention_decoder import DecoderState, likeliest

StateT = TypeVar("StateT", bound="SearchState")


class SearchState(Protocol):
    """What a search does with a state: m rows for each of B entries, next to each other, m = 1 at the start."""

    def reorder(self: StateT, index: Tensor) -> StateT:
        """The rows at `index`, which stay with their entry."""
        ...

    def select(self: StateT, index: Tensor) -> StateT:
        """The entries at `index`, with all their rows."""
        ...


def rows_of_entries(index: Tensor, rows: int, entries: int) -> Tensor:
    """The numbers of all rows of the entries at `index` (N,): (N·rows/entries,)."""
    count = rows // max(entries, 1)
    return (index[:, None] * count + torch.arange(count, device=index.device)).flatten()


class TokenDecoder(nn.Module):
    """What all decoders of words are; each has its own state, and may ask for a memory of its own."""

    def forward(self, tokens: Tensor, memory: Any, *, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def start(self, memory: Any) -> Any:
        raise NotImplementedError

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Tensor | None, Any]:
        raise NotImplementedError

    def likeliest(self, tokens: Tensor, state: Any, count: int) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        logits, weights, state = self.step(tokens, state)
        return *likeliest(logits, count), weights, state

    def scheduled_sampling(self, tokens: Tensor, memory: Any, probability: float) -> Tensor:
        """Logits (B, S, V), where after the first word the likeliest one so far stands in for that of `tokens` (B, S)
        with this probability (Bengio et al. 2015, https://arxiv.org/abs/1506.03099).
        """
        check_number("probability", probability, 0.0, 1.0)
        if probability == 0.0 or tokens.shape[1] == 0:
            logits, _ = self(tokens, memory)
            return logits  # type: ignore[no-any-return]
        state, logits, found = self.start(memory), tokens.new_zeros(()), []
        for s, word in enumerate(tokens.unbind(1)):
            if s > 0:
                own = torch.rand(len(word), device=word.device) < probability
                word = torch.where(own, logits.argmax(1), word)
            logits, _, state = self.step(word, state)
            found.append(logits)
        return torch.stack(found, 1)


class InitialState(nn.Module):
    """The state that decoding begins with, of the whole: h_0 = tanh(W pooled + b), and so the cell of an LSTM."""

    def __init__(self, pooled_dim: int, hidden_dim: int, cell: str) -> None:
        super().__init__()
        self.cell = cell
        self.proj = nn.Linear(pooled_dim, hidden_dim * (2 if cell == "lstm" else 1))

    def forward(self, pooled: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        state: Tensor = torch.tanh(self.proj(pooled))
        if self.cell == "gru":
            return state
        h, c = state.chunk(2, 1)
        return h.contiguous(), c.contiguous()


class AttentionTokenDecoder(TokenDecoder):
    """Words to logits, with additive attention over the memory at every step.

        h_s, c_s = FusedAttentionDecoder of x_s = E[w_s], from h_0 = tanh(W_0 pooled)
        logits_s = W_o dropout(tanh(W_r [h_s; c_s; x_s]))        logits of w_{s+1}

    Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473; with `context_gate` Xu et al. 2015,
    https://arxiv.org/abs/1502.03044.

    Args:
        vocab_size, embed_dim: words V, channels E of a word.
        hidden_dim, memory_dim, attn_dim: H of the state, D of the memory's values, A of the attention.
        pooled_dim: P of the memory's pooled; None: D.
        cell, query, context_gate: as in `FusedAttentionDecoder`.
        dropout: of embedded words, and of what the vocabulary is applied to, in training.
        pad: the number of the word that only fills up.

    All of a sentence in one fused op in training; a step is one as well.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        memory_dim: int,
        attn_dim: int,
        *,
        pooled_dim: int | None = None,
        cell: str = "lstm",
        query: str = "previous",
        context_gate: bool = False,
        dropout: float = 0.0,
        pad: int = 0,
    ) -> None:
        super().__init__()
        check_positive_int("vocab_size", vocab_size)
        self.embedding = nn.Embedding(vocab_size, check_positive_int("embed_dim", embed_dim), padding_idx=pad)
        self.decoder = FusedAttentionDecoder(
            embed_dim, hidden_dim, memory_dim, attn_dim, cell=cell, query=query, context_gate=context_gate
        )
        self.initial = InitialState(memory_dim if pooled_dim is None else pooled_dim, hidden_dim, cell)
        self.readout = nn.Linear(hidden_dim + memory_dim + embed_dim, hidden_dim)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.vocabulary = nn.Linear(hidden_dim, vocab_size)

    def forward(self, tokens: Tensor, memory: Memory, *, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        x = self.dropout(self.embedding(tokens))
        h, _, context, weights = self.decoder(
            x, memory.values, self.initial(memory.pooled), mask=memory.mask, need_weights=need_weights
        )
        return self.vocabulary(self._readout(h, context, x)), weights

    def start(self, memory: Memory) -> DecoderState:
        return self.decoder.start(
            memory.values, self.initial(memory.pooled), mask=memory.mask, vocabulary=self.vocabulary
        )

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, Tensor | None, DecoderState]:
        read, weights, state = self._step(tokens, state)
        return state.logits(read), weights, state

    def likeliest(
        self, tokens: Tensor, state: DecoderState, count: int
    ) -> tuple[Tensor, Tensor, Tensor | None, DecoderState]:
        read, weights, state = self._step(tokens, state)
        return *state.likeliest(read, count), weights, state

    def _step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, Tensor | None, DecoderState]:
        """What the vocabulary is applied to (R, H), weights, the state after the step."""
        x = self.dropout(self.embedding(tokens))
        h, context, weights, state = self.decoder.step(x, state)
        return self._readout(h, context, x), weights, state

    def _readout(self, h: Tensor, context: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(torch.tanh(self.readout(torch.cat([h, context, x], -1))))
        return out


@dataclass(frozen=True, eq=False)
class RecurrentState:
    """Of a RecurrentTokenDecoder: R rows, m for each of `entries`."""

    h: Tensor  # (layers, R, H)
    c: Tensor | None  # (layers, R, H) of an LSTM
    pooled: Tensor  # (R, P)
    entries: int

    def reorder(self, index: Tensor) -> RecurrentState:
        c = None if self.c is None else self.c.index_select(1, index)
        return replace(self, h=self.h.index_select(1, index), c=c, pooled=self.pooled.index_select(0, index))

    def select(self, index: Tensor) -> RecurrentState:
        return replace(self.reorder(rows_of_entries(index, self.h.shape[1], self.entries)), entries=index.shape[0])


class RecurrentTokenDecoder(TokenDecoder):
    """Words to logits without attention: an LSTM or GRU that is told of the whole memory in one vector.

        h_s = RNN(x_s, h_{s-1})        logits_s = W_o dropout(h_s)        x_s = E[w_s]

    Args:
        vocab_size, embed_dim, hidden_dim: words V, channels E of a word, H of the state.
        pooled_dim: P of the memory's pooled.
        pooled_at: where the vector goes in:
            "initial": h_0 = tanh(W_0 pooled) (Sutskever et al. 2014, https://arxiv.org/abs/1409.3215);
            "first": W_0 pooled is what the network reads before the first word (Vinyals et al. 2015,
                https://arxiv.org/abs/1411.4555);
            "every": x_s = [E[w_s]; W_0 pooled] at every step (Donahue et al. 2015, https://arxiv.org/abs/1411.4389).
        num_layers, cell: of the recurrent network, "lstm" or "gru".
        dropout: of embedded words, and of states, in training.
        pad: the number of the word that only fills up.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        pooled_dim: int,
        *,
        pooled_at: str = "initial",
        num_layers: int = 1,
        cell: str = "lstm",
        dropout: float = 0.0,
        pad: int = 0,
    ) -> None:
        super().__init__()
        check_positive_int("vocab_size", vocab_size)
        self.pooled_at = check_choice("pooled_at", pooled_at, ("initial", "first", "every"))
        self.num_layers = check_positive_int("num_layers", num_layers)
        self.cell = check_choice("cell", cell, ("lstm", "gru"))
        self.embedding = nn.Embedding(vocab_size, check_positive_int("embed_dim", embed_dim), padding_idx=pad)
        self.rnn = (nn.LSTM if cell == "lstm" else nn.GRU)(
            2 * embed_dim if pooled_at == "every" else embed_dim, hidden_dim, num_layers, batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )  # fmt: skip
        self.pooled_proj = nn.Linear(pooled_dim, num_layers * hidden_dim if pooled_at == "initial" else embed_dim)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.vocabulary = nn.Linear(hidden_dim, vocab_size)

    def forward(self, tokens: Tensor, memory: Memory, *, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        state = self.start(memory)
        h, _ = self._run(tokens, state)
        return self.vocabulary(self.dropout(h)), None

    def start(self, memory: Memory) -> RecurrentState:
        pooled: Tensor = self.pooled_proj(memory.pooled)
        h = pooled.new_zeros(self.num_layers, pooled.shape[0], self.rnn.hidden_size)
        if self.pooled_at == "initial":
            h = torch.tanh(pooled).unflatten(1, (self.num_layers, -1)).transpose(0, 1).contiguous()
        c = torch.zeros_like(h) if self.cell == "lstm" else None
        state = RecurrentState(h, c, pooled, pooled.shape[0])
        if self.pooled_at == "first":
            _, state = self._call(pooled[:, None], state)
        return state

    def step(self, tokens: Tensor, state: RecurrentState) -> tuple[Tensor, Tensor | None, RecurrentState]:
        h, state = self._run(tokens[:, None], state)
        return self.vocabulary(self.dropout(h[:, 0])), None, state

    def _run(self, tokens: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        x = self.dropout(self.embedding(tokens))
        if self.pooled_at == "every":
            x = torch.cat([x, state.pooled[:, None].expand(-1, x.shape[1], -1)], 2)
        return self._call(x, state)

    def _call(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        out, after = self.rnn(x, state.h if state.c is None else (state.h, state.c))
        h, c = after if isinstance(after, tuple) else (after, None)
        return out, replace(state, h=h, c=c)
