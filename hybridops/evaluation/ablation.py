"""Ablation studies: variants of a system, each trained and judged alike, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from hybridops.evaluation.imports import require

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Ablation:
    """Scores by variant, then metric: one for each seed."""

    scores: Mapping[str, Mapping[str, Sequence[float]]]

    def markdown(self) -> str:
        header, *rows = self._cells()
        lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def rich(self) -> Table:
        """For the terminal: `rich.print(ablation.rich())`."""
        header, *rows = self._cells()
        table: Table = require("rich.table").Table()
        for number, name in enumerate(header):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        return table

    def _cells(self) -> list[list[str]]:
        metrics = list(next(iter(self.scores.values())))
        rows = [[variant, *(_cell(scores[metric]) for metric in metrics)] for variant, scores in self.scores.items()]
        return [["variant", *metrics], *rows]


def ablate(variants: Mapping[str, Callable[[int], Mapping[str, float]]], seeds: Sequence[int] = (0,)) -> Ablation:
    """Runs every variant with every seed. With several seeds a cell is mean ± standard deviation over them.

    Args:
        variants: by name, in the order of the table, what takes a seed, trains and gives scores by metric. All give the
            same metrics.
        seeds: a difference smaller than that between seeds is none, so take three or more.
    """
    if not variants or not seeds:
        raise ValueError(f"variants and seeds must be one or more, got {len(variants)} and {len(seeds)}")
    scores: dict[str, dict[str, list[float]]] = {}
    metrics: list[str] | None = None
    for name, run in variants.items():
        results = [run(seed) for seed in seeds]
        metrics = metrics or list(results[0])
        for result in results:
            if set(result) != set(metrics):
                raise ValueError(f"variants must all give the metrics {metrics}, got {list(result)} of {name!r}")
        scores[name] = {metric: [float(result[metric]) for result in results] for metric in metrics}
    return Ablation(scores)


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"
