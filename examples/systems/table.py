"""What a system reports, how its steps are timed, and the table of all."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from benchmarks.measure import machine
from examples.systems import SYSTEMS
from hybridops.interop.fuse import FUSED

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "systems"
PLAIN = {fused: plain for plain, fused in FUSED.items()}


@dataclass(frozen=True)
class Options:
    smoke: bool  # seconds on a little of the data: shows that all runs, not that it learns
    out: Path  # a folder for pictures
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """A score on data that training never saw."""

    system: str
    data: str
    metric: str
    score: float
    baseline: float | None  # what it is held against, in the same metric
    must: str  # what it must reach, in words or as a number
    reached: bool
    note: str = ""


@dataclass(frozen=True)
class Speed:
    system: str
    what: str  # "training step", "decoding step", "inference"
    plain_ms: float
    fused_ms: float


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy with this library's plain modules in place of fused ones, the reverse of `hybridops.fuse`."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


def time_in_turn(
    system: str, what: str, plain: Callable[[], object], fused: Callable[[], object], seconds: float = 4.0
) -> Speed:
    """Median milliseconds of both, called in turn for so long, at least three times each after a warm-up."""
    plain(), fused()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < end:
        for call, found in zip((plain, fused), times, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return Speed(system, what, *(1e3 * statistics.median(found) for found in times))


def save(name: str, rows: Sequence[Row] | None, speeds: Sequence[Speed] | None) -> None:
    """Into RESULTS, and the tables of all in its README.md; what is None stays as it was."""
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for key, found in ("rows", rows), ("speeds", speeds):
        if found is not None:
            known[key] = {"machine": machine(), "results": [asdict(part) for part in found]}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")
    saved = [load(name) for name in SYSTEMS if (RESULTS / f"{name}.json").exists()]
    rows_of_all, speeds_of_all = (
        [part for parts in all_parts for part in parts] for all_parts in zip(*saved, strict=True)
    )
    (RESULTS / "README.md").write_text(f"# What the systems reached\n\n{markdown(rows_of_all, speeds_of_all)}")


def load(name: str) -> tuple[list[Row], list[Speed]]:
    """What `save` kept."""
    known = json.loads((RESULTS / f"{name}.json").read_text())
    rows, speeds = (known.get(key, {}).get("results", []) for key in ("rows", "speeds"))
    return [Row(**row) for row in rows], [Speed(**speed) for speed in speeds]


def scores_table(rows: Sequence[Row]) -> Table:
    table = Table(title="Scores on test data", box=SIMPLE_HEAD)
    for heading in ("system", "data", "metric"):
        table.add_column(heading)
    for heading in ("score", "baseline"):
        table.add_column(heading, justify="right")
    for heading in ("must", "reached", "note"):
        table.add_column(heading)
    for row in rows:
        baseline = "" if row.baseline is None else f"{row.baseline:.3f}"
        reached = "yes" if row.reached else "[bold red]no[/]"
        table.add_row(row.system, row.data, row.metric, f"{row.score:.3f}", baseline, row.must, reached, row.note)
    return table


def speeds_table(speeds: Sequence[Speed]) -> Table:
    table = Table(title="Milliseconds, plain PyTorch and fused, in turn", box=SIMPLE_HEAD)
    for heading in ("system", "what"):
        table.add_column(heading)
    for heading in ("plain", "fused", "faster"):
        table.add_column(heading, justify="right")
    for speed in speeds:
        ratio = f"{speed.plain_ms / speed.fused_ms:.2f}×"
        table.add_row(speed.system, speed.what, f"{speed.plain_ms:.2f}", f"{speed.fused_ms:.2f}", ratio)
    return table


def markdown(rows: Sequence[Row], speeds: Sequence[Speed]) -> str:
    lines = ["| system | data | metric | score | baseline | must | reached |", "|---|---|---|--:|--:|---|---|"]
    for row in rows:
        baseline, reached = "" if row.baseline is None else f"{row.baseline:.3f}", "yes" if row.reached else "**no**"
        lines.append(_line(row.system, row.data, row.metric, f"{row.score:.3f}", baseline, row.must, reached))
    lines += ["", "| system | what | plain, ms | fused, ms | faster |", "|---|---|--:|--:|--:|"]
    for speed in speeds:
        plain, fused = speed.plain_ms, speed.fused_ms
        lines.append(_line(speed.system, speed.what, f"{plain:.2f}", f"{fused:.2f}", f"{plain / fused:.2f}×"))
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
