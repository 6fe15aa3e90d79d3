"""Classifiers of video that attend: their parts, and that they tell the order of frames, which a mean does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridops.models import GraphRecurrentClassifier, SpaceTimeClassifier, VideoClassifier, ViTRecurrentClassifier
from tests.tolerances import FLOAT64

MAKE = {
    "graph, side by side": lambda: GraphRecurrentClassifier(1, 16, 2, 6, 1, 16, channels=(8,), side_by_side=True),
    "vit, side by side": lambda: ViTRecurrentClassifier(1, 8, 4, 2, 12, 1, 2, 16, side_by_side=True),
    "vit": lambda: ViTRecurrentClassifier(1, 8, 4, 2, 12, 1, 2, 16),
    "space and time": lambda: SpaceTimeClassifier(1, 8, 4, 4, 2, 16, 1, 2),
    "graph": lambda: GraphRecurrentClassifier(1, 16, 2, 16, 1, 16, channels=(8,)),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw(batch: int = 3, steps: int = 4) -> torch.Tensor:
    return torch.rand(batch, steps, 1, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("name", ["vit", "graph"])
def test_frames_then_a_recurrent_network(name):
    model, clips = MAKE[name]().double().eval(), draw()
    assert isinstance(model, VideoClassifier)
    encoded = torch.stack([model.frames.encoder(clips[:, t]).pooled for t in range(4)], 1)
    expected = model.classifier(model.recurrent(encoded).pooled)
    torch.testing.assert_close(model(clips), expected, **FLOAT64)


@pytest.mark.parametrize("name", ["vit, side by side", "graph, side by side"])
def test_regions_side_by_side(name):
    model, clips = MAKE[name]().double().eval(), draw()
    encoded = torch.stack([model.frames.encoder(clips[:, t]).values.flatten(1) for t in range(4)], 1)
    torch.testing.assert_close(model(clips), model.classifier(model.recurrent(encoded).pooled), **FLOAT64)
    assert not any("class_token" in name for name, _ in model.named_parameters())


def test_space_and_time_then_the_mean():
    model, clips = MAKE["space and time"]().double(), draw()
    expected = model.classifier(model.encoder(clips).values.mean(1))
    torch.testing.assert_close(model(clips), expected, **FLOAT64)


@pytest.mark.parametrize("options", [{"pooling": "mean", "cell": None}, {"pooling": "attention", "cell": None}])
def test_without_a_recurrent_network_order_does_not_count(options):
    clips = draw()
    for model in (
        ViTRecurrentClassifier(1, 8, 4, 2, 12, 1, 2, **options),
        GraphRecurrentClassifier(1, 4, 2, channels=(4, 8), **options),
    ):
        model = model.double().eval()
        torch.testing.assert_close(model(clips.flip(1)), model(clips), **FLOAT64)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_learns_which_way_a_light_moves(name):
    """The same four frames, from left to right or back."""
    model: nn.Module = MAKE[name]()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    light = torch.zeros(4, 1, 8, 8)
    for t in range(4):
        light[t, :, :, 2 * t : 2 * t + 2] = 1.0
    for _ in range(60):
        label = torch.randint(2, (16,))
        clips = torch.where(label.view(-1, 1, 1, 1, 1) == 1, light.flip(0), light)
        optimizer.zero_grad()
        logits = model(clips + 0.1 * torch.randn_like(clips))
        F.cross_entropy(logits, label).backward()
        optimizer.step()
    assert (logits.argmax(1) == label).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ViTRecurrentClassifier(1, 8, 3, 2), "image_size must be a multiple of patch_size, got 8 and 3"),
        (lambda: ViTRecurrentClassifier(1, 8, 4, 2, side_by_side=1), "side_by_side must be a bool, got 1"),
        (lambda: ViTRecurrentClassifier(1, 8, 4, 2, pooling="max"), "pooling must be one of 'last', .* got 'max'"),
        (lambda: MAKE["space and time"]()(torch.ones(1, 5, 1, 8, 8)), "at most max_frames, 4, got 5"),
        (lambda: SpaceTimeClassifier(1, 8, 4, 4, 0), "num_classes must be a positive int, got 0"),
        (lambda: MAKE["graph"]()(torch.ones(1, 2, 1, 4, 4)), r"values of encoder must have shape \(B, 16, 8\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
