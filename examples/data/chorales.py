"""Melodies of Bach's chorales: their soprano voices, from the corpus of the package `music21` (BSD 3-Clause License).

371 of them. Parsing takes a minute, so it is done once.
"""

from __future__ import annotations

import importlib.util
import random
from collections import defaultdict
from itertools import pairwise

from examples.data.cache import cached


def load() -> list[list[int]]:
    """Notes of each melody as MIDI numbers: without rests and lengths, a tied note once."""
    return cached("chorales", _parse)


def split(melodies: list[list[int]], *, validation: int, test: int, seed: int = 0) -> tuple[list[list[int]], ...]:
    """Training, validation and test melodies, at least so many of the last two.

    Bach set many tunes more than once, in other keys too: those that begin with the same nine intervals stay together,
    so that no tune of the test was trained on.
    """
    tunes = defaultdict(list)
    for melody in melodies:
        tunes[tuple(after - before for before, after in pairwise(melody[:10]))].append(melody)
    order = sorted(tunes)
    random.Random(seed).shuffle(order)
    parts: tuple[list[list[int]], ...] = ([], [], [])
    for tune in order:
        part = 2 if len(parts[2]) < test else 1 if len(parts[1]) < validation else 0
        parts[part].extend(tunes[tune])
    return parts


def _parse() -> list[list[int]]:
    if importlib.util.find_spec("music21") is None:
        raise ModuleNotFoundError("the chorales come with a package: pip install music21")
    from music21.corpus import chorales

    melodies = []
    for score in chorales.Iterator():
        soprano = next((part for part in score.parts if "Soprano" in (part.partName or "")), score.parts[0])
        melodies.append([note.pitch.midi for note in soprano.stripTies().flatten().notes if note.isNote])
    return melodies
