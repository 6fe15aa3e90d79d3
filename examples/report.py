"""What came out of the demo's comparisons: a table, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from rich.box import SIMPLE_HEAD
from rich.table import Table

from examples.compare import Comparison, Run
from examples.figures import save_figure

COLOURS = {"PyTorch": "#c8643c", "hybridops": "#3b6ea5"}


@dataclass(frozen=True)
class Outcome:
    name: str  # of the task
    planned: int  # steps
    back_end: str  # that ran the fused model
    result: Comparison

    @property
    def steps(self) -> str:
        done = len(self.result.fused.losses)
        return f"{done}" if done == self.planned else f"{done} of {self.planned}"


def table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(
        title="The same weights and batches, plain PyTorch and hybridops",
        caption="loss: on held-out data, after training. time: of a training step, median. memory: by which one step, "
        "forward and backward, raises the peak of a fresh process (on a GPU: of torch's allocations).",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("task, and what ran it")
    for heading in ("steps", "loss", "differ by", "time", "memory"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        plain, fused = outcome.result.plain, outcome.result.fused
        table.add_row(f"[bold]{outcome.name}[/]", outcome.steps)
        table.add_row("PyTorch", "", *_figures(plain, "", "", ""))
        difference, faster = f"{outcome.result.relative_difference:.1e}", f"{outcome.result.speed_up:.1f}× "
        smaller = f"{plain.peak_bytes / fused.peak_bytes:.1f}× "
        table.add_row(f"hybridops ({outcome.back_end})", "", *_figures(fused, difference, faster, smaller))
    return table


def _figures(run: Run, difference: str, faster: str, smaller: str) -> tuple[str, ...]:
    return (
        f"{run.loss:.6f}",
        difference,
        f"{faster}{1e3 * run.step_seconds:.1f} ms",
        f"{smaller}{run.peak_bytes / 1e6:.0f} MB",
    )


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """A row for each task: the losses over the time that the steps took, and bars of a step's time and memory."""
    with save_figure(path, rows=len(outcomes), columns=3, size=4) as axes:
        for (losses, times, memory), outcome in zip(axes, outcomes, strict=True):
            runs = dict(zip(COLOURS, (outcome.result.plain, outcome.result.fused), strict=True))
            for name, run in runs.items():
                losses.plot(list(accumulate(run.seconds)), run.losses, ".-", label=name, color=COLOURS[name], alpha=0.8)
            losses.set(
                title=f"{outcome.name}, {outcome.steps} steps",
                xlabel="seconds in training steps",
                ylabel="training loss",
            )
            losses.set_xlim(left=0)
            losses.legend()
            _bars(times, "time of a training step, median", "ms", [1e3 * run.step_seconds for run in runs.values()])
            _bars(memory, "memory of a training step, peak", "MB", [run.peak_bytes / 1e6 for run in runs.values()])


def _bars(ax: Axes, title: str, unit: str, heights: list[float]) -> None:
    bars = ax.bar(list(COLOURS), heights, color=list(COLOURS.values()), width=0.6)
    ax.bar_label(bars, [f"{height:.0f} {unit}" for height in heights], padding=2)
    ax.set(title=title, ylabel=unit)
    ax.margins(y=0.1)
