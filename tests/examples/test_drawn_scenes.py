from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn")

from examples.data.drawn_scenes import (
    COLOURS,
    IMAGE,
    INVERSE,
    NAMES,
    RGB,
    SHAPES,
    SIZES,
    SPLITS,
    Vocabulary,
    draw_scenes,
    parse,
)
from hybridops.evaluation import SceneObject


@pytest.fixture(scope="module")
def drawn():
    return draw_scenes(300, seed=1)


def present(drawn):
    """(scene number, object number) of every object."""
    return drawn.mask.nonzero().tolist()


def test_tensors_have_the_stated_shapes_and_ranges(drawn):
    assert drawn.images.shape == (300, 3, IMAGE, IMAGE)
    assert drawn.images.min() >= 0
    assert drawn.images.max() <= 1
    assert drawn.boxes.shape == (300, 4, 4)
    assert drawn.classes.shape == drawn.mask.shape == (300, 4)
    assert drawn.mask.sum(1).unique().tolist() == [2, 3, 4]
    assert not drawn.boxes[~drawn.mask].any()
    assert not drawn.classes[~drawn.mask].any()


def test_a_seed_and_a_split_fix_the_scenes():
    first, again = draw_scenes(20, "test", seed=5), draw_scenes(20, "test", seed=5)
    assert torch.equal(first.images, again.images)
    assert first.scenes == again.scenes
    others = [draw_scenes(20, "test", seed=6), draw_scenes(20, "train", seed=5)]
    assert not any(torch.equal(first.images, other.images) for other in others)


def test_splits_share_no_digit():
    numbers = [set(range(1797)[part]) for part in SPLITS.values()]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 1797


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="split must be one of 'train', 'validation', 'test', got 'dev'"):
        draw_scenes(1, "dev")


def test_boxes_hold_their_objects_and_nobody_elses(drawn):
    x1, y1, x2, y2 = drawn.boxes[drawn.mask].unbind(-1)
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 <= IMAGE).all()
    assert (y2 <= IMAGE).all()
    assert (torch.minimum(x2 - x1, y2 - y1) >= 2).all()
    assert (torch.maximum(x2 - x1, y2 - y1) >= 6).all()
    for boxes, mask in zip(drawn.boxes, drawn.mask, strict=True):
        a, b = boxes[mask][:, None], boxes[mask][None]
        overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
        assert not overlap.fill_diagonal_(0).any()


def test_classes_sizes_and_colours_are_those_of_the_image(drawn):
    """The middle of a circle or square has its object's colour, and a box its object's size."""
    for scene, number in present(drawn):
        thing = drawn.scenes[scene].graph.objects[number]
        x1, y1, x2, y2 = drawn.boxes[scene, number].tolist()
        assert thing.name == NAMES[drawn.classes[scene, number]]
        assert (max(x2 - x1, y2 - y1) > 11) == ("large" in thing.attributes)
        if thing.name in ("circle", "square"):
            x, y = int((x1 + x2) / 2), int((y1 + y2) / 2)
            seen = drawn.images[scene, :, y - 1 : y + 2, x - 1 : x + 2].mean((1, 2))
            nearest = min(RGB, key=lambda name: (torch.tensor(RGB[name]) - seen).norm())
            assert nearest in thing.attributes


def test_relations_are_those_of_the_boxes(drawn):
    """Judged by the boxes of drawn shapes, which fill the square that they are placed by up to a pixel and a half."""
    judged = 0
    for scene, boxes in zip(drawn.scenes, drawn.boxes, strict=True):
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        for a, relation, b in scene.graph.relations:
            if {scene.graph.objects[a].name, scene.graph.objects[b].name} <= set(SHAPES):
                dx, dy = (middle[a] - middle[b]).tolist()
                true = ("left of" if dx < 0 else "right of") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
                assert relation == true
                judged += 1
    assert judged > 300


def test_every_pair_has_a_relation_and_its_inverse(drawn):
    for scene in drawn.scenes:
        relations = {(a, b): relation for a, relation, b in scene.graph.relations}
        count = len(scene.graph.objects)
        assert len(relations) == count * (count - 1)
        assert all(relations[b, a] == INVERSE[relation] for (a, b), relation in relations.items())


def test_objects_stand_from_left_to_right(drawn):
    for scene in drawn.scenes:
        assert not any(relation == "right of" for a, relation, b in scene.graph.relations if a < b)


def test_captions_say_what_is_true_of_the_two_leftmost(drawn):
    for scene in drawn.scenes:
        first, second, *_ = scene.graph.objects
        truth = {(a, b): relation for a, relation, b in scene.graph.relations}
        for caption in scene.captions:
            said = parse(caption)
            assert set(said.objects) == {first, second}
            ((subject, relation, other),) = said.relations
            order = (said.objects[subject] == second, said.objects[other] == second)
            assert relation == truth[order]
        assert len(set(scene.captions)) == 4


def test_answers_are_right(drawn):
    """Answered anew from the graph alone."""
    kinds = set()
    for scene in drawn.scenes:
        objects = scene.graph.objects
        truth = {(a, b): relation for a, relation, b in scene.graph.relations}

        def of_colour(colour, objects=objects):
            (number,) = [n for n, thing in enumerate(objects) if colour in thing.attributes]
            return number

        for question, answer in scene.questions:
            words = question.split()
            kinds.add(" ".join(words[:2]))
            if question == "how many objects are there":
                right = str(len(objects))
            elif question.startswith("what is the"):
                right = objects[of_colour(words[3])].name
            elif question.startswith("what size"):
                (right,) = objects[of_colour(words[4])].attributes & set(SIZES)
            elif question.startswith("what colour"):
                (thing,) = [thing for thing in objects if thing.name == words[-1]]
                (right,) = thing.attributes & set(COLOURS)
            elif question.startswith("is there"):
                shown = any(words[3] in thing.attributes and words[4] == thing.name for thing in objects)
                right = "yes" if shown else "no"
            else:
                relation = " ".join(words[4:-3])
                right = "yes" if truth[of_colour(words[2]), of_colour(words[-2])] == relation else "no"
            assert answer == right
    assert kinds == {"how many", "what is", "what size", "what colour", "is there", "is the"}


def test_yes_and_no_are_about_as_frequent():
    asked = [pair for scene in draw_scenes(1000).scenes for pair in scene.questions]
    answers = [answer for question, answer in asked if question.startswith("is ")]
    assert len(answers) == 2000
    assert abs(answers.count("yes") / 2000 - 0.5) < 0.05


@given(
    st.lists(
        st.tuples(st.sampled_from(SIZES), st.sampled_from(COLOURS), st.sampled_from(NAMES)), min_size=2, max_size=2
    )
)
def test_the_grammar_is_exact(pair):
    a, b = (" ".join(thing) for thing in pair)
    objects = tuple(SceneObject(name, frozenset((size, colour))) for size, colour, name in pair)
    for relation in INVERSE:
        for text in (f"a {a} is {relation} a {b}", f"there is the {a} to the {relation} the {b}"):
            assert parse(text) == (objects, ((0, relation, 1),))


@pytest.mark.parametrize(
    ("text", "objects", "relations"),
    [
        ("", [], []),
        ("a red", [], []),
        ("left of a circle", [("circle", "")], []),
        ("a circle left of", [("circle", "")], []),
        ("a circle and a small square", [("circle", ""), ("square", "small")], []),
        ("a red small red circle", [("circle", "red small")], []),
        ("a circle above below a cross", [("circle", ""), ("cross", "")], [(0, "below", 1)]),
        ("a one above a two below a one", [("one", ""), ("two", ""), ("one", "")], [(0, "above", 1), (1, "below", 2)]),
        ("stone squares aboveboard", [], []),
    ],
)
def test_other_texts_say_what_their_phrases_say(text, objects, relations):
    expected = tuple(SceneObject(name, frozenset(attributes.split())) for name, attributes in objects)
    assert parse(text) == (expected, tuple(relations))


def test_vocabulary_there_and_back():
    words = Vocabulary.of(["a red circle", "a cross"])
    numbers = words.encode(["a cross", "a red circle", ""])
    assert numbers.tolist() == [[1, 4, 6, 2, 0], [1, 4, 7, 5, 2], [1, 2, 0, 0, 0]]
    assert [words.decode(row) for row in numbers] == ["a cross", "a red circle", ""]
    assert words.encode(["a blue cross"], ends=False).tolist() == [[4, 3, 6]]
    assert words.decode(torch.tensor([4, 3, 2, 6])) == "a <unknown>"
    assert words.encode([]).shape == (0, 0)
    assert len(words) == 8
