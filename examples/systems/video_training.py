"""Clips, training and judging, which the video systems share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.systems.table import Options
from examples.training import History, Plan, fit
from hybridops.layers import ConvEncoder

CHANNELS = (8, 16, 32)  # of the convolutions
REGIONS = 16  # 16 pixels, halved twice
PLAN = Plan(epochs=8, batch_size=32, learning_rate=3e-3)


def half_size(x: Tensor) -> Tensor:
    """Clips (N, T, C, Y, X) of frames half as wide and high: a quarter of the work, and the digits are scans of 8×8."""
    halved = F.avg_pool2d(x.flatten(0, 1).float(), 2).unflatten(0, x.shape[:2])
    return (halved if x.is_floating_point() else halved.round()).to(x.dtype)


def image_encoder(in_channels: int) -> ConvEncoder:
    return ConvEncoder(in_channels, CHANNELS, pool_last=False)


def answer(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """Logits of clips as they are kept: frames in uint8, flow in half precision."""
    logits: Tensor = model(*(x / 255.0 if x.dtype == torch.uint8 else x.float() for x in inputs))
    return logits


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(answer(model, batch[:-1]), batch[-1])


@torch.no_grad()
def predict(model: nn.Module, clips: TensorDataset) -> Tensor:
    """The likeliest label of each."""
    batches = zip(*(part.split(100) for part in clips.tensors[:-1]), strict=True)
    return torch.cat([answer(model, inputs).argmax(1) for inputs in batches])


def accuracy(model: nn.Module, clips: TensorDataset) -> float:
    return float((predict(model, clips) == clips.tensors[-1]).double().mean())


def trained(
    make: Callable[[], nn.Module],
    train: TensorDataset,
    validation: TensorDataset,
    options: Options,
    title: str,
    plan: Plan = PLAN,
) -> tuple[nn.Module, History]:
    torch.manual_seed(options.seed)
    model = channels_last(make())
    plan = replace(plan, seed=options.seed, epochs=1 if options.smoke else plan.epochs)
    return model, fit(model, train, loss, partial(accuracy, clips=validation), plan, title=title)


def channels_last(model: nn.Module) -> nn.Module:
    """With its convolutions' weights in the order in which a CPU takes about half the time."""
    for weight in model.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        elif weight.dim() == 5:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
    return model


def note(history: History) -> str:
    return f"best of {len(history.scores)} epochs: {history.best_epoch + 1}, {history.seconds:.0f} s"
