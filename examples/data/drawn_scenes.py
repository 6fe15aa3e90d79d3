"""Drawn scenes with exact captions, graphs and questions, in the manner of ShapeWorld (Kuhnle & Copestake 2017,
https://arxiv.org/abs/1704.04517) and CLEVR (Johnson et al. 2017, https://arxiv.org/abs/1612.06890).

Two to four objects on a noisy ground: shapes, and handwritten digits, each small or large and in a colour
that no other object of the scene has. Captions speak of the two leftmost objects. Every split has digits of its own, so
that a test image shows no scan that was trained on.

Licence: nothing is downloaded. The digits are of Optical Recognition of Handwritten Digits (Alpaydin and Kaynak,
UCI repository, CC BY 4.0), part of which comes with scikit-learn; all else is drawn here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridops.evaluation import SceneGraph, SceneObject
from hybridops.evaluation.imports import require

IMAGE = 48  # pixels a side
OBJECTS = range(2, 5)  # in a scene
MOST = max(OBJECTS)
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = SHAPES + DIGITS  # by class number
DRAWN_SHARE = 0.6  # of objects are shapes, the others digits
RADII = {"small": (4.0, 5.0), "large": (7.0, 8.5)}  # pixels, half the side of the square that an object fills
SIZES = tuple(RADII)
RGB = {
    "red": (0.9, 0.15, 0.15),
    "green": (0.15, 0.75, 0.2),
    "blue": (0.2, 0.3, 0.95),
    "yellow": (0.95, 0.9, 0.2),
    "purple": (0.65, 0.2, 0.8),
    "cyan": (0.2, 0.85, 0.9),
}
COLOURS = tuple(RGB)
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SPLITS = {"train": slice(0, 1197), "validation": slice(1197, 1497), "test": slice(1497, 1797)}  # of the digits

CLEARANCE = 1.5  # pixels between two objects at least
CLEARLY = (
    1.25  # one distance is larger than the other by this factor, so that "left of" and "above" are never a toss-up
)
FURTHER = 3.0  # pixels that the third object is right of the second, so that which two are leftmost can be seen


@dataclass(frozen=True)
class Scene:
    """What one image shows, its objects from left to right."""

    graph: SceneGraph
    captions: tuple[str, ...]  # paraphrases: all true, all of the same two objects and the same relation
    questions: tuple[tuple[str, str], ...]  # with their answers


@dataclass(frozen=True)
class DrawnScenes:
    """N scenes as tensors, objects from left to right in O = 4 places."""

    images: Tensor  # (N, 3, IMAGE, IMAGE) float32 in [0, 1]
    boxes: Tensor  # (N, O, 4) float32, pixels x1, y1, x2, y2; 0 where there is no object
    classes: Tensor  # (N, O) int64 into NAMES; 0 where there is no object
    mask: Tensor  # (N, O) bool, True where there is an object
    scenes: tuple[Scene, ...]


@dataclass(frozen=True)
class Vocabulary:
    """Words by number. Words are what spaces separate."""

    words: tuple[str, ...]

    PAD, START, END, UNKNOWN = range(4)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """All words of the texts."""
        return cls(
            ("<pad>", "<start>", "<end>", "<unknown>", *sorted({word for text in texts for word in text.split()}))
        )

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, texts: Iterable[str], *, ends: bool = True) -> Tensor:
        """(N, longest), padded with PAD; with `ends` from START to END."""
        numbers = {word: number for number, word in enumerate(self.words)}
        rows = [[numbers.get(word, self.UNKNOWN) for word in text.split()] for text in texts]
        if ends:
            rows = [[self.START, *row, self.END] for row in rows]
        longest = max(map(len, rows), default=0)
        padded = [row + [self.PAD] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), longest)

    def decode(self, numbers: Tensor) -> str:
        """The words of (T,) up to the first END, without START and PAD."""
        words = []
        for number in numbers.tolist():
            if number == self.END:
                break
            if number not in (self.PAD, self.START):
                words.append(self.words[number])
        return " ".join(words)


def draw_scenes(count: int, split: str = "train", seed: int = 0) -> DrawnScenes:
    """Scenes of a split ("train", "validation" or "test"): the same for the same arguments, others for another seed."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(map(repr, SPLITS))}, got {split!r}")
    number = seed * len(SPLITS) + list(SPLITS).index(split)
    generator = torch.Generator().manual_seed(number)
    each = (count, MOST)
    mask = torch.arange(MOST) < torch.randint(OBJECTS.start, OBJECTS.stop, (count, 1), generator=generator)
    classes = torch.where(
        torch.rand(each, generator=generator) < DRAWN_SHARE,
        torch.randint(len(SHAPES), each, generator=generator),
        torch.randint(len(SHAPES), len(NAMES), each, generator=generator),
    ).where(mask, 0)
    colours = torch.rand(count, len(COLOURS), generator=generator).argsort(1)[:, :MOST]
    sizes = torch.randint(len(SIZES), each, generator=generator)
    low, high = torch.tensor(list(RADII.values()))[sizes].unbind(-1)
    radii = low + (high - low) * torch.rand(each, generator=generator)
    centres = _place(radii, mask, generator)

    left_to_right = centres[..., 0].where(mask, torch.inf).argsort(1)
    classes, colours, sizes, radii = (part.gather(1, left_to_right) for part in (classes, colours, sizes, radii))
    centres = centres.gather(1, left_to_right[..., None].expand(-1, -1, 2))

    coverage = _cover(classes, centres, radii, SPLITS[split], generator) * mask[..., None, None]
    words = random.Random(number)
    scenes = tuple(
        _describe(*(part[:present].tolist() for part in row), words)
        for present, *row in zip(mask.sum(1).tolist(), classes, colours, sizes, centres, strict=True)
    )
    return DrawnScenes(_paint(coverage, colours, generator), _bound(coverage), classes, mask, scenes)


_ANY = {
    kind: "|".join(words) for kind, words in (("attribute", SIZES + COLOURS), ("name", NAMES), ("relation", INVERSE))
}
_PHRASE = re.compile(rf"\b(?:((?:(?:{_ANY['attribute']}) )*)({_ANY['name']})|({_ANY['relation']}))\b")


def parse(caption: str) -> SceneGraph:
    """What a caption says. A relation is between the mentions before and after it; all other words say nothing."""
    objects: list[SceneObject] = []
    relations: list[tuple[int, str, int]] = []
    pending = ""
    for attributes, name, relation in _PHRASE.findall(caption):
        if name:
            objects.append(SceneObject(name, frozenset(attributes.split())))
            if pending and len(objects) > 1:
                relations.append((len(objects) - 2, pending, len(objects) - 1))
        pending = relation
    return SceneGraph(tuple(objects), tuple(relations))


def _place(radii: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Centres (N, O, 2), drawn anew until all objects are apart and every relation is clear."""
    centres = torch.zeros(*radii.shape, 2)
    todo = torch.arange(len(radii))
    while len(todo):
        r, present = radii[todo], mask[todo]
        c = r[..., None] + torch.rand(*r.shape, 2, generator=generator) * (IMAGE - 2 * r[..., None])
        distance = (c[:, :, None] - c[:, None]).abs()  # (n, O, O, 2)
        near, far = distance.aminmax(dim=-1)
        good = (far > r[:, :, None] + r[:, None] + CLEARANCE) & (far > CLEARLY * near)
        pair = present[:, :, None] & present[:, None] & ~torch.eye(MOST, dtype=torch.bool)
        x = c[..., 0].where(present, torch.inf).sort(1).values
        kept = (good | ~pair).all((1, 2)) & (x[:, 2] > x[:, 1] + FURTHER)
        centres[todo[kept]] = c[kept]
        todo = todo[~kept]
    return centres


def _cover(classes: Tensor, centres: Tensor, radii: Tensor, split: slice, generator: torch.Generator) -> Tensor:
    """How much of each pixel each object covers: (N, O, IMAGE, IMAGE) in [0, 1]."""
    middle = torch.arange(IMAGE) + 0.5
    x = (middle - centres[..., :1])[..., None, :]  # (N, O, 1, IMAGE), pixels from the object's centre
    y = (middle - centres[..., 1:])[..., None]
    r = radii[..., None, None]
    glyphs, digit = _glyphs(split)
    coverage = torch.zeros(*classes.shape, IMAGE, IMAGE)
    for number, name in enumerate(NAMES):
        chosen = classes == number
        if name in SHAPES:
            inside = _inside(name, x[chosen], y[chosen], r[chosen])
            coverage[chosen] = (inside + 0.5).clamp(0, 1)  # the edge is one pixel wide
        else:
            own = glyphs[digit == number - len(SHAPES)]
            which = torch.randint(len(own), (int(chosen.sum()),), generator=generator)
            grid = torch.stack(torch.broadcast_tensors(x[chosen] / r[chosen], y[chosen] / r[chosen]), -1)
            coverage[chosen] = F.grid_sample(own[which], grid, align_corners=False).squeeze(1)
    return coverage


def _inside(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Pixels from the edge, positive inside."""
    if shape == "circle":
        return r - (x.square() + y.square()).sqrt()
    if shape == "square":
        return 0.9 * r - torch.maximum(x.abs(), y.abs())  # about a circle's area
    if shape == "triangle":  # upright, its apex in the middle of the upper side
        return torch.minimum(r - y, (r + y - 2 * x.abs()) / 5**0.5)
    bar = r / 3
    return torch.maximum(
        torch.minimum(r - x.abs(), bar - y.abs()),
        torch.minimum(bar - x.abs(), r - y.abs()),
    )


def _glyphs(split: slice) -> tuple[Tensor, Tensor]:
    """Scans (n, 1, 8, 8) in [0, 1], and which digits they are."""
    digits = require("sklearn.datasets").load_digits()
    scans = torch.tensor(digits.images[split], dtype=torch.float32)[:, None] / 16
    return scans, torch.tensor(digits.target[split])


def _paint(coverage: Tensor, colours: Tensor, generator: torch.Generator) -> Tensor:
    rgb = torch.tensor(list(RGB.values()))[colours]
    rgb = rgb + 0.08 * torch.randn(rgb.shape, generator=generator)  # no two reds are quite the same
    ground = 0.15 + 0.25 * torch.rand(len(coverage), 1, 1, 1, generator=generator)
    ground = ground * (1 - coverage.sum(1, keepdim=True)) + torch.einsum("noyx,noc->ncyx", coverage, rgb)
    return (ground + 0.03 * torch.randn(ground.shape, generator=generator)).clamp(0, 1)


def _bound(coverage: Tensor) -> Tensor:
    """The box of the pixels that are covered by half or more: (N, O, 4)."""
    covered = coverage > 0.5
    sides = []
    for line in (covered.any(-2), covered.any(-1)):  # columns, rows
        first = line.int().argmax(-1)
        last = IMAGE - line.flip(-1).int().argmax(-1)
        sides.append((first, last.where(line.any(-1), 0)))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], -1).float()


def _describe(
    classes: list[int], colours: list[int], sizes: list[int], centres: list[list[float]], words: random.Random
) -> Scene:
    objects = [(SIZES[s], COLOURS[c], NAMES[n]) for s, c, n in zip(sizes, colours, classes, strict=True)]
    relations = {
        (a, b): _relation(centres[a], centres[b]) for a in range(len(objects)) for b in range(len(objects)) if a != b
    }
    graph = SceneGraph(
        tuple(SceneObject(name, frozenset((size, colour))) for size, colour, name in objects),
        tuple((a, relation, b) for (a, b), relation in relations.items()),
    )
    return Scene(graph, _captions(objects[0], relations[0, 1], objects[1]), _questions(objects, relations, words))


def _relation(a: list[float], b: list[float]) -> str:
    dx, dy = a[0] - b[0], a[1] - b[1]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _captions(first: tuple[str, ...], relation: str, second: tuple[str, ...]) -> tuple[str, ...]:
    a, b, inverse = f"a {' '.join(first)}", f"a {' '.join(second)}", INVERSE[relation]
    return (
        f"{a} is {relation} {b}",
        f"there is {a} {_at(relation)} {b}",
        f"{b} is {inverse} {a}",
        f"there is {b} {_at(inverse)} {a}",
    )


def _at(relation: str) -> str:
    return f"to the {relation}" if relation.endswith("of") else relation


def _questions(
    objects: list[tuple[str, str, str]], relations: dict[tuple[int, int], str], words: random.Random
) -> tuple[tuple[str, str], ...]:
    """One of each kind; yes and no are equally likely."""
    size, colour, name = words.choice(objects)
    questions = [
        ("how many objects are there", str(len(objects))),
        (f"what is the {colour} object", name),
        (f"what size is the {colour} object", size),
    ]
    names = [name for *_, name in objects]
    alone = [thing for thing in objects if names.count(thing[2]) == 1]
    if alone:
        _, colour, name = words.choice(alone)
        questions.append((f"what colour is the {name}", colour))

    _, colour, name = words.choice(objects)
    shown = words.random() < 0.5
    if not shown:  # that colour is not there, or on another object: neither half of the question gives the answer away
        colour = words.choice([other for other in COLOURS if (other, name) not in {thing[1:] for thing in objects}])
    questions.append((f"is there a {colour} {name}", "yes" if shown else "no"))

    (a, b), relation = words.choice(list(relations.items()))
    holds = words.random() < 0.5
    if not holds:
        relation = words.choice([other for other in INVERSE if other != relation])
    questions.append((f"is the {objects[a][1]} object {relation} the {objects[b][1]} object", "yes" if holds else "no"))
    return tuple(questions)
