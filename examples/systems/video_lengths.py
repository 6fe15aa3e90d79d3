"""A 3D CNN against a CNN-RNN, as clips get longer (document 002): parameters, memory, time and accuracy.

How a sprite moves is to be said, and eight frames show it, anywhere in the clip.
"""

from __future__ import annotations

import time

from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.measure import peak_bytes, table
from examples.data import moving_sprites
from examples.data.moving_sprites import MOTIONS
from examples.systems.table import Options, Row
from examples.systems.video_training import (
    CHANNELS,
    PLAN,
    REGIONS,
    accuracy,
    half_size,
    image_encoder,
    loss,
    note,
    trained,
)
from hybridops.models import Conv3dClassifier, VideoClassifier

STRETCH = 8  # frames in which the sprite drifts, wherever in the clip; in all others it jumps about
LENGTHS = (8, 16, 32, 64)
SIZES = {"train": 600, "validation": 150, "test": 500}
MODELS = {
    "CNN-LSTM": lambda: frame_lstm("last"),
    "CNN-LSTM, attention": lambda: frame_lstm("attention"),
    "3D CNN": lambda: Conv3dClassifier(1, len(MOTIONS), channels=CHANNELS),
}


def frame_lstm(pooling: str) -> VideoClassifier:
    encoder = image_encoder(1)
    return VideoClassifier(1, len(MOTIONS), 96, pooling=pooling, encoder=encoder, regions=REGIONS, attn_dim=32)


def run(options: Options) -> list[Row]:
    """The table is written too, to video_lengths.md among the pictures."""
    rows, cells = [], []
    for steps in LENGTHS[:2] if options.smoke else LENGTHS:
        parts = {}
        for part, size in SIZES.items():
            count = 32 if options.smoke else size
            clips = moving_sprites.long_clips(part, count, STRETCH, options.seed, steps // STRETCH)
            parts[part] = TensorDataset(half_size(clips.frames), clips.motion)
        for name, make in MODELS.items():
            model, history = trained(make, parts["train"], parts["validation"], options, f"{name}, {steps} frames")
            score, measured = accuracy(model, parts["test"]), cost(model, parts["train"], options)
            cells.append({"frames": str(steps), "model": name, **measured, "accuracy": score})
            said = ", ".join(f"{value:,.0f} {unit}" for unit, value in measured.items())
            rows.append(
                Row(
                    "video", f"{steps} frames", f"motion, {name}", score, 1 / len(MOTIONS), "", True,
                    f"{said}; {note(history)}",
                )
            )  # fmt: skip
    (options.out / "video_lengths.md").write_text(f"{table(cells)}\n")
    return rows


def cost(model: nn.Module, clips: TensorDataset, options: Options) -> dict[str, float]:
    """Parameters, and of a training step of a whole batch the most that its tensors hold, and the shortest time."""
    batch = [part[: PLAN.batch_size] for part in clips.tensors]

    def step() -> None:
        model.zero_grad()
        loss(model, batch).backward()

    model.train()
    held = peak_bytes(step)  # type: ignore[arg-type]
    times = []
    for _ in range(3 if options.smoke else 10):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    model.eval()
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "MB a training step": 1e-6 * held,
        "ms a training step": 1e3 * min(times),
    }
