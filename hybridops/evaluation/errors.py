"""What captions get wrong: objects, attributes and relations that the image does not show, and repetition."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from hybridops.evaluation.scene_graph import SceneGraph, SceneObject


class CaptionErrors(NamedTuple):
    """Shares, 0 at best; NaN where nothing was said that could be wrong."""

    chair_i: float  # of mentions of objects, those whose name is not shown (Rohrbach et al. 2018)
    chair_s: float  # of captions, those with one such mention or more
    attribute: float  # of mentions with attributes and of a name that is shown, those that fit no object of that name
    relation: float  # of relations between names that are shown, those that hold for no such pair
    repetition: (
        float  # of captions, those that mention an object, alike in name and attributes, more often than is shown
    )


def caption_errors(said: Sequence[SceneGraph], shown: Sequence[SceneGraph]) -> CaptionErrors:
    """Errors of captions against what their images show.

    Every error counts once: a name that is not shown is no error of attributes or relations as well, and a relation is
    judged by names alone where the attributes are wrong. CHAIR: Rohrbach et al. 2018, https://arxiv.org/abs/1809.02156.

    Args:
        said: of each caption what it says, as a parser gives it.
        shown: of each caption's image all there is to see: every object, all its attributes, every relation that holds.
    """
    if len(said) != len(shown):
        raise ValueError(f"said and shown must be as many, got {len(said)} and {len(shown)}")
    hallucinated, attributes, relations, captions, repeated = (
        [] for _ in range(5)
    )  # of each case, whether it is wrong
    for caption, image in zip(said, shown, strict=True):
        names = {thing.name for thing in image.objects}
        wrong = [mention.name not in names for mention in caption.objects]
        hallucinated += wrong
        captions.append(any(wrong))
        attributes += [
            not _fitting(mention, image) for mention in caption.objects if mention.attributes and mention.name in names
        ]
        relations += [
            not _holds(caption.objects[subject], relation, caption.objects[other], image)
            for subject, relation, other in caption.relations
            if {caption.objects[subject].name, caption.objects[other].name} <= names
        ]
        repeated.append(_repeats(caption, image))
    return CaptionErrors(*map(_share, (hallucinated, captions, attributes, relations, repeated)))


def _fitting(mention: SceneObject, image: SceneGraph) -> set[int]:
    """Numbers of the objects that a mention is true of."""
    return {
        number
        for number, thing in enumerate(image.objects)
        if mention.name == thing.name and mention.attributes <= thing.attributes
    }


def _meant(mention: SceneObject, image: SceneGraph) -> set[int]:
    """Numbers of the objects that a mention may mean: those it is true of, or else those of its name."""
    return _fitting(mention, image) or _fitting(SceneObject(mention.name), image)


def _holds(subject: SceneObject, relation: str, other: SceneObject, image: SceneGraph) -> bool:
    subjects, others = _meant(subject, image), _meant(other, image)
    return any(name == relation and a in subjects and b in others for a, name, b in image.relations)


def _repeats(caption: SceneGraph, image: SceneGraph) -> bool:
    return any(count > max(1, len(_fitting(thing, image))) for thing, count in Counter(caption.objects).items())


def _share(cases: list[bool]) -> float:
    return sum(cases) / len(cases) if cases else math.nan
