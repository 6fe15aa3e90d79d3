"""Where a model looked: attention weights over the image, one picture a word. By matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from hybridops.checks import check_positive_int, check_shape
from hybridops.evaluation.imports import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def resize_attention(weights: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Attention as large as the image, bilinear: (S, h·w) -> (S, Y, X). A pixel's value is that of its place.

    Args:
        weights: (S, h·w), of each of S words its weights over the places of the grid, row by row.
        grid: (h, w), places.
        size: (Y, X), pixels.
    """
    height, width = (check_positive_int("grid", side) for side in grid)
    check_shape("weights", weights, ("S", height * width))
    maps = weights.unflatten(1, (1, height, width)).float()
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False).squeeze(1)


def attention_figure(
    image: Tensor, words: Sequence[str], weights: Tensor, grid: tuple[int, int], *, columns: int = 6
) -> Figure:
    """The image, then for every word the image under its attention, each map from 0 to its highest.
    `.savefig(path)` writes it.

    Args:
        image: (3, Y, X) or (1, Y, X), in [0, 1].
        words: S of them.
        weights: (S, h·w) as for `resize_attention`, one row a word.
        grid: (h, w).
    """
    check_shape("image", image, ("C", "Y", "X"))
    if image.shape[0] not in (1, 3):
        raise ValueError(f"image must have 1 or 3 channels, got shape {tuple(image.shape)}")
    check_shape("weights", weights, (len(words), "places"))
    maps = resize_attention(weights.detach().cpu(), grid, (image.shape[1], image.shape[2]))
    pixels = image.detach().float().cpu().expand(3, -1, -1).permute(1, 2, 0).numpy()

    columns = min(check_positive_int("columns", columns), len(words) + 1)
    rows = -(-(len(words) + 1) // columns)
    figure: Figure = require("matplotlib.figure").Figure(figsize=(2 * columns, 2.2 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    figure.axes[0].imshow(pixels)
    for axes, word, heat in zip(figure.axes[1:], words, maps.numpy(), strict=False):
        axes.imshow(pixels)
        axes.imshow(heat, cmap="inferno", alpha=0.6, vmin=0)
        axes.set_title(word)
    return figure
