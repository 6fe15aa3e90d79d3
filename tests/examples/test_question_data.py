"""The sources of the fusion systems: what they hold, and that parts stay apart."""

from __future__ import annotations

import pytest
import torch

from examples.data import japanese_vowels


@pytest.fixture(scope="module")
def easy():
    pytest.importorskip("easy_vqa")
    from examples.data import easy_vqa

    return easy_vqa.load()


def test_easy_vqa_is_whole(easy):
    assert [len(part.images) for part in (easy.train, easy.validation, easy.test)] == [3600, 400, 1000]
    assert [len(part.answers) for part in (easy.train, easy.validation, easy.test)] == [34687, 3888, 9673]
    assert (len(easy.vocabulary), len(easy.answers)) == (27, 13)
    for part in easy.train, easy.validation, easy.test:
        assert torch.equal((part.words != 0).sum(1), part.lengths)
        assert part.image_index.unique().tolist() == list(range(len(part.images)))


def test_easy_vqa_answers_are_those_of_the_images(easy):
    """The commonest colour that is no background is the one that is said."""
    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "black": (0, 0, 0)}
    checked = 0
    for words, image, answer in zip(easy.test.words, easy.test.image_index, easy.test.answers, strict=True):
        name = easy.answers[answer]
        if "color" in easy.spell(words) and name in colours:
            pixels = (easy.test.images[image] / 255.0).flatten(1).T
            shape = pixels[(pixels - pixels[0]).abs().sum(1) > 0.5].median(0).values
            wanted = torch.tensor(colours[name], dtype=torch.float32)
            assert (shape - wanted).abs().max() < 0.45, (easy.spell(words), name, shape)
            checked += 1
    assert checked > 100


def test_questions_about_some_images_are_numbered_anew(easy):
    some = easy.test.about([7, 3])
    assert torch.equal(some.images, easy.test.images[[7, 3]])
    for new, old in enumerate([7, 3]):
        here, there = some.image_index == new, easy.test.image_index == old
        assert torch.equal(some.words[here], easy.test.words[there])
        assert torch.equal(some.answers[here], easy.test.answers[there])
    assert some.image_index.tolist() == sorted(some.image_index.tolist())


def test_japanese_vowels():
    pytest.importorskip("aeon")
    train, validation, test = japanese_vowels.load()
    assert train.speakers.bincount().tolist() == [24] * 9
    assert validation.speakers.bincount().tolist() == [6] * 9
    assert test.speakers.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    for part in train, validation, test:
        behind = torch.arange(29) >= part.lengths[:, None]
        assert (part.frames[behind] == 0.0).all()
        assert (part.lengths >= 7).all()
        assert (part.lengths <= 29).all()


def test_tries_of_the_lock():
    pytest.importorskip("sklearn")
    pytest.importorskip("rich")
    from examples.systems import multimodal

    voices = japanese_vowels.Utterances(torch.randn(9, 4, 2), torch.full((9,), 4), torch.arange(9))
    shown = torch.arange(10).repeat(3)
    pictures = shown[:, None, None, None].float()  # each shows what it is
    tries = multimodal.draw_tries(voices, (pictures, shown), 600, torch.Generator().manual_seed(0))
    frames, _, images, labels = tries.tensors
    speaker = (frames[:, None] == voices.frames).all(3).all(2).int().argmax(1)
    digit = images[:, 0, 0, 0].long()
    expected = torch.where(speaker >= multimodal.KNOWN, 0, torch.where(digit == speaker, 2, 1))
    assert torch.equal(labels, expected)
    assert (labels.bincount() > 150).all()
    assert set(digit[labels == 0].tolist()) == set(range(10))
