"""Features of boxes against the definition, point by point."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridops.layers.objects import ObjectEncoder, roi_align
from tests import tolerances

IMAGE = (24, 36)  # pixels, high and wide
BOXES = torch.tensor(
    [[[0.0, 0.0, 36.0, 24.0], [3.5, 2.0, 9.0, 20.5]], [[30.0, 20.0, 36.0, 24.0], [5.0, 5.0, 5.0, 5.0]]]
).double()


def interpolate(feature: Tensor, y: float, x: float) -> Tensor:
    """Of a map (C, Y, X), between its pixels: pixel (i, j) stands at (i, j); at the edge it goes on."""
    height, width = feature.shape[1:]
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
    value = torch.zeros(len(feature)).double()
    for i in {top, min(top + 1, height - 1)}:
        for j in {left, min(left + 1, width - 1)}:
            value += (1 - abs(y - i)) * (1 - abs(x - j)) * feature[:, i, j]
    return value


def by_definition(features: Tensor, boxes: Tensor, image: tuple[int, int], size: int, samples: int) -> Tensor:
    """As `torchvision.ops.roi_align` says it, aligned=True."""
    out = torch.zeros(*boxes.shape[:2], features.shape[1], size, size).double()
    scale_y, scale_x = features.shape[2] / image[0], features.shape[3] / image[1]
    for b, o in torch.cartesian_prod(torch.arange(boxes.shape[0]), torch.arange(boxes.shape[1])).tolist():
        x1, y1, x2, y2 = boxes[b, o].tolist()
        x1, x2, y1, y2 = x1 * scale_x - 0.5, x2 * scale_x - 0.5, y1 * scale_y - 0.5, y2 * scale_y - 0.5
        bin_y, bin_x = (y2 - y1) / size, (x2 - x1) / size
        for i in range(size * samples):
            for j in range(size * samples):
                y = y1 + (i // samples) * bin_y + (i % samples + 0.5) * bin_y / samples
                x = x1 + (j // samples) * bin_x + (j % samples + 0.5) * bin_x / samples
                out[b, o, :, i // samples, j // samples] += interpolate(features[b], y, x) / samples**2
    return out


@given(
    size=st.integers(1, 3), samples=st.integers(1, 3), height=st.integers(1, 6), width=st.integers(1, 6),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)  # fmt: skip
def test_it_is_as_defined(size, samples, height, width, corners):
    features = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(0)).double()
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    boxes = torch.tensor([[[x1 * IMAGE[1], y1 * IMAGE[0], x2 * IMAGE[1], y2 * IMAGE[0]]]]).double()
    expected = by_definition(features, boxes, IMAGE, size, samples)
    torch.testing.assert_close(roi_align(features, boxes, IMAGE, size, samples), expected, **tolerances.FLOAT64)


def test_each_box_is_read_in_its_own_image():
    features = torch.randn(2, 3, 6, 9, generator=torch.Generator().manual_seed(0)).double()
    expected = by_definition(features, BOXES, IMAGE, 2, 2)
    torch.testing.assert_close(roi_align(features, BOXES, IMAGE, 2, 2), expected, **tolerances.FLOAT64)


def test_gradients():
    features = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: roi_align(f, BOXES, IMAGE, 2, 2), features)


def encoder() -> ObjectEncoder:
    torch.manual_seed(0)
    return ObjectEncoder(nn.Conv2d(3, 4, 3, stride=2, padding=1), 4, 7, size=2).double()


def test_what_is_masked_does_not_count():
    model, images = encoder(), torch.randn(2, 3, *IMAGE).double()
    mask = torch.tensor([[True, True], [True, False]])
    expected = model(images, BOXES, mask)
    assert expected.values.shape == (2, 2, 7)
    assert expected.pooled.shape == (2, 7)
    torch.testing.assert_close(expected.pooled[1], expected.values[1, 0], **tolerances.FLOAT64)
    torch.testing.assert_close(expected.values[1, 1], torch.zeros(7).double(), **tolerances.EXACT)
    nowhere = model(images, BOXES.masked_fill(~mask[..., None], math.nan), mask)
    torch.testing.assert_close(nowhere.values, expected.values, **tolerances.EXACT)
    torch.testing.assert_close(nowhere.pooled, expected.pooled, **tolerances.EXACT)


def test_a_vector_says_where_its_box_is():
    model, images = encoder(), torch.ones(1, 3, *IMAGE).double()
    nn.init.zeros_(model.backbone.weight)  # a map that is the same everywhere
    values = model(images, torch.tensor([[[0, 0, 6, 6], [12, 9, 18, 15]]]).double()).values[0]
    assert not torch.equal(values[0], values[1])


def test_errors_name_the_argument():
    model, images = encoder(), torch.randn(2, 3, *IMAGE).double()
    with pytest.raises(ValueError, match=r"boxes must have shape \(2, O, 4\), got \(1, 2, 4\)"):
        model(images, BOXES[:1])
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 2\), got \(2, 3\)"):
        model(images, BOXES, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"features must have shape \(B, C, Y, X\), got \(2, 3, 24\)"):
        roi_align(images[..., 0], BOXES, IMAGE)
    with pytest.raises(ValueError, match="size must be a positive int, got 0"):
        roi_align(images, BOXES, IMAGE, 0)
