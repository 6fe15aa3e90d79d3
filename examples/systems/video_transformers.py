"""Attention and graphs over video (document 002): which way, and how fast, a digit drifts.

Every frame of a clip shows the digit at another of the same sixteen places, so that the mean over frames is at chance,
.25, whatever made it: only the order of the frames tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.data import moving_sprites
from examples.data.moving_sprites import FRAME, LOOP, MOTIONS
from examples.systems.table import Options, Row, Speed
from examples.systems.video_training import half_size
from examples.training import Plan, fit
from hybridops.models import GraphRecurrentClassifier, SpaceTimeClassifier, ViTRecurrentClassifier

SYSTEM = "video transformers"
PLAN = Plan(epochs=12, batch_size=32, learning_rate=2e-3)
CLIPS = {"train": 2000, "validation": 500, "test": 1000}
SIDE = FRAME // 2  # pixels of a frame of half the size
MOTION = len(MOTIONS)
MAKE: dict[str, Callable[[], nn.Module]] = {  # the first is what the others are held against
    "mean over frames": lambda: ViTRecurrentClassifier(
        1, SIDE, 4, MOTION, 48, 1, 4, side_by_side=True, pooling="mean", cell=None
    ),
    "ViT + LSTM": lambda: ViTRecurrentClassifier(1, SIDE, 4, MOTION, 48, 1, 4, 64, side_by_side=True),
    "space-time attention": lambda: SpaceTimeClassifier(1, SIDE, 8, LOOP, MOTION, 48, 2, 4),
    "graph + LSTM": lambda: GraphRecurrentClassifier(1, 16, MOTION, 48, 1, 64, channels=(16, 32), side_by_side=True),
}
MUST = 0.9


def load(options: Options) -> dict[str, TensorDataset]:
    parts = {}
    for name, count in CLIPS.items():
        clips = moving_sprites.clips(name, 64 if options.smoke else count, seed=options.seed)
        frames = half_size(clips.frames) / 255.0
        parts[name] = TensorDataset((frames - 0.1) / 0.2, clips.motion)  # of mean 0, variance 1
    return parts


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    frames, motion = batch
    return F.cross_entropy(model(frames), motion)


@torch.no_grad()
def predict(model: nn.Module, clips: TensorDataset) -> Tensor:
    return torch.cat([model(frames).argmax(1) for frames in clips.tensors[0].split(100)])


def accuracy(model: nn.Module, clips: TensorDataset) -> float:
    return float((predict(model, clips) == clips.tensors[1]).double().mean())


def run(options: Options) -> list[Row]:
    parts = load(options)
    plan = replace(PLAN, seed=options.seed, epochs=1 if options.smoke else PLAN.epochs)
    validate = partial(accuracy, clips=parts["validation"])
    rows: list[Row] = []
    curves: dict[str, list[float]] = {}
    for name, make in MAKE.items():
        torch.manual_seed(options.seed)
        model = make()
        history = fit(model, parts["train"], loss, validate, plan, title=name)
        curves[name] = history.scores
        score = accuracy(model, parts["test"])
        must, reached = (f">= {MUST}", score >= MUST) if rows else ("near chance, .25", score < 0.35)
        weights = sum(p.numel() for p in model.parameters())
        epochs = f"best of {len(history.scores)} epochs: {history.best_epoch + 1}"
        note = f"{weights} weights, {epochs}, {history.seconds:.0f} s"
        baseline = rows[0].score if rows else 1 / MOTION
        rows.append(Row(SYSTEM, "clips", f"accuracy of the motion, {name}", score, baseline, must, reached, note))
    draw_curves(curves, options)
    return rows


def speed(options: Options) -> list[Speed]:
    """None: no part of these has a fused op."""
    return []


def draw_curves(curves: dict[str, list[float]], options: Options) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.5))
    for name, scores in curves.items():
        axes.plot(range(1, len(scores) + 1), scores, label=name)
    axes.set(xlabel="epoch", ylabel="accuracy on validation clips", ylim=(0, 1.02))
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(options.out / "video_transformers.png", dpi=110)
    plt.close(figure)
