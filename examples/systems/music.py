"""Melodies, one note after the other (document 004): the sopranos of Bach's chorales, as pitches.

Perplexity of the next note on tunes that were not trained on, against a 4-gram; then melodies that the model writes.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from examples.data import chorales
from examples.figures import save_figure
from examples.systems.table import Options, Row, Speed
from examples.training import Plan, fit
from hybridops.models import MusicGenerator

BOUNDARY = 0  # begins and ends a melody; note n is MIDI number LOWEST + n - 1
LOWEST, HIGHEST = 55, 84  # what is sung, transposed ones included
NOTES = HIGHEST - LOWEST + 1
IGNORED = -100  # as targets in `F.cross_entropy`


def run(options: Options) -> list[Row]:
    train, validation, test = chorales.split(chorales.load(), validation=35, test=35)
    epochs = 1 if options.smoke else 30
    torch.manual_seed(options.seed)
    model = MusicGenerator(1 + NOTES, 64, 128, dropout=0.3)
    plan = Plan(epochs, batch_size=16, learning_rate=5e-3, seed=options.seed)
    history = fit(
        model, train, loss, lambda model: -perplexity(model, validation)[0], plan, collate=transposed, title="melodies"
    )
    found, accuracy = perplexity(model, test)
    four_gram = NGram(train, 4)
    baseline = math.exp(-sum(map(four_gram.log_likelihood, test)) / sum(map(len, test)))
    write_melodies(model, test, history.scores, options)
    data = f"chorale sopranos, {len(test)} melodies of other tunes"
    return [
        Row("MusicGenerator", data, "perplexity", found, baseline, "below 6.0", found < 6.0, "baseline: 4-gram"),
        Row(
            "MusicGenerator", data, "perplexity", found, baseline, "below the 4-gram", found < baseline,
            f"the likeliest note is right {accuracy:.3f} of the time",
        ),
    ]  # fmt: skip


def speed(options: Options) -> list[Speed]:
    """Nothing in it is fused."""
    return []


def numbers(melody: Sequence[int]) -> Tensor:
    """MIDI numbers as those of the model."""
    return torch.tensor(melody) - LOWEST + 1


def batch(melodies: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What is read, (B, S), and what comes next, with IGNORED behind the end."""
    ends = torch.tensor([BOUNDARY])
    before = pad_sequence([torch.cat([ends, notes]) for notes in melodies], batch_first=True)
    after = pad_sequence([torch.cat([notes, ends]) for notes in melodies], batch_first=True, padding_value=IGNORED)
    return before, after


def transposed(melodies: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """A batch of melodies, each moved by up to half an octave, so that all keys are learned from each."""
    moved = []
    for melody in map(numbers, melodies):
        low, high = max(-6, 1 - int(melody.min())), min(6, NOTES - int(melody.max()))
        moved.append(melody + torch.randint(low, high + 1, ()))
    return batch(moved)


def loss(model: nn.Module, melodies: tuple[Tensor, Tensor]) -> Tensor:
    before, after = melodies
    logits, _ = model(before)
    return F.cross_entropy(logits.flatten(0, 1), after.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def perplexity(model: nn.Module, melodies: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Of notes, that a melody ends left aside, and how often the likeliest is right."""
    before, after = batch([numbers(melody) for melody in melodies])
    logits, _ = model(before)
    notes = after > BOUNDARY
    logits, after = logits[notes], after[notes]
    return math.exp(F.cross_entropy(logits, after)), (logits.argmax(1) == after).float().mean().item()


class NGram:
    """p(note | the n - 1 before it), each order interpolated with the one below by Witten and Bell's rule (1991), the
    lowest with all notes alike:    p_k = (count + kinds · p_{k-1}) / (total + kinds)
    """

    def __init__(self, melodies: Sequence[Sequence[int]], n: int) -> None:
        self.n = n
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for melody in melodies:
            for history, note in self._steps(melody):
                for length in range(n):
                    self.counts[history[n - 1 - length :]][note] += 1

    def log_likelihood(self, melody: Sequence[int]) -> float:
        total = 0.0
        for history, note in self._steps(melody):
            p = 1 / NOTES
            for length in range(self.n):
                counts = self.counts.get(history[self.n - 1 - length :], Counter())
                if counts:
                    p = (counts[note] + len(counts) * p) / (counts.total() + len(counts))
            total += math.log(p)
        return total

    def _steps(self, melody: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
        padded = [0] * (self.n - 1) + list(melody)
        return [(tuple(padded[i : i + self.n - 1]), note) for i, note in enumerate(melody)]


def write_melodies(
    model: MusicGenerator, test: Sequence[Sequence[int]], scores: Sequence[float], options: Options
) -> None:
    """Three melodies from nothing and one that goes on from Bach's first eight notes: a picture, and MIDI files."""
    from music21 import note, stream

    generator = torch.Generator().manual_seed(options.seed)
    start = torch.full((3, 1), BOUNDARY)
    free = model.generate(start, 60, end=BOUNDARY, temperature=0.8, top_k=8, generator=generator)
    opening = torch.cat([start[:1], numbers(test[0][:8])[None]], 1)
    continued = model.generate(opening, 60, end=BOUNDARY, temperature=0.8, top_k=8, generator=generator)
    melodies = {f"model_{i}": row for i, row in enumerate(free, start=1)}
    melodies["after_bach"] = torch.cat([opening[0, 1:], continued[0]])
    melodies["bach"] = numbers(test[0])
    with save_figure(options.out / "music.png", rows=2, columns=3, size=4) as axes:
        for ax, (name, notes) in zip(axes.flat, melodies.items(), strict=False):
            pitches = (notes[notes != BOUNDARY] + LOWEST - 1).tolist()
            ax.barh(pitches, 0.9, height=0.9, left=range(len(pitches)))
            ax.set(title=name.replace("_", " "), ylabel="MIDI number", xlim=(0, 68), ylim=(LOWEST, HIGHEST))
            part = stream.Part([note.Note(pitch, quarterLength=1) for pitch in pitches])
            part.write("midi", options.out / f"music_{name}.mid")
        axes[1, 2].plot(range(1, 1 + len(scores)), [-score for score in scores])
        axes[1, 2].set(xlabel="epoch", ylabel="perplexity", title="validation")
