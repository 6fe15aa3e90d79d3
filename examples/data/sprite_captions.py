"""Captions of moving sprites' shots, and questions about them, all exact.

A clip has three shots, in each of which a digit in a colour drifts or races left or right; digits, colours and motions
within a clip differ (see moving_sprites). Captions name all three shots, in the order of the film or against it.
Answers are drawn as the shots are, so that a question alone says little but of which kind its answer is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.data import moving_sprites
from examples.data.drawn_scenes import Vocabulary
from examples.data.moving_sprites import COLOURS, DIGITS, MOTIONS, Shots
from hybridops.evaluation import SceneGraph, SceneObject

STEPS = (6, 10)  # frames of a shot
NUMBER = 3  # shots
VERBS = {"left": "drifts left", "right": "drifts right", "left fast": "races left", "right fast": "races right"}
PHRASES = {  # of shots by number; every other word is of none
    "in order": "{0} then {1} then {2}",
    "counted": "first {0} then {1} and last {2}",
    "backwards": "finally {2} after {1} after {0}",
}
NAMED = {*COLOURS, *DIGITS, *" ".join(VERBS.values()).split()}  # words that say what a shot shows
KINDS = ("motion", "colour", "next", "before", "which")


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    kind: str  # of KINDS
    shot: int  # the one that the answer is of


@dataclass(frozen=True)
class Clip:
    """What one clip shows."""

    graph: SceneGraph
    captions: tuple[str, ...]  # one of each of PHRASES: all true, all of all shots
    shots: tuple[tuple[int, ...], ...]  # of each word of each caption the shot it is about, -1: of none
    questions: tuple[Question, ...]  # of each of KINDS all that can be asked, 13


@dataclass(frozen=True)
class CaptionedShots:
    shots: Shots
    clips: tuple[Clip, ...]


def load(part: str, count: int, seed: int = 0) -> CaptionedShots:
    """`count` clips, with digits of a part of moving_sprites.PARTS alone: the same for the same arguments."""
    shots = moving_sprites.shots(part, count, NUMBER, STEPS, seed)
    rows = zip(shots.colour.tolist(), shots.digit.tolist(), shots.motion.tolist(), strict=True)
    return CaptionedShots(shots, tuple(_describe(*row) for row in rows))


def parse(caption: str) -> SceneGraph:
    """What a caption says: a mention is a digit, with the colour before it and the motion behind it."""
    objects: list[SceneObject] = []
    relations: list[tuple[int, str, int]] = []
    for between, colour, digit, motion in _MENTION.findall(caption):
        if objects:
            relations.append((len(objects) - 1, "after" if "after" in between.split() else "before", len(objects)))
        objects.append(SceneObject(digit, frozenset((*colour.split(), *motion.split()))))
    return SceneGraph(tuple(objects), tuple(relations))


_ANY = {
    kind: "|".join(words)
    for kind, words in (("colour", COLOURS), ("digit", DIGITS), ("motion", sorted(NAMED - {*COLOURS, *DIGITS})))
}
_MENTION = re.compile(rf"(.*?)\b((?:(?:{_ANY['colour']}) )*)({_ANY['digit']})\b((?: (?:{_ANY['motion']}))*)")


def _describe(colours: list[int], digits: list[int], motions: list[int]) -> Clip:
    colour = [list(COLOURS)[number] for number in colours]
    digit = [DIGITS[number] for number in digits]
    motion = [VERBS[list(MOTIONS)[number]] for number in motions]
    each = [f"a {c} {d} {m}" for c, d, m in zip(colour, digit, motion, strict=True)]
    order = range(len(each))
    graph = SceneGraph(
        tuple(SceneObject(d, frozenset((c, *m.split()))) for c, d, m in zip(colour, digit, motion, strict=True)),
        tuple((a, "before" if a < b else "after", b) for a in order for b in order if a != b),
    )
    captions = tuple(phrase.format(*each) for phrase in PHRASES.values())
    of_words = tuple(
        tuple(int(token[1]) if token[0] == "{" else -1 for token in phrase.split() for _ in _words_of(token, each))
        for phrase in PHRASES.values()
    )
    questions = (
        *(Question(f"how does the {digit[i]} move", motion[i], "motion", i) for i in order),
        *(Question(f"what colour is the {digit[i]}", colour[i], "colour", i) for i in order),
        *(Question(f"what comes after the {colour[i - 1]} {digit[i - 1]}", digit[i], "next", i) for i in order[1:]),
        *(Question(f"what comes before the {colour[i + 1]} {digit[i + 1]}", digit[i], "before", i) for i in order[:-1]),
        *(Question(f"which digit {motion[i]}", digit[i], "which", i) for i in order),
    )
    return Clip(graph, captions, of_words, questions)


def _words_of(token: str, each: list[str]) -> list[str]:
    return token.format(*each).split()


def answers() -> tuple[str, ...]:
    """All that there are, by number."""
    return (*DIGITS, *COLOURS, *VERBS.values())


def encode_questions(clips: tuple[Clip, ...], vocabulary: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
    """Words int64 (N, Q, longest), lengths (N, Q) and answers (N, Q), of each clip its Q questions."""
    texts = [question.text for clip in clips for question in clip.questions]
    words = vocabulary.encode(texts, ends=False).unflatten(0, (len(clips), -1))
    known = {answer: number for number, answer in enumerate(answers())}
    said = torch.tensor([[known[question.answer] for question in clip.questions] for clip in clips])
    return words, (words != Vocabulary.PAD).sum(2), said
