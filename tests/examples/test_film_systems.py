"""The systems about films run, on a little of the data, and their own parts do what they say."""

from __future__ import annotations

import importlib

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("pycocoevalcap")

from examples.data.sprite_captions import NAMED
from examples.systems import SYSTEMS, sprite_films, video_captioning, video_question_answering
from examples.systems.sprite_films import FRAMES
from examples.systems.table import Options, Row
from tests import tolerances


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> Options:
    return Options(smoke=True, out=tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def data(options):
    return sprite_films.load(options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["video_captioning", "video_question_answering"])
def test_they_run(name, options):
    assert name in SYSTEMS
    rows = importlib.import_module(f"examples.systems.{name}").run(options)
    assert rows
    assert all(isinstance(row, Row) for row in rows)


def test_single_frames_are_labelled_by_their_shots(data):
    shots = data.train.shots
    frames, digit, colour = sprite_films.single_frames(shots, seed=0).tensors
    assert len(frames) == len(digit) == len(colour) == FRAMES * len(shots.frames)
    for number in range(0, len(frames), 5):
        film = number // FRAMES
        step = (shots.frames[film] == frames[number]).flatten(1).all(1).nonzero()[0, 0]
        shot = int((step >= shots.lengths[film].cumsum(0)).sum())
        assert digit[number] == shots.digit[film, shot]
        assert colour[number] == shots.colour[film, shot]


def test_some_films(data):
    some = data.test.take(torch.tensor([5, 2]))
    assert some.clips == (data.test.clips[5], data.test.clips[2])
    assert torch.equal(some.maps, data.test.maps[[5, 2]])
    assert torch.equal(some.shots.digit, data.test.shots.digit[[5, 2]])


def test_a_film_is_read_once_for_all_its_captions(data):
    batch = video_captioning.encode(data.test.take(torch.arange(3)), data.words)
    for context in video_captioning.CONTEXTS:
        torch.manual_seed(0)
        model = video_captioning.captioner(context, len(data.words)).eval()
        logits, weights = video_captioning.attend(model, batch)
        assert logits.shape[:2] == (9, batch.words.shape[2] - 1)
        assert (weights is None) == (context == "mean")
        lengths = video_captioning.frames_of(model, batch.lengths)
        for caption in range(3):
            alone = model(batch.maps, batch.words[:, caption, :-1], lengths)
            torch.testing.assert_close(logits[caption::3], alone, **tolerances.LOG_PROBABILITY)


@pytest.mark.parametrize("turn", [0, 1])
def test_words_on_the_right_shot(data, monkeypatch, turn):
    """Weights that are on the first frame of the shot that a word is of, or of the next one."""
    films = data.test
    batch = video_captioning.encode(films, data.words)
    weights = torch.zeros(3 * len(films.clips), batch.words.shape[2] - 1, films.maps.shape[1])
    row = 0
    for clip, lengths in zip(films.clips, films.shots.lengths, strict=True):
        first = lengths.cumsum(0) - lengths
        for shots in clip.shots:
            for step, shot in enumerate(shots):
                weights[row, step, first[(max(shot, 0) + turn) % 3]] = 1.0
            row += 1
    monkeypatch.setattr(video_captioning, "attend", lambda model, batch: (None, weights))
    assert video_captioning.on_the_right_shot(None, films, data.words) == 1.0 - turn


def test_a_true_caption_is_exact_and_has_no_errors(data):
    found = video_captioning.judge([clip.captions[1] for clip in data.test.clips], data.test)
    assert found["exact"] == 1.0
    assert found["attribute"] == found["relation"] == found["chair_i"] == 0.0
    assert not NAMED & {"a", "then", "after", "first", "finally", "and", "last"}


def test_questions_are_about_their_films(data):
    part = video_question_answering.encode(data.test, data.asked)
    maps, words, counts, index, lengths = video_question_answering.inputs(part)
    assert len(words) == len(counts) == len(index) == 13 * len(maps)
    asked = [question.text for clip in data.test.clips for question in clip.questions]
    known = set(data.asked.words)
    for text, numbers, count in zip(asked, words, counts, strict=True):
        assert len(text.split()) == count
        if set(text.split()) <= known:
            assert data.asked.decode(numbers[:count]) == text
    assert torch.equal(index, torch.arange(len(maps)).repeat_interleave(13))
    assert torch.equal(lengths, data.test.shots.lengths)
