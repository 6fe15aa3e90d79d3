"""Moving sprites: clips of scikit-learn's handwritten digits that drift left or right, slowly or fast, and come back in
on the other side. Which digit it is, every frame shows; how it moves, only their order does: a clip of LOOP frames has
a sprite at the same LOOP places whatever its motion, so that a mean over frames is at chance.

    clips        one sprite: digit × motion
    long_clips   four stretches, in one of which the sprite drifts; in the others it jumps about
    needles      one frame has a digit, the others scraps of digits
    shots        several clips in colour, one after the other, with cuts between them
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

FRAME = 32  # pixels a side
SPRITE = 16
LOOP = 16  # frames, or places, until a slow sprite is where it began
MOTIONS = {"left": -1, "right": 1, "left fast": -3, "right fast": 3}  # places a frame; 3 and LOOP share no factor
COLOURS = {"red": (1.0, 0.25, 0.25), "green": (0.25, 1.0, 0.25), "blue": (0.35, 0.45, 1.0), "yellow": (1.0, 1.0, 0.2)}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PARTS = {"train": slice(0, 1200), "validation": slice(1200, 1450), "test": slice(1450, None)}  # of 1797 digits
NOISE = 0.05  # standard deviation of every pixel, of a range of 1


@dataclass(frozen=True)
class Clips:
    frames: Tensor  # uint8 (N, T, 1, FRAME, FRAME)
    digit: Tensor  # int64 (N,)
    motion: Tensor  # int64 (N,), the place in MOTIONS

    @property
    def label(self) -> Tensor:
        """digit × motion: int64 (N,), 40 classes."""
        return self.digit * len(MOTIONS) + self.motion


@dataclass(frozen=True)
class Needles:
    frames: Tensor  # uint8 (N, T, 1, FRAME, FRAME)
    digit: Tensor  # int64 (N,)
    at: Tensor  # int64 (N,), the frame that has it


@dataclass(frozen=True)
class Shots:
    frames: Tensor  # uint8 (N, T, 3, FRAME, FRAME), black behind the end
    lengths: Tensor  # int64 (N, S), frames of each shot
    digit: Tensor  # int64 (N, S)
    motion: Tensor  # int64 (N, S), the place in MOTIONS
    colour: Tensor  # int64 (N, S), the place in COLOURS


def clips(part: str, count: int, steps: int = LOOP, seed: int = 0) -> Clips:
    """`count` clips of `steps` frames, with digits of a part of PARTS alone."""
    generator = _generator(part, seed)
    sprites, digit = _pick(part, (count,), generator)
    motion = torch.randint(len(MOTIONS), (count,), generator=generator)
    return Clips(_frames(_draw(sprites, _drift(motion, steps, generator), generator), generator), digit, motion)


def long_clips(part: str, count: int, steps: int = LOOP, seed: int = 0, stretches: int = 4) -> Clips:
    """Clips of `stretches` × `steps` frames. In one stretch, anywhere, the sprite drifts; in the others it is at the
    same places in a random order.
    """
    generator = _generator(part, seed)
    sprites, digit = _pick(part, (count,), generator)
    motion = torch.randint(len(MOTIONS), (count,), generator=generator)
    place = _drift(motion, steps, generator)
    order = torch.rand(stretches, count, steps, generator=generator).argsort(2)
    places = place.expand(stretches, -1, -1).gather(2, order).transpose(0, 1).contiguous()
    places[torch.arange(count), torch.randint(stretches, (count,), generator=generator)] = place
    return Clips(_frames(_draw(sprites, places.flatten(1), generator), generator), digit, motion)


def needles(part: str, count: int, steps: int = LOOP, seed: int = 0) -> Needles:
    """Clips in which one frame has a whole digit, and the others another one each, whose quarters changed places."""
    generator = _generator(part, seed)
    sprites, digits = _pick(part, (count, steps), generator)
    rows, at = torch.arange(count), torch.randint(steps, (count,), generator=generator)
    scraps = sprites.roll((SPRITE // 2, SPRITE // 2), (2, 3))
    scraps[rows, at] = sprites[rows, at]
    places = torch.randint(LOOP, (count * steps, 1), generator=generator)
    frames = _draw(scraps.flatten(0, 1), places, generator).unflatten(0, (count, steps)).squeeze(2)
    return Needles(_frames(frames, generator), digits[rows, at], at)


def shots(part: str, count: int, number: int = 3, steps: tuple[int, int] = (6, 10), seed: int = 0) -> Shots:
    """Clips of `number` shots, of steps[0] to steps[1] frames each. Digits, motions and colours within a clip differ,
    as far as there are enough.
    """
    generator = _generator(part, seed)

    def pick(kinds: int) -> Tensor:
        drawn = torch.rand(count, -(-number // kinds), kinds, generator=generator)
        return drawn.argsort(2).flatten(1)[:, :number]

    digit, motion, colour = pick(len(DIGITS)), pick(len(MOTIONS)), pick(len(COLOURS))
    lengths = torch.randint(steps[0], steps[1] + 1, (count, number), generator=generator)
    films = _draw(
        _sprites_of(part, digit.flatten(), generator), _drift(motion.flatten(), steps[1], generator), generator
    )
    tint = torch.tensor(list(COLOURS.values()))[colour.flatten()]
    films = (films * tint[:, None, :, None, None]).unflatten(0, (count, number))
    first = lengths.cumsum(1) - lengths
    n, s, t = (torch.arange(steps[1]) < lengths[..., None]).nonzero(as_tuple=True)
    frames = torch.zeros(count, number * steps[1], *films.shape[3:])
    frames[n, first[n, s] + t] = films[n, s, t]
    end = torch.arange(frames.shape[1]) < lengths.sum(1, keepdim=True)
    return Shots(_frames(frames, generator) * end[..., None, None, None], lengths, digit, motion, colour)


@cache
def load_sprites() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, 8×8 scans enlarged: (1797, SPRITE, SPRITE) in [0, 1], and which they are, (1797,)."""
    data = load_digits()
    scans = torch.tensor(data.images, dtype=torch.float32) / 16
    images = F.interpolate(scans[:, None], size=SPRITE, mode="bicubic").squeeze(1).clamp(0, 1)
    return images, torch.tensor(data.target)


def _generator(part: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + list(PARTS).index(part))


def _pick(part: str, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Any sprites of a part: (*shape, SPRITE, SPRITE) and (*shape,)."""
    images, digits = (of_all[PARTS[part]] for of_all in load_sprites())
    index = torch.randint(len(digits), shape, generator=generator)
    return images[index], digits[index]


def _sprites_of(part: str, digit: Tensor, generator: torch.Generator) -> Tensor:
    """Sprites (N, SPRITE, SPRITE) that are the digits (N,)."""
    images, digits = (of_all[PARTS[part]] for of_all in load_sprites())
    chance = torch.rand(len(digit), len(digits), generator=generator)
    return images[chance.masked_fill(digits != digit[:, None], -1.0).argmax(1)]


def _drift(motion: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """The place in the loop at each step: (N, steps)."""
    start = torch.randint(LOOP, motion.shape, generator=generator)
    return start[:, None] + torch.tensor(list(MOTIONS.values()))[motion][:, None] * torch.arange(steps)


def _draw(sprites: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
    """Sprites (N, SPRITE, SPRITE) at places (N, T) of the loop, each at its own height: (N, T, 1, FRAME, FRAME)."""
    count, steps = places.shape
    height = torch.randint(FRAME - SPRITE + 1, (count,), generator=generator)
    row = height[:, None] + torch.arange(SPRITE)
    column = (places[..., None] * (FRAME // LOOP) + torch.arange(SPRITE)).remainder(FRAME)
    frames = torch.zeros(count, steps, FRAME, FRAME)
    n, t = torch.arange(count)[:, None, None, None], torch.arange(steps)[:, None, None]
    frames[n, t, row[:, None, :, None], column[:, :, None]] = sprites[:, None]
    return frames[:, :, None]


def _frames(films: Tensor, generator: torch.Generator) -> Tensor:
    """What a camera makes of films in [0, 1]: noise, and 256 steps."""
    noise = torch.empty_like(films).normal_(0.0, NOISE, generator=generator)
    return (255 * (films + noise).clamp(0, 1)).round().to(torch.uint8)
