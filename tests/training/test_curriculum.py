from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hybridops.training import CurriculumSampler


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.integers(1, 6),
    st.floats(0.01, 1),
    st.integers(0, 8),
)
def test_the_easiest_come_first_and_each_once(difficulty, epochs, start, epoch):
    sampler = CurriculumSampler(difficulty, epochs, start)
    sampler.set_epoch(epoch)
    taken = list(sampler)
    assert 1 <= len(taken) == len(sampler) == len(set(taken)) <= len(difficulty)
    assert sorted(difficulty[i] for i in taken) == sorted(difficulty)[: len(taken)]
    if epoch >= epochs:
        assert sorted(taken) == list(range(len(difficulty)))


def test_shares_are_those_of_the_equation():
    sampler = CurriculumSampler(range(1000), epochs=4, start=0.2)
    shares = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        shares.append(len(sampler) / 1000)
    assert shares == [0.2, 0.529, 0.721, 0.872, 1, 1]  # √(0.04 + 0.24 epoch)


def test_orders_are_fixed_by_seed_and_epoch():
    def order(seed, epoch):
        sampler = CurriculumSampler(torch.arange(100).flip(0), epochs=3, start=0.5, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert set(order(1, 0)) == set(range(50, 100))
    assert len({tuple(order(*which)) for which in [(1, 0), (2, 0), (1, 5), (1, 6)]}) == 4


def test_a_data_loader_takes_it():
    captions = ["a", "a b c", "a b", "a b c d"]
    sampler = CurriculumSampler([len(caption.split()) for caption in captions], epochs=2, start=0.5)
    loader = DataLoader(captions, batch_size=2, sampler=sampler)
    assert [set(batch) for batch in loader] == [{"a", "a b"}]
    sampler.set_epoch(2)
    assert {caption for batch in loader for caption in batch} == set(captions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 2), r"difficulty must be of shape \(N,\), N > 0, got \(0,\)"),
        (([[1.0]], 2), r"difficulty must be of shape .* got \(1, 1\)"),
        (([1.0, float("nan")], 2), "difficulty must be numbers, got NaN"),
        (([1], 0), "epochs must be a positive int, got 0"),
        (([1], 2, 0.0), "start must be more than 0, got 0.0"),
        (([1], 2, 1.5), r"start must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CurriculumSampler(*arguments)
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        CurriculumSampler([1], 2).set_epoch(-1)
