from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

from examples.data import chorales

pytest.importorskip("matplotlib")

from examples.systems.music import BOUNDARY, HIGHEST, LOWEST, NGram, batch, numbers, transposed


@pytest.fixture
def melodies() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randint(60, 75) for _ in range(draw.randint(12, 30))] for _ in range(40)]


def test_a_tune_is_in_one_part_whatever_its_key(melodies):
    melodies += [[note + 3 for note in melody] for melody in melodies]
    parts = chorales.split(melodies, validation=10, test=10)
    assert sorted(melody for part in parts for melody in part) == sorted(melodies)
    tunes = [{tuple(b - a for a, b in pairwise(melody)) for melody in part} for part in parts]
    assert not tunes[0] & tunes[1]
    assert not tunes[0] & tunes[2]
    assert not tunes[1] & tunes[2]
    assert len(parts[1]) == len(parts[2]) == 10


def test_batches():
    before, after = batch([numbers([60, 62, 64]), numbers([70])])
    low = LOWEST - 1
    assert before.tolist() == [[BOUNDARY, 60 - low, 62 - low, 64 - low], [BOUNDARY, 70 - low, 0, 0]]
    assert after.tolist() == [[60 - low, 62 - low, 64 - low, BOUNDARY], [70 - low, BOUNDARY, -100, -100]]


def test_transposition_keeps_intervals(melodies):
    torch.manual_seed(0)
    _, after = transposed(melodies)
    shifts = set()
    for melody, row in zip(melodies, after, strict=True):
        notes = row[: len(melody)] + LOWEST - 1
        assert notes.min() >= LOWEST
        assert notes.max() <= HIGHEST
        (shift,) = set((notes - torch.tensor(melody)).tolist())
        shifts.add(shift)
    assert len(shifts) > 5


@pytest.mark.parametrize("n", [1, 2, 4])
def test_n_gram_sums_to_one(melodies, n):
    model = NGram(melodies[:30], n)
    history = melodies[0][:5]
    so_far = model.log_likelihood(history)
    after = [math.exp(model.log_likelihood([*history, note]) - so_far) for note in range(LOWEST, HIGHEST + 1)]
    assert sum(after) == pytest.approx(1.0)
    assert min(after) > 0


def test_n_gram_by_hand():
    model = NGram([[60, 62, 60, 62, 60, 64]], 2)
    n = HIGHEST - LOWEST + 1
    # 60 follows the start; of 6 notes 60 comes 3 times, 3 kinds; after 60 come 62, 62, 64
    p_60 = (1 + 1 * (3 + 3 / n) / 9) / 2
    p_62 = (2 + 2 * (2 + 3 / n) / 9) / 5
    assert model.log_likelihood([60, 62]) == pytest.approx(math.log(p_60) + math.log(p_62))
