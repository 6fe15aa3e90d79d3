"""Captions and questions of moving sprites: true of the clips, and nothing is said by the questions alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("sklearn")

from examples.data import moving_sprites, sprite_captions
from examples.data.drawn_scenes import Vocabulary
from examples.data.sprite_captions import NAMED, PHRASES, VERBS
from hybridops.evaluation import SceneObject, caption_errors


@pytest.fixture(scope="module")
def data():
    return sprite_captions.load("validation", 400)


def shown(data, clip: int, shot: int) -> tuple[str, str, str]:
    """Colour, digit and motion."""
    shots = data.shots
    colour = list(moving_sprites.COLOURS)[shots.colour[clip, shot]]
    motion = VERBS[list(moving_sprites.MOTIONS)[shots.motion[clip, shot]]]
    return colour, moving_sprites.DIGITS[shots.digit[clip, shot]], motion


def test_captions_say_what_is_shown(data):
    for number, clip in enumerate(data.clips[:50]):
        shots = [shown(data, number, shot) for shot in range(3)]
        mentions = [f"a {colour} {digit} {motion}" for colour, digit, motion in shots]
        assert clip.captions[0] == " then ".join(mentions)
        assert clip.captions[2] == "finally " + " after ".join(reversed(mentions))
        assert set(clip.graph.objects) == {SceneObject(d, frozenset((c, *m.split()))) for c, d, m in shots}


def test_words_are_of_their_shots(data):
    for number, clip in enumerate(data.clips[:50]):
        for caption, shots in zip(clip.captions, clip.shots, strict=True):
            words = caption.split()
            assert len(words) == len(shots)
            for shot in range(3):
                said = " ".join(word for word, about in zip(words, shots, strict=True) if about == shot)
                assert said == "a {} {} {}".format(*shown(data, number, shot))
            assert not NAMED & {word for word, about in zip(words, shots, strict=True) if about == -1}


def test_true_captions_have_no_errors_and_others_have(data):
    graphs = [clip.graph for clip in data.clips]
    for phrase in range(len(PHRASES)):
        said = [sprite_captions.parse(clip.captions[phrase]) for clip in data.clips]
        assert all(len(graph.objects) == 3 and len(graph.relations) == 2 for graph in said)
        assert set(caption_errors(said, graphs)) == {0.0}
    said = [sprite_captions.parse(clip.captions[0].replace(" then ", " after ")) for clip in data.clips]
    errors = caption_errors(said, graphs)
    assert errors.relation == 1.0
    assert errors.attribute == errors.chair_i == 0.0
    turned = str.maketrans({"f": "", "h": ""})  # "left" and "right" are no words of the grammar then
    said = [sprite_captions.parse(clip.captions[0].translate(turned)) for clip in data.clips]
    assert all(not graph.objects or not {"left", "right"} & graph.objects[0].attributes for graph in said)


def test_an_attribute_of_another_shot_is_an_error(data):
    clip = data.clips[0]
    first, second = (shown(data, 0, shot) for shot in range(2))
    said = sprite_captions.parse(clip.captions[0].replace(f"a {first[0]} ", f"a {second[0]} "))
    assert caption_errors([said], [clip.graph]).attribute == pytest.approx(1 / 3)


def test_answers_are_true(data):
    for number, clip in enumerate(data.clips):
        shots = [shown(data, number, shot) for shot in range(3)]
        for question in clip.questions:
            colour, digit, motion = shots[question.shot]
            expected = {"motion": motion, "colour": colour}.get(question.kind, digit)
            assert question.answer == expected
            asked = set(question.text.split())
            if question.kind in ("motion", "colour"):
                assert digit in asked
            elif question.kind == "which":
                assert set(motion.split()) <= asked
            else:
                other = shots[question.shot + (-1 if question.kind == "next" else 1)]
                assert set(other[:2]) <= asked


def test_a_question_says_nothing_of_its_answer():
    """The commonest answer of each kind is hardly more common than the others."""
    clips = sprite_captions.load("train", 500).clips
    for kind, number in {"motion": 4, "colour": 4, "next": 10, "before": 10, "which": 10}.items():
        counts = Counter(question.answer for clip in clips for question in clip.questions if question.kind == kind)
        assert len(counts) == number
        assert max(counts.values()) < 1.3 * counts.total() / number


def test_questions_by_number(data):
    texts = [question.text for clip in data.clips for question in clip.questions]
    vocabulary = Vocabulary.of(texts)
    words, lengths, answers = sprite_captions.encode_questions(data.clips, vocabulary)
    assert words.shape[:2] == lengths.shape == answers.shape == (400, 13)
    for clip, row, ends, said in zip(data.clips, words, lengths, answers, strict=True):
        for question, numbers, end, answer in zip(clip.questions, row, ends, said, strict=True):
            assert vocabulary.decode(numbers[:end]) == question.text
            assert sprite_captions.answers()[answer] == question.answer


def test_parts_and_seeds(data):
    again, other = (sprite_captions.load("validation", 5, seed) for seed in (0, 1))
    assert again.clips == sprite_captions.load("validation", 5).clips
    assert other.clips != again.clips
    assert torch.equal(again.shots.frames, sprite_captions.load("validation", 5).shots.frames)
