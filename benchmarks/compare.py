"""Times eager, compiled and fused in turn, in one process, so that whatever else the machine does slows down all alike.

    python benchmarks/compare.py [conv_lstm] [additive_attention] [attention_decoder]
                                 [--workloads kth long] [--tasks training] [--rounds 7] [--no-compile]

A speed-up is the median over rounds of eager's time in a round by the variant's in the same one; a share of the peak is
the median of shares of what a loop of multiply-adds reached just before and after. --save writes the
tables to benchmarks/results/<machine>/<family>.md and .json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # this file is run by its path, and nothing need be installed

from benchmarks.measure import (
    ROOT,
    machine,
    machine_name,
    row,
    runs_in_a_row,
    sample_peak,
    seconds,
    share_of_peak,
    table,
    warm_up,
)
from benchmarks.workloads import SCALES, WORKLOADS, Workload, checked_job, fused_backends, score_error, variants

Table = list[dict[str, Any]]


def main() -> None:
    arguments = parse()
    for family in arguments.families or WORKLOADS:
        tables = {"": compare_family(family, arguments)}
        if not tables[""]:
            continue
        if family == "additive_attention":
            tables["Largest error of a score in float32, relative to Σ|v|"] = accuracy()
        text = "\n\n".join(f"{title}\n\n{table(rows)}".strip() for title, rows in tables.items())
        print(f"\n{family}\n\n{text}\n")
        if arguments.save:
            save(family, arguments.rounds, tables, text)
    print(*facts(machine()), sep="\n")


def compare_family(family: str, arguments: argparse.Namespace) -> Table:
    return [
        line
        for workload in WORKLOADS[family]
        for task in workload.tasks
        if workload.name in (arguments.workloads or [workload.name]) and any(word in task for word in arguments.tasks)
        for line in compare(workload, task, arguments.rounds, arguments.compile)
    ]


def compare(workload: Workload, task: str, rounds: int, compiled: bool) -> Table:
    names = [name for name in variants(workload.family, task) if compiled or not name.startswith("compiled")]
    print(f"{workload.family}, {workload.name}, {task}: {', '.join(names)}", file=sys.stderr)
    jobs = {name: checked_job(workload, task, name) for name in names}
    memory = {name: warm_up(work) for name, work in jobs.items()}
    runs = {name: runs_in_a_row(work) for name, work in jobs.items()}
    multiply_adds = workload.multiply_adds(task)
    times: dict[str, list[float]] = {name: [] for name in names}
    shares: dict[str, list[float | None]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)  # nobody always comes after the same one
        before = sample_peak()
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds(jobs[name], runs[name]))
            after = sample_peak()
            shares[name].append(share_of_peak(multiply_adds, times[name][-1], before, after))
            before = after
    return [
        row(
            workload,
            task,
            name,
            statistics.median(mine),
            speed_up(times["eager"], mine),
            None if multiply_adds is None else statistics.median(shares[name]),
            memory[name],
        )
        for name, mine in times.items()
    ]


def speed_up(eager: list[float], mine: list[float]) -> float:
    return statistics.median(e / m for e, m in zip(eager, mine, strict=True))


def accuracy() -> Table:
    """A row for each scale of q and k."""
    names = ("eager", *fused_backends("additive_attention"))
    return [{"scale": scale} | {name: score_error(name, scale) for name in names} for scale in SCALES]


def save(family: str, rounds: int, tables: dict[str, Table], text: str) -> None:
    folder = ROOT / "benchmarks" / "results" / machine_name()
    folder.mkdir(parents=True, exist_ok=True)
    about = machine() | {"rounds": rounds}
    (folder / f"{family}.json").write_text(json.dumps({"machine": about, "tables": tables}, indent=1) + "\n")
    listed = "\n".join(f"- {fact}" for fact in facts(about))
    (folder / f"{family}.md").write_text(f"# {family}\n\n{listed}\n\n{text}\n")
    print(f"written to {folder.relative_to(ROOT)}\n")


def facts(about: dict[str, Any]) -> list[str]:
    return [f"{name}: {value}" for name, value in about.items()]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(workload.name for family in WORKLOADS.values() for workload in family))
    parser.add_argument("families", nargs="*", help=f"of {', '.join(WORKLOADS)}; none = all")
    parser.add_argument("--workloads", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--tasks", nargs="+", default=[""], metavar="WORD", help="those with such a word: training")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--save", action="store_true", help="write the tables to benchmarks/results/<machine>/")
    arguments = parser.parse_args()
    if unknown := set(arguments.families) - set(WORKLOADS):
        parser.error(f"no such family: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    return arguments


if __name__ == "__main__":
    main()
