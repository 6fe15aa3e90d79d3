"""Train a task's model twice: as it is written, and a copy of it after `hybridops.fuse`.

Both start from the same weights and see the same batches. They take their steps in turn inside one loop, so that
whatever else the machine is doing slows down both alike.
"""

from __future__ import annotations

import signal
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

import hybridops

Batch = tuple[Tensor, ...]


class Task(Protocol):
    """A model, real data and a loss. Pickled to the processes that measure memory, so only data may be held."""

    name: str
    family: str  # the op family the model is fused by, as in hybridops.backends.choose
    spatial_dims: int  # of that family
    seed: int
    steps: int  # enough for the model to show that it learns
    learning_rate: float

    def make_model(self) -> nn.Module: ...

    def batch(self, step: int) -> Batch:
        """Training batch number `step`, always the same one; dimension 0 is the batch's, dimension 1 is time."""

    def held_out(self) -> Batch:
        """What training never sees."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...

    def report(self, model: nn.Module) -> list[str]:
        """Lines on what the trained model can do on held-out data."""

    def draw(self, model: nn.Module, path: Path, steps: int) -> None:
        """A picture of it, after so many steps."""


@dataclass(frozen=True)
class Run:
    model: nn.Module
    loss: float  # on held-out data, after training
    losses: list[float]  # of every training step
    seconds: list[float]  # that each of them took
    peak_bytes: int

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Comparison:
    plain: Run
    fused: Run

    @property
    def relative_difference(self) -> float:
        return abs(self.fused.loss - self.plain.loss) / abs(self.plain.loss)

    @property
    def speed_up(self) -> float:
        return self.plain.step_seconds / self.fused.step_seconds


class Trainer:
    """Adam under a one-cycle schedule. The clock covers forward, backward and update, not the making of the batch."""

    def __init__(self, task: Task, model: nn.Module, steps: int) -> None:
        self.task, self.model = task, model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, task.learning_rate, total_steps=steps, pct_start=0.1
        )
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def warm_up(self, batch: Batch) -> None:
        """A step that learns nothing: what is compiled or chosen at the first call is no step's time."""
        self.task.loss(self.model, batch).backward()

    def step(self, batch: Batch) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.task.loss(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if loss.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())
        self.schedule.step()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        return self.task.loss(self.model, move(self.task.held_out(), self.model)).item()

    def finish(self, peak_bytes: int) -> Run:
        return Run(self.model, self.held_out_loss(), self.losses, self.seconds, peak_bytes)


def compare(
    task: Task,
    steps: int,
    device: str = "cpu",
    *,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda doing: None,
    after_step: Callable[[float, float], None] = lambda plain_loss, fused_loss: None,
) -> Comparison:
    """Train both for `steps`, or until `stop` after one of them is true; `say` is told what else takes time."""
    peaks = []
    for fused in (False, True):
        say(f"measuring memory, {'fused' if fused else 'plain'}")
        peaks.append(peak_memory(task, fused, device))
    plain, fused = (Trainer(task, make_model(task, fused, device), steps) for fused in (False, True))
    say("compiling and warming up")
    for trainer in (plain, fused):
        trainer.warm_up(move(task.batch(0), trainer.model))
    for step in range(steps):
        batch = move(task.batch(step), plain.model)
        for trainer in (plain, fused) if step % 2 else (fused, plain):  # neither always finds the cache warm
            trainer.step(batch)
        after_step(plain.losses[-1], fused.losses[-1])
        if stop():
            break
    say("judging by held-out data")
    return Comparison(*(trainer.finish(peak) for trainer, peak in zip((plain, fused), peaks, strict=True)))


def make_model(task: Task, fused: bool, device: str) -> nn.Module:
    torch.manual_seed(task.seed)
    model = task.make_model().to(device)
    return hybridops.fuse(model) if fused else model


def move(batch: Batch, model: nn.Module) -> Batch:
    device = next(model.parameters()).device
    return tuple(part.to(device) for part in batch)


def peak_memory(task: Task, fused: bool, device: str = "cpu") -> int:
    """Bytes by which a step, forward and backward, raises the peak memory of a fresh process, which Ctrl-C spares."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by a process that starts
        future = pool.submit(_step_memory, task, fused, device)
        signal.signal(signal.SIGINT, ours)
        return future.result()


def _step_memory(task: Task, fused: bool, device: str) -> int:
    model = make_model(task, fused, device)
    batch = move(task.batch(0), model)
    # What the first call of anything costs for good (thread pools, compiled convolutions) is not the step's:
    task.loss(model, tuple(part[:1, :2] for part in batch)).backward()
    model.zero_grad()
    before = _high_water_mark(device)
    task.loss(model, batch).backward()
    return _high_water_mark(device) - before


def _high_water_mark(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss, which on Linux starts from the parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
