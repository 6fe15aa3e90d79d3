"""Tasks that need a memory, of Graves et al. 2014, https://arxiv.org/abs/1410.5401: random bits to be said again.

    copy                 a list of items, to be said again in the same order
    copy_digits          the same of handwritten digits: images are shown, classes said
    associative_recall   a list of items, then one of them: say the one that came after it

Drawn anew for every batch, so that no list is seen twice.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from examples.data.moving_sprites import PARTS

WHITE, BLACK = 10, 11  # the classes after those of the digits
IMAGES = 12  # classes


class Task(NamedTuple):
    inputs: Tensor  # (B, T, channels): items' bits, and a channel for each delimiter; images (B, T, 1, 8, 8)
    targets: Tensor  # (B, S, bits), or classes int64 (B, S), of the last S steps, at which the input is zeros


def copy(count: int, length: int, generator: torch.Generator, *, bits: int = 8) -> Task:
    """`length` items of `bits`, a delimiter, and as many steps to say them: T = 2 length + 1, channels = bits + 1."""
    items = torch.randint(2, (count, length, bits), generator=generator).float()
    inputs = torch.zeros(count, 2 * length + 1, bits + 1)
    inputs[:, :length, :bits] = items
    inputs[:, length, bits] = 1.0
    return Task(inputs, items)


def copy_digits(count: int, length: int, generator: torch.Generator, *, part: str = "train") -> Task:
    """`length` of scikit-learn's digits, of a part of PARTS alone, then a white image and as many black ones."""
    images, classes = _digits(part)
    index = torch.randint(len(classes), (count, length), generator=generator)
    inputs = torch.zeros(count, 2 * length + 1, 1, 8, 8)
    inputs[:, :length, 0] = images[index]
    inputs[:, length] = 1.0
    return Task(inputs, classes[index])


def single_images(part: str) -> tuple[Tensor, Tensor]:
    """What the lists of `copy_digits` are made of, (N, 1, 8, 8), and the classes, (N,): each digit of a part once, and
    white and black as often as a digit comes.
    """
    images, classes = _digits(part)
    often = len(classes) // 10
    blank = torch.tensor([1.0, 0.0]).repeat_interleave(often)
    images = torch.cat([images, blank[:, None, None].expand(-1, 8, 8)])
    return images[:, None], torch.cat([classes, torch.where(blank > 0, WHITE, BLACK)])


@cache
def _digits(part: str) -> tuple[Tensor, Tensor]:
    """(N, 8, 8) in [0, 1], and which they are, (N,)."""
    data = load_digits()
    images, classes = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
    return images[PARTS[part]], classes[PARTS[part]]


def associative_recall(count: int, length: int, generator: torch.Generator, *, bits: int = 6, rows: int = 3) -> Task:
    """`length` items, at least 2, of `rows` × `bits`, before each a delimiter; then, between two of another kind, any
    item but the last, and `rows` steps to say the next: T = (rows + 1) length + 2 rows + 2, channels = bits + 2.
    """
    items = torch.randint(2, (count, length, rows, bits), generator=generator).float()
    asked = torch.randint(length - 1, (count,), generator=generator)
    each = torch.arange(count)
    inputs = torch.zeros(count, (rows + 1) * length + 2 * rows + 2, bits + 2)
    end = (rows + 1) * length
    listed = inputs[:, :end].unflatten(1, (length, rows + 1))
    listed[:, :, 0, bits] = 1.0
    listed[:, :, 1:, :bits] = items
    inputs[:, [end, end + rows + 1], bits + 1] = 1.0
    inputs[:, end + 1 : end + rows + 1, :bits] = items[each, asked]
    return Task(inputs, items[each, asked + 1])
