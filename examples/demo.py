"""The tasks one after the other, and what came out, in a table: `python -m hybridops demo`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples.compare import Comparison, Run, Task, compare
from hybridops import backends

# Both models round differently at every step, and training amplifies it: 300 steps end within about 1e-6.
SAME_LOSS = 1e-3


def load_task(name: str, seed: int) -> Task:
    """Imports only what this task needs."""
    if name == "digits":
        from examples.moving_digits import MovingDigits

        return MovingDigits(seed=seed)
    from examples.grapheme_to_phoneme import GraphemeToPhoneme

    return GraphemeToPhoneme(seed=seed)


def run(tasks: Sequence[Task], steps: int | None, time_limit: float, out: Path, device: str) -> int:
    """Train every task for `steps` (None: its own number), stopping early where all together would take longer than
    `time_limit` seconds; draw its picture into `out`. Gives the exit status: 1 if a plain and a fused loss differ.
    """
    start = time.monotonic()
    console = Console(highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    results, notes = [], []
    for number, task in enumerate(tasks):
        now = time.monotonic()
        deadline = now + (start + time_limit - now) / (len(tasks) - number)
        planned = steps or task.steps
        result = _train(console, task, planned, deadline, device)
        picture = out / f"{task.name.replace(' ', '_')}.png"
        task.draw(result.fused.model, picture)
        results.append(result)
        done = len(result.fused.losses)
        notes += ["", f"[bold]{task.name}[/], {picture}", *task.report(result.fused.model)]
        if done < planned:
            notes.append(f"[yellow]Not all it can learn: {done} of {planned} steps in the time limit.[/]")

    ran_on = [_backend(task, device) for task in tasks]
    console.print(_table(tasks, results, ran_on))
    console.print(*notes, sep="\n", soft_wrap=True)
    if "reference" in ran_on:
        console.print("\n[bold yellow]The reference back end ran, which fuses nothing:[/]", *_why_reference(), sep="\n")
    same = all(result.relative_difference < SAME_LOSS for result in results)  # false for NaN too
    if not same:
        console.print(f"\n[bold red]The losses of plain and fused differ by {SAME_LOSS:g} or more.[/]")
    console.print(f"\n{time.monotonic() - start:.0f} s, {device}, {torch.get_num_threads()} threads")
    return 0 if same else 1


def _train(console: Console, task: Task, steps: int, deadline: float, device: str) -> Comparison:
    losses = TextColumn("loss {task.fields[plain]:.4f} plain, {task.fields[fused]:.4f} fused")
    columns = TextColumn("{task.description:19}"), BarColumn(20), MofNCompleteColumn(), losses, TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(task.name, total=steps, plain=float("nan"), fused=float("nan"))

        def after_step(plain: float, fused: float) -> None:
            progress.update(bar, advance=1, plain=plain, fused=fused)

        return compare(task, steps, device, deadline, after_step)


def _backend(task: Task, device: str) -> str:
    """The one that ran this task's fused model."""
    module = backends.choose(task.family, None, torch.empty(0, device=device), task.spatial_dims)
    return module.__name__.split(".")[-2]


def _why_reference() -> list[str]:
    named = os.environ.get("HYBRIDOPS_BACKEND")
    if named:
        return [f"HYBRIDOPS_BACKEND={named}"]
    return [f"{name}: {text}" for name, text in backends.available().items() if not backends.is_available(name)]


def _table(tasks: Sequence[Task], results: Sequence[Comparison], ran_on: Sequence[str]) -> Table:
    table = Table(
        title="The same weights and batches, plain PyTorch and hybridops",
        caption="loss: on held-out data, after training. time: of a training step, median. memory: by which one step, "
        "forward and backward, raises the peak of a fresh process (on a GPU: of torch's allocations).",
        box=SIMPLE_HEAD,
    )
    for heading in ("task", "run by"):
        table.add_column(heading)
    for heading in ("loss", "difference", "time", "memory"):
        table.add_column(heading, justify="right")
    for task, result, name in zip(tasks, results, ran_on, strict=True):
        fused, plain = result.fused, result.plain
        table.add_row(task.name, "PyTorch", *_figures(plain, "", "", ""))
        difference, memory = f"{result.relative_difference:.1e}", plain.peak_bytes / fused.peak_bytes
        table.add_row("", name, *_figures(fused, difference, f"{result.speed_up:.1f}× ", f"{memory:.1f}× "))
    return table


def _figures(run: Run, difference: str, faster: str, smaller: str) -> tuple[str, ...]:
    return (
        f"{run.loss:.6f}",
        difference,
        f"{faster}{1e3 * run.seconds:.1f} ms",
        f"{smaller}{run.peak_bytes / 1e6:.0f} MB",
    )
