"""Melodies, one note after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridops.checks import check_number, check_positive_int, check_shape
from hybridops.layers.search import sample


@dataclass(frozen=True, eq=False)
class MelodyState:
    """Of a MusicGenerator, R rows of melodies, as `layers.search` needs it."""

    h: Tensor  # (layers, R, H)
    c: Tensor  # (layers, R, H)
    entries: int  # R is a multiple of it

    def reorder(self, index: Tensor) -> MelodyState:
        return MelodyState(self.h.index_select(1, index), self.c.index_select(1, index), self.entries)

    def select(self, index: Tensor) -> MelodyState:
        count = self.h.shape[1] // max(self.entries, 1)
        h, c = (part.unflatten(1, (-1, count)).index_select(1, index).flatten(1, 2) for part in (self.h, self.c))
        return MelodyState(h, c, len(index))


class MusicGenerator(nn.Module):
    """Many to many: an LSTM that scores the next note after every note of a melody.

        h_s = LSTM(E[note_s], h_{s-1})        logits of note_{s+1} = W h_s + b

    Args:
        vocab_size, embedding_dim: notes V, channels E of one.
        hidden_dim, n_layers: of the LSTM.
        dropout: of embedded notes, between layers and of states, in training.

    Shape: notes int64 (B, S), state None or a pair (h, c), each (n_layers, B, hidden_dim); gives logits (B, S, V) and
    the state after the last note.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self, vocab_size: int, embedding_dim: int, hidden_dim: int, n_layers: int = 1, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(check_positive_int("vocab_size", vocab_size), embedding_dim)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.lstm = nn.LSTM(
            embedding_dim, hidden_dim, check_positive_int("n_layers", n_layers), batch_first=True,
            dropout=dropout if n_layers > 1 else 0.0,
        )  # fmt: skip
        self.vocabulary = nn.Linear(hidden_dim, vocab_size)

    def forward(
        self, notes: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        check_shape("notes", notes, ("B", "S"))
        h, state = self.lstm(self.dropout(self.embedding(notes)), state)
        return self.vocabulary(self.dropout(h)), state

    @torch.no_grad()
    def generate(
        self,
        seed: Tensor,
        max_length: int,
        *,
        end: int | None = None,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Go on with melodies: seed (B, S), S at least 1, gives notes (num_samples·B, at most max_length), without the
        seed. `end` is the note that ends a melody, and fills up what follows it; the rest as in `layers.sample`.
        """
        check_shape("seed", seed, ("B", "S"))
        if seed.shape[1] == 0:
            raise ValueError(f"seed must have at least one note, got shape {tuple(seed.shape)}")
        zeros = self.embedding(seed).new_zeros(self.lstm.num_layers, len(seed), self.lstm.hidden_size)
        state = MelodyState(zeros, zeros, len(seed))
        if seed.shape[1] > 1:  # the last note of the seed is what the first step reads
            _, (h, c) = self(seed[:, :-1])
            state = MelodyState(h, c, len(seed))
        return sample(
            self._step, state, seed[:, -1], end=-1 if end is None else end, max_length=max_length,
            num_samples=num_samples, temperature=temperature, top_k=top_k, generator=generator,
        ).tokens  # fmt: skip

    def _step(self, notes: Tensor, state: MelodyState) -> tuple[Tensor, None, MelodyState]:
        logits, (h, c) = self(notes[:, None], (state.h, state.c))
        return logits[:, 0], None, MelodyState(h, c, state.entries)
