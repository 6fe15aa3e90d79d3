"""The one loop that the systems are trained with: shuffle, step, validate, keep the best epoch.

Under `torchrun` the same loop is data-parallel: each process takes its share of every epoch, gradients are averaged by
DistributedDataParallel, and the score of the first process counts.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler
from torch.utils.data.distributed import DistributedSampler


@dataclass
class History:
    losses: list[float] = field(default_factory=list)  # of every step
    scores: list[float] = field(default_factory=list)  # on validation data, of every epoch
    best_epoch: int = -1
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """How long and how.

    epochs: at most; patience: how many without a better score end it (None: never).
    learning_rate: the highest, of Adam under a one-cycle schedule; clip: the largest norm of a step's gradients.
    checkpoint: a file to which each epoch is written, and from which training goes on if it is there, as if it had not
        been cut short: PyTorch's random numbers (of dropout, of noise on examples) go on where they were.
    """

    epochs: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 1.0
    patience: int | None = None
    checkpoint: Path | None = None
    seed: int = 0


def fit(
    model: nn.Module,
    train: Dataset[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    score: Callable[[nn.Module], float],
    plan: Plan,
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    sampler: Sampler[int] | None = None,
    title: str = "training",
) -> History:
    """Train `model` in place; it ends with the weights of the epoch that scored best.

    Args:
        loss: (model, a batch) -> a scalar.
        score: of the model in evaluation mode, on validation data; higher is better.
        collate: makes a batch of examples, as in `DataLoader`.
        sampler: in place of a random order, told of each epoch if it has a `set_epoch`; not under torchrun. What it
            draws at random has to follow from the epoch, as in `CurriculumSampler`: no checkpoint has its state.
    """
    with _processes() as (rank, count):
        generator = torch.Generator().manual_seed(plan.seed)
        if count > 1:
            sampler = DistributedSampler(train, seed=plan.seed)
        elif sampler is None:
            sampler = RandomSampler(train, generator=generator)  # type: ignore[arg-type]
        loader = DataLoader(train, plan.batch_size, sampler=sampler, collate_fn=collate)
        trained = DistributedDataParallel(model) if count > 1 else model
        optimizer = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad], plan.learning_rate, weight_decay=plan.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, plan.learning_rate, total_steps=_steps(loader, plan.epochs), pct_start=0.1
        )
        history, best, first = _resume(plan.checkpoint, model, optimizer, schedule, generator)
        with _progress(title, plan.epochs, rank == 0) as show:
            for epoch in range(first, plan.epochs):
                _set_epoch(loader, epoch)
                start = time.perf_counter()
                model.train()
                for batch in loader:
                    optimizer.zero_grad()
                    value = loss(trained, batch)
                    value.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
                    optimizer.step()
                    schedule.step()
                    history.losses.append(value.item())
                history.seconds += time.perf_counter() - start
                model.eval()
                with torch.no_grad():
                    found = _of_the_first(score(model))
                if not history.scores or found > max(history.scores):
                    history.best_epoch, best = epoch, copy.deepcopy(model.state_dict())
                history.scores.append(found)
                show(epoch + 1, history)
                if plan.checkpoint is not None and rank == 0:
                    parts = model, optimizer, schedule
                    state = [part.state_dict() for part in parts]
                    random = generator.get_state(), torch.get_rng_state()
                    torch.save((history, best, state, random), plan.checkpoint)
                if plan.patience is not None and epoch - history.best_epoch >= plan.patience:
                    break
        model.load_state_dict(best)
        model.eval()
        return history


def _set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)


def _steps(loader: DataLoader[Any], epochs: int) -> int:
    """Of all epochs, which a sampler may make longer and longer."""
    total = 0
    for epoch in range(epochs):
        _set_epoch(loader, epoch)
        total += len(loader)
    return max(total, 1)


def _resume(
    path: Path | None, model: nn.Module, optimizer: Any, schedule: Any, generator: torch.Generator
) -> tuple[History, dict[str, Any], int]:
    """History, best weights, and the epoch to go on with."""
    if path is None or not path.exists():
        return History(), copy.deepcopy(model.state_dict()), 0
    history, best, state, (order, others) = torch.load(path, weights_only=False)  # a file this loop wrote
    for part, values in zip((model, optimizer, schedule), state, strict=True):
        part.load_state_dict(values)
    generator.set_state(order)
    torch.set_rng_state(others)
    return history, best, len(history.scores)


@contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """This process's number, and how many there are: more than one under torchrun."""
    if not dist.is_torchelastic_launched():
        yield 0, 1
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo" if not torch.cuda.is_available() else "nccl")
    yield dist.get_rank(), dist.get_world_size()
    if ours:
        dist.barrier()
        dist.destroy_process_group()


def _of_the_first(score: float) -> float:
    """The first process's score, so that all keep the same epoch."""
    if not dist.is_initialized():
        return score
    value = torch.tensor(score, dtype=torch.float64)
    dist.broadcast(value, 0)
    return value.item()


@contextmanager
def _progress(title: str, epochs: int, shown: bool) -> Iterator[Callable[[int, History], None]]:
    texts = TextColumn(
        "loss {task.fields[loss]:.3f}, validation {task.fields[score]:.4f}, best {task.fields[best]:.4f}"
    )
    columns = TextColumn("{task.description:24}"), BarColumn(20), MofNCompleteColumn(), texts, TimeRemainingColumn()
    with Progress(*columns, console=Console(highlight=False), disable=not shown) as progress:
        bar = progress.add_task(title, total=epochs, loss=math.nan, score=math.nan, best=math.nan)

        def show(epoch: int, history: History) -> None:
            recent = history.losses[-50:]
            loss = sum(recent) / max(len(recent), 1)
            progress.update(bar, completed=epoch, loss=loss, score=history.scores[-1], best=max(history.scores))

        yield show
