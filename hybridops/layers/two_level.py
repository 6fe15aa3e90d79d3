"""Attention in two levels, over shots and over the frames of each, and a decoder of words that has it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hybridops.checks import check_choice, check_number, check_positive_int, check_shape
from hybridops.formulas.additive_attention import masked_softmax
from hybridops.layers.decoding import InitialState, TokenDecoder, rows_of_entries
from hybridops.layers.shots import ShotMemory, by_frame, by_shot
from hybridops.modules import FusedAdditiveAttention
from hybridops.reference.additive_attention import PreparedKeys
from hybridops.reference.attention_decoder import CELLS


@dataclass(frozen=True, eq=False)
class PreparedShots:
    """What `TwoLevelAttention.prepare` projects once, of B films."""

    frames: PreparedKeys  # B·N entries: a shot is one
    shots: PreparedKeys | None  # B entries; None: β is of the frames
    lengths: Tensor  # (B, N)
    steps: int  # T

    def index_select(self, index: Tensor) -> PreparedShots:
        """Those at `index` of the batch."""
        films, number = self.lengths.shape
        frames = self.frames.index_select(rows_of_entries(index, films * number, films))
        shots = None if self.shots is None else self.shots.index_select(index)
        return replace(self, frames=frames, shots=shots, lengths=self.lengths.index_select(0, index))


class TwoLevelAttention(nn.Module):
    """Attention over the shots of a film, and over the frames of each.

        α_t = softmax over the frames t of shot i of  v · tanh(W_q q + W_k f_t)           c = Σ_i β_i Σ_{t in i} α_t f_t

        "shots":   β = softmax_i(u · tanh(U_q q + U_k g_i))
        "frames":  β = softmax_i(lse_i), the log-sum-exp of a shot's scores: all β_i α_t are then the weights of one
                   attention over all frames, in two steps

    Args:
        query_dim, frame_dim, shot_dim, attn_dim: channels Q of q, D of f, of g, A of the sums in tanh.
        beta: what shots are scored by.

    Shape: `prepare` takes a `ShotMemory`; query (m·B, Q), the m of a film next to each other. Gives the context
    (m·B, D) and β_i α_t, (m·B, T) in the order of the film, or None if not needed. A film without a shot has zeros.

    Fused: `FusedAdditiveAttention`, of which each shot is an entry.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self, query_dim: int, frame_dim: int, shot_dim: int, attn_dim: int = 128, *, beta: str = "shots"
    ) -> None:
        super().__init__()
        self.beta = check_choice("beta", beta, ("shots", "frames"))
        self.frame_attention = FusedAdditiveAttention(query_dim, frame_dim, attn_dim)
        self.shot_attention = FusedAdditiveAttention(query_dim, shot_dim, attn_dim) if beta == "shots" else None

    def prepare(self, memory: ShotMemory) -> PreparedShots:
        frames, shots, lengths = memory
        check_shape("values of frames", frames.values, ("B", "T", self.frame_attention.key_dim))
        check_shape("lengths", lengths, (frames.values.shape[0], "N"))
        keys = by_shot(frames.values, lengths).flatten(0, 1)
        there = torch.arange(keys.shape[1], device=keys.device) < lengths.flatten()[:, None]
        of_shots = None
        if self.shot_attention is not None:
            check_shape("values of shots", shots.values, (*lengths.shape, self.shot_attention.key_dim))
            of_shots = self.shot_attention.prepare(shots.values, mask=lengths > 0)
        return PreparedShots(self.frame_attention.prepare(keys, mask=there), of_shots, lengths, frames.values.shape[1])

    def forward(
        self, query: Tensor, prepared: PreparedShots, need_weights: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        lengths = prepared.lengths
        films, number = lengths.shape
        check_shape("query", query, ("m·B", self.frame_attention.query_dim))
        m = query.shape[0] // films if films else 1
        by_film = query.unflatten(0, (films, m))
        of_each = by_film[:, None].expand(-1, number, -1, -1).flatten(0, 1)  # (B·N, m, Q)
        if self.shot_attention is not None:
            contexts, alpha = self.frame_attention(of_each, prepared.frames, need_weights=need_weights)
            assert prepared.shots is not None
            _, beta = self.shot_attention(query, prepared.shots)
            assert beta is not None
            beta = beta.unflatten(0, (films, m))
        else:
            contexts, alpha, lse = self.frame_attention(
                of_each, prepared.frames, need_weights=need_weights, need_lse=True
            )
            beta = masked_softmax(lse.unflatten(0, (films, number)).transpose(1, 2), (lengths > 0)[:, None]).to(
                query.dtype
            )
        contexts = contexts.unflatten(0, (films, number)).transpose(1, 2)  # (B, m, N, D)
        context = (beta[:, :, None] @ contexts).flatten(0, 2)
        if alpha is None:
            return context, None
        weights = beta.transpose(1, 2)[..., None] * alpha.unflatten(0, (films, number))  # (B, N, m, L)
        film = by_frame(weights.transpose(2, 3), lengths, prepared.steps)  # (B, T, m)
        return context, film.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class TwoLevelState:
    """Of a TwoLevelTokenDecoder: R rows, m for each of B films."""

    shots: PreparedShots
    h: Tensor  # (R, H)
    c: Tensor | None  # (R, H) of an LSTM

    def reorder(self, index: Tensor) -> TwoLevelState:
        c = None if self.c is None else self.c.index_select(0, index)
        return replace(self, h=self.h.index_select(0, index), c=c)

    def select(self, index: Tensor) -> TwoLevelState:
        rows = rows_of_entries(index, self.h.shape[0], self.shots.lengths.shape[0])
        return replace(self.reorder(rows), shots=self.shots.index_select(index))


class TwoLevelTokenDecoder(TokenDecoder):
    """Words to logits, with attention over shots and over the frames of each at every step.

        c_s = TwoLevelAttention of h_{s-1}
        h_s = LSTM or GRU of [x_s; c_s], x_s = E[w_s]             h_0 = tanh(W_0 pooled)
        logits_s = W_o dropout(tanh(W_r [h_s; c_s; x_s]))         logits of w_{s+1}

    All is as in `AttentionTokenDecoder`, but the attention.

    Args:
        vocab_size, embed_dim: words V, channels E of a word.
        hidden_dim, memory_dim, attn_dim: H of the state, D of the values of frames and of shots, A of the attention.
        pooled_dim: P of the film's pooled; None: D.
        beta: as in `TwoLevelAttention`; with "frames" it is an `AttentionTokenDecoder` over frames, which is one op.
        cell: "lstm" or "gru".
        dropout: of embedded words, and of what the vocabulary is applied to, in training.
        pad: the number of the word that only fills up.

    Its memory is a `ShotMemory`; weights (B, S, T) are of frames, and sum to β over the frames of a shot.
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
        beta: str = "shots",
        cell: str = "lstm",
        dropout: float = 0.0,
        pad: int = 0,
    ) -> None:
        super().__init__()
        check_positive_int("vocab_size", vocab_size)
        self.embedding = nn.Embedding(vocab_size, check_positive_int("embed_dim", embed_dim), padding_idx=pad)
        self.attention = TwoLevelAttention(hidden_dim, memory_dim, memory_dim, attn_dim, beta=beta)
        self.cell = CELLS[check_choice("cell", cell, tuple(CELLS))](embed_dim + memory_dim, hidden_dim)
        self.initial = InitialState(memory_dim if pooled_dim is None else pooled_dim, hidden_dim, cell)
        self.readout = nn.Linear(hidden_dim + memory_dim + embed_dim, hidden_dim)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.vocabulary = nn.Linear(hidden_dim, vocab_size)

    def forward(
        self, tokens: Tensor, memory: ShotMemory, *, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        check_shape("tokens", tokens, (memory.lengths.shape[0], "S"))
        x, state = self.dropout(self.embedding(tokens)), self.start(memory)
        found, all_weights = [x.new_empty(x.shape[0], 0, self.readout.in_features)], []
        for x_s in x.unbind(1):
            out, weights, state = self._step(x_s, state, need_weights)
            found.append(out[:, None])
            all_weights.append(weights)
        logits = self._logits(torch.cat(found, 1))
        if not need_weights:
            return logits, None
        none = x.new_empty(x.shape[0], 0, memory.frames.values.shape[1])
        return logits, torch.cat([none, *(w[:, None] for w in all_weights if w is not None)], 1)

    def start(self, memory: ShotMemory) -> TwoLevelState:
        hx = self.initial(memory.frames.pooled)
        h, c = hx if isinstance(hx, tuple) else (hx, None)
        return TwoLevelState(self.attention.prepare(memory), h, c)

    def step(self, tokens: Tensor, state: TwoLevelState) -> tuple[Tensor, Tensor | None, TwoLevelState]:
        out, weights, state = self._step(self.dropout(self.embedding(tokens)), state, True)
        return self._logits(out), weights, state

    def _step(self, x: Tensor, state: TwoLevelState, need_weights: bool) -> tuple[Tensor, Tensor | None, TwoLevelState]:
        """[h; c; x] (R, H+D+E), weights (R, T) or None, the state after the step."""
        context, weights = self.attention(state.h, state.shots, need_weights)
        hx = self.cell(torch.cat([x, context], 1), state.h if state.c is None else (state.h, state.c))
        h, c = hx if isinstance(hx, tuple) else (hx, None)
        return torch.cat([h, context, x], 1), weights, replace(state, h=h, c=c)

    def _logits(self, out: Tensor) -> Tensor:
        logits: Tensor = self.vocabulary(self.dropout(torch.tanh(self.readout(out))))
        return logits
