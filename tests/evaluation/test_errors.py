from __future__ import annotations

import math

import pytest

from hybridops.evaluation import CaptionErrors, SceneGraph, SceneObject, caption_errors


def graph(objects, *relations):
    """ "small circle, square": objects with their attributes before the name."""
    things = [text.split() for text in objects.split(", ") if text]
    return SceneGraph(tuple(SceneObject(name, frozenset(attributes)) for *attributes, name in things), relations)


SCENE = graph(
    "small red circle, large blue circle, large green square",
    (0, "left of", 1), (1, "right of", 0), (0, "above", 2), (2, "below", 0), (1, "above", 2), (2, "below", 1),
)  # fmt: skip
RIGHT = CaptionErrors(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (graph("small red circle, blue circle", (0, "left of", 1)), RIGHT),
        (graph("circle, circle", (0, "right of", 1)), RIGHT._replace(attribute=math.nan)),
        (graph("small cross, square", (0, "left of", 1)), CaptionErrors(0.5, 1, math.nan, math.nan, 0)),
        (graph("small blue circle, green square", (0, "above", 1)), RIGHT._replace(attribute=0.5)),
        (graph("large blue circle, small red circle", (0, "left of", 1)), RIGHT._replace(relation=1)),
        # with neither circle green, either may be meant, and neither is below the square
        (graph("green circle, green square", (0, "below", 1)), RIGHT._replace(attribute=0.5, relation=1)),
        (graph("red circle, red circle, green square", (0, "above", 2), (1, "above", 2)), RIGHT._replace(repetition=1)),
        (graph("cross, cross"), CaptionErrors(1, 1, math.nan, math.nan, 1)),
        (graph("circle, circle, circle"), RIGHT._replace(attribute=math.nan, relation=math.nan, repetition=1)),
        (graph(""), CaptionErrors(math.nan, 0, math.nan, math.nan, 0)),
    ],
)  # fmt: skip
def test_one_caption(said, expected):
    assert caption_errors([said], [SCENE]) == pytest.approx(expected, nan_ok=True)


def test_shares_are_of_all_captions_together():
    said = [graph("red circle, green square", (0, "above", 1)), graph("cross"), graph("blue square, circle, star")]
    assert caption_errors(said, [SCENE] * 3) == pytest.approx((2 / 6, 2 / 3, 1 / 3, 0, 0))


def test_captions_without_images_are_named():
    with pytest.raises(ValueError, match="said and shown must be as many, got 1 and 0"):
        caption_errors([SCENE], [])


def test_tuples_are_those_of_spice():
    assert graph("small circle, small circle, red square", (0, "above", 2)).tuples() == {
        ("circle",), ("square",), ("circle", "small"), ("square", "red"), ("circle", "above", "square"),
    }  # fmt: skip
