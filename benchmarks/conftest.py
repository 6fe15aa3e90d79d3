"""The fixture that times a job, and the table at the end. `python -m hybridops bench` runs pytest here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.environment import SMOKE
from benchmarks.measure import machine, row, sample_peak, seconds, share_of_peak, table, to_the_end, warm_up
from benchmarks.workloads import WORKLOADS, Job, Workload, checked_job, variants

# Rounds fill this much time, at least one and at most so many: the whole run is to end within minutes.
SECONDS_PER_JOB, MOST_ROUNDS = 0.5, 100

_rows = pytest.StashKey[dict[str, list[dict[str, Any]]]]()  # of each family
_eager = pytest.StashKey[dict[tuple[str, str], float]]()  # seconds, by workload and task


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.option.benchmark_quiet = True  # the table below has its figures; -v shows both
    config.stash[_rows] = {family: [] for family in WORKLOADS}
    config.stash[_eager] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a variant is run on every job of the family that its file is named after."""
    if "variant" not in metafunc.fixturenames:
        return
    family = metafunc.module.__name__.split(".")[-1].removeprefix("bench_")
    jobs = [
        pytest.param(workload, task, variant, id="-".join((workload.name, task.replace(" ", "_"), variant)))
        for workload in WORKLOADS[family]
        for task in workload.tasks
        for variant in variants(family, task)
    ]
    metafunc.parametrize(("workload", "task", "variant"), jobs)


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[Workload, str, str], None]:
    """Checks a variant against float64, warms it up, times it, and notes its row of results."""
    rows, eager = request.config.stash[_rows], request.config.stash[_eager]

    def run(workload: Workload, task: str, variant: str) -> None:
        work = checked_job(workload, task, variant)
        memory = warm_up(work)
        peak_before = sample_peak()
        before = eager.get((workload.name, task))  # None: this is eager, or it was not selected
        benchmark.group = f"{workload.name}, {task}"
        benchmark.pedantic(to_the_end, (work,), rounds=1 if SMOKE else rounds(work, before))
        if benchmark.disabled:
            return

        median = benchmark.stats.stats.median
        if variant == "eager":
            before = eager[workload.name, task] = median
        of_peak = share_of_peak(workload.multiply_adds(task), median, peak_before, sample_peak())
        result = row(workload, task, variant, median, before and before / median, of_peak, memory)
        rows[workload.family].append(result)
        benchmark.extra_info.update(result)

    return run


def rounds(work: Job, eager: float | None) -> int:
    """How many fit into SECONDS_PER_JOB. Where eager took long, finding out would take as long as another round."""
    if eager is not None and eager > 4 * SECONDS_PER_JOB:
        return 1
    return min(MOST_ROUNDS, max(1, int(SECONDS_PER_JOB / seconds(work))))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.update(machine())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[_rows]
    for family, results in rows.items():
        if results:
            terminalreporter.section(family)
            terminalreporter.write_line(table(results))
    if any(rows.values()):
        terminalreporter.section("machine")
        for name, value in machine().items():
            terminalreporter.write_line(f"{name}: {value}")
