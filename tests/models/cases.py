"""A small one of every model, and inputs: what test_contract.py holds all of them to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridops import models

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """inputs(dtype) are of 4 examples. padded(inputs) are the same examples with more padding, in which anything
    stands; logits of what is no padding stay the same.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[torch.dtype], Inputs]
    padded: Callable[[Inputs], Inputs] | None = None
    exported: Callable[[Inputs], Inputs] = lambda inputs: inputs  # without lengths, which decide on shapes within


def words(*shape: int, vocabulary: int = 11) -> Tensor:
    return torch.randint(3, vocabulary, shape)


LENGTHS = torch.tensor([6, 2, 5, 3])

CASES = {
    "Seq2Seq": Case(
        lambda: models.Seq2Seq(11, 9, 6, 8),
        lambda dtype: (words(4, 6), words(4, 5, vocabulary=9), LENGTHS),
        lambda inputs: (torch.cat([inputs[0], words(4, 3)], 1), *inputs[1:]),
        lambda inputs: inputs[:2],
    ),
    "Seq2Seq, LSTM, 2 layers": Case(
        lambda: models.Seq2Seq(11, 9, 6, 8, 5, 2, cell="lstm"),
        lambda dtype: (words(4, 6), words(4, 5, vocabulary=9), LENGTHS),
        lambda inputs: (torch.cat([inputs[0], words(4, 3)], 1), *inputs[1:]),
        lambda inputs: inputs[:2],
    ),
    "Seq2Seq without attention": Case(
        lambda: models.Seq2Seq(11, 9, 6, 8, attention=False),
        lambda dtype: (words(4, 6), words(4, 5, vocabulary=9), LENGTHS),
        lambda inputs: (torch.cat([inputs[0], words(4, 3)], 1), *inputs[1:]),
        lambda inputs: inputs[:2],
    ),
}


def scenes(dtype: torch.dtype) -> Inputs:
    """Images, words, boxes, and which there are."""
    low, size = torch.rand(4, 3, 2) * 8, 4 + torch.rand(4, 3, 2) * 4
    mask = torch.arange(3) < torch.tensor([[3], [1], [2], [3]])
    return torch.rand(4, 3, 16, 16, dtype=dtype), words(4, 5), torch.cat([low, low + size], 2).to(dtype), mask


def more_boxes(inputs: Inputs) -> Inputs:
    images, tokens, boxes, mask = inputs
    boxes = torch.cat([boxes.masked_fill(~mask[..., None], torch.nan), boxes[:, :2]], 1)
    return images, tokens, boxes, torch.cat([mask, torch.zeros_like(mask[:, :2])], 1)


CASES |= {
    f"ImageCaptioner, {', '.join(options.values())}": Case(
        lambda options=options: models.ImageCaptioner(11, 8, 12, 5, **options), lambda dtype: scenes(dtype)[:2]
    )
    for options in (
        {"context": "global"},
        {"context": "global", "image_at": "first"},
        {"context": "spatial"},
        {"context": "adaptive"},
        {"context": "adaptive", "fallback": "global"},
    )
}
CASES["ImageCaptioner, objects"] = Case(
    lambda: models.ImageCaptioner(11, 8, 12, 5, context="objects"), scenes, more_boxes
)
CASES["SceneGraphCaptioner"] = Case(lambda: models.SceneGraphCaptioner(11, 8, 12, 5), scenes, more_boxes)
