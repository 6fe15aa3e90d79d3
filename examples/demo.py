"""The tasks one after the other, and what came out, in a table and in pictures: `python -m hybridops demo`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as Bar
from rich.text import Text

from examples import report
from examples.compare import Task, compare
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


def load_tasks(names: Sequence[str], seed: int) -> list[Task]:
    """All of them, before any trains: what is not installed is found out at once."""
    with Console().status(f"loading data: {', '.join(names)}"):
        return [load_task(name, seed) for name in names]


def run(tasks: Sequence[Task], steps: int | None, time_limit: float, out: Path, device: str) -> int:
    """Train every task for `steps` (None: its own number), stopping early where all together would take longer than
    `time_limit` seconds, or at Ctrl-C; draw its picture into `out`. Gives the exit status: 1 if a plain and a fused
    loss differ.
    """
    start = time.monotonic()
    console = Console(highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[report.Outcome] = []
    notes: list[str] = []
    with _ctrl_c_noted() as pressed:
        for number, task in enumerate(tasks):
            if pressed():
                notes += ["", f"[yellow]{task.name}: not begun.[/]"]
                continue
            now = time.monotonic()
            deadline = now + (start + time_limit - now) / (len(tasks) - number)
            picture = out / f"{task.name.replace(' ', '_')}.png"
            outcome, learnt = _train(console, task, steps or task.steps, deadline, pressed, picture, device)
            outcomes.append(outcome)
            notes += ["", f"[bold]{task.name}[/], {picture}", *learnt]
            if len(outcome.result.fused.losses) < outcome.planned:
                why = "until Ctrl-C" if pressed() else "in the time limit"
                notes.append(f"[yellow]Not all it can learn: {outcome.steps} steps {why}.[/]")

    comparison = out / "plain_and_fused.png"
    report.draw(outcomes, comparison)
    console.print(report.table(outcomes))
    console.print(f"[bold]plain and fused[/], {comparison}", *notes, sep="\n", soft_wrap=True)
    if any(outcome.back_end == "reference" for outcome in outcomes):
        console.print("\n[bold yellow]The reference back end ran, which fuses nothing:[/]", *_why_reference(), sep="\n")
    same = all(outcome.result.relative_difference < SAME_LOSS for outcome in outcomes)  # false for NaN too
    if not same:
        console.print(f"\n[bold red]The losses of plain and fused differ by {SAME_LOSS:g} or more.[/]")
    console.print(f"\n{time.monotonic() - start:.0f} s, {device}, {torch.get_num_threads()} threads")
    return 0 if same else 1


@contextmanager
def _ctrl_c_noted() -> Iterator[Callable[[], bool]]:
    """Gives what says whether Ctrl-C was pressed: once, it is only noted; a second time it interrupts as ever."""
    noted = threading.Event()

    def note(number: int, frame: object) -> None:
        noted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class _TimeLeft(ProgressColumn):
    """Until the last step, or until the time limit if that is sooner; after Ctrl-C it says so."""

    max_refresh = 0.5

    def __init__(self, pressed: Callable[[], bool]) -> None:
        super().__init__()
        self.pressed = pressed

    def render(self, task: Bar) -> Text:
        if self.pressed():
            return Text("stopping", style="yellow")
        left = task.fields["deadline"] - task.get_time()
        if task.time_remaining is not None:
            left = min(left, task.time_remaining)
        minutes, seconds = divmod(max(round(left), 0), 60)
        return Text(f"{minutes}:{seconds:02d}", style="progress.remaining")


def _train(
    console: Console,
    task: Task,
    steps: int,
    deadline: float,
    pressed: Callable[[], bool],
    picture: Path,
    device: str,
) -> tuple[report.Outcome, list[str]]:
    """What came of it, and lines on what was learnt; the picture is drawn."""
    columns = (
        TextColumn("{task.description:19}"),
        BarColumn(10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    with Progress(*columns, _TimeLeft(pressed), console=console) as progress:
        bar = progress.add_task(task.name, start=False, total=steps, deadline=deadline, doing="")

        def say(doing: str) -> None:
            progress.update(bar, doing=doing)
            if not console.is_terminal:  # where nothing moves, a line each
                console.print(f"{task.name}: {doing}")

        def after_step(plain: float, fused: float) -> None:
            progress.start_task(bar)
            progress.update(bar, advance=1, doing=f"loss {plain:.4f} plain, {fused:.4f} fused")

        def stop() -> bool:
            return pressed() or time.monotonic() > deadline

        result = compare(task, steps, device, stop=stop, say=say, after_step=after_step)
        say("asking what it learnt")
        learnt = task.report(result.fused.model)
        say("drawing")
        task.draw(result.fused.model, picture, len(result.fused.losses))
        progress.update(bar, doing=f"loss {result.plain.loss:.4f} plain, {result.fused.loss:.4f} fused")
    return report.Outcome(task.name, steps, _backend(task, device), result), learnt


def _backend(task: Task, device: str) -> str:
    """The one that ran this task's fused model."""
    module = backends.choose(task.family, None, torch.empty(0, device=device), task.spatial_dims)
    return module.__name__.split(".")[-2]


def _why_reference() -> list[str]:
    named = os.environ.get("HYBRIDOPS_BACKEND")
    if named:
        return [f"HYBRIDOPS_BACKEND={named}"]
    return [f"{name}: {text}" for name, text in backends.available().items() if not backends.is_available(name)]
