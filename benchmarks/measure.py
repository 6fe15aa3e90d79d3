"""How it is measured: the machine and its multiply-add peak, a training step's memory, and the table of results."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

import hybridops
from benchmarks.environment import DEVICE
from benchmarks.workloads import Job, Workload
from hybridops import native

ROOT = Path(__file__).parents[1]
ON_CUDA = DEVICE.startswith("cuda")

# ------------------------------------------------------------------------------------------------------------ machine


def machine() -> dict[str, Any]:
    """What a result must be read with."""
    compiled = native.unavailable_reason() is None
    return {
        "cpu": _cpu_model(),
        "instruction_set": native.cpu_isa() if compiled else torch.backends.cpu.get_cpu_capability().lower(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(DEVICE) if ON_CUDA else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hybridops": hybridops.__version__,
        "commit": _commit(),
        "peak_gflops": round(2e-9 * peak(), 1),
        "peak_is": _peak_probe()[1],
        "copy_gb_s": round(1e-9 * copy_rate(), 1),
        "bfloat16_mm_gflops": round(1e-9 * tensor_core_rate(), 1) if ON_CUDA else None,
    }


def machine_name() -> str:
    """For a folder: amd-epyc-avx2-2-threads."""
    m = machine()
    parts = [m["gpu"]] if m["gpu"] else [m["cpu"], m["instruction_set"], f"{m['threads']} threads"]
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)|CPU|@.*", "", " ".join(parts)).lower()).strip("-")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    """With -dirty behind it if what is run is not what was committed; results are not run."""
    if shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return git("describe", "--always", "--exclude=*") + ("-dirty" if changed else "") or None


# --------------------------------------------------------------------------------------------------------------- peak


_peaks: list[float] = []


def sample_peak() -> float:
    """Float32 multiply-adds a second that the whole device has to give at this moment."""
    _peaks.append(_peak_probe()[0]())
    return _peaks[-1]


def peak() -> float:
    """The most that was ever seen."""
    return max(_peaks) if _peaks else sample_peak()


def share_of_peak(multiply_adds: float | None, duration: float, *peaks: float) -> float | None:
    """Of what the device had to give before and after: other work holds both back alike."""
    return None if multiply_adds is None else multiply_adds / duration / statistics.fmean(peaks)


@cache
def copy_rate() -> float:
    """Bytes a second, read and written, of a copy that no cache holds: what reading and writing takes at the least."""
    source = torch.ones(256 << 20, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(seconds(lambda: target.copy_(source)) for _ in range(5))


@cache
def tensor_core_rate() -> float:
    """Operations a second of a large product in bfloat16: what a step under autocast can reach."""
    size = 8192
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, a)) for _ in range(5))


@cache
def _peak_probe() -> tuple[Callable[[], float], str]:
    """What gives the multiply-adds a second at this moment, and in words how."""
    loop = None if ON_CUDA else _register_loop()
    if loop is None:
        size = 4096 if ON_CUDA else 1024
        a = torch.randn(size, size, device=DEVICE)
        return lambda: size**3 / seconds(lambda: torch.mm(a, a)), f"torch.mm, {size}×{size}: a proxy"
    rounds, threads = 10_000_000, torch.get_num_threads()  # some 20 ms, and so the average of what others leave
    pool = ThreadPoolExecutor(threads)  # ctypes lets go of the interpreter's lock

    def of_one_thread(_: int) -> float:
        return rounds * loop.multiply_adds_a_round() / seconds(lambda: loop.run(rounds, 0.5, 1.0))

    return lambda: sum(pool.map(of_one_thread, range(threads))), "loops in registers on all threads at once"


def _register_loop() -> ctypes.CDLL | None:
    """peak.c, compiled for this machine; None where there is no C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library, source = Path(folder, "peak.so"), ROOT / "benchmarks" / "peak.c"
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]  # used here and now, then deleted
        subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True)
        loop = ctypes.CDLL(str(library))
    loop.run.argtypes, loop.run.restype = [ctypes.c_long, ctypes.c_float, ctypes.c_float], ctypes.c_float
    return loop


def seconds(work: Callable[[], object], runs: int = 1) -> float:
    """Of one of so many runs in a row."""
    if ON_CUDA:
        return _gpu_seconds(work)
    start = time.perf_counter()
    for _ in range(runs):
        work()
    return (time.perf_counter() - start) / runs


def runs_in_a_row(work: Callable[[], object]) -> int:
    """How many to time as one: enough for 20 ms. Short work comes in loops, and finds its data in the caches and the
    threads awake; a single run after a pause would measure these. On a GPU one, with the cache flushed.
    """
    return 1 if ON_CUDA else max(1, math.ceil(0.02 / seconds(work)))


def _gpu_seconds(work: Callable[[], object]) -> float:
    """Between two events on the GPU's own clock, with none of the inputs in its cache: no L2 has 256 MB yet."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE).zero_()
    start.record()
    work()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


def to_the_end(work: Callable[[], object]) -> None:
    """For a clock that is not the GPU's own."""
    work()
    if ON_CUDA:
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------------------- memory


def warm_up(job: Job) -> int | None:
    """Run the job a first time; gives the peak memory of a training step."""
    if job.grad is not None:
        return peak_bytes(job)
    job()
    return None


def peak_bytes(job: Job) -> int:
    """Most bytes that tensors allocated by one run of the job, results included, hold at a time.

    On a CPU they are counted one by one by PyTorch's profiler: exact, and the same every time. The buffers of the fused
    kernels are among them; what their threads keep, and what a library allocates for itself, it does not see.
    """
    if ON_CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would announce itself at each start
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    held = most = 0
    for event in profile.profiler.kineto_results.events():  # in order of time
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


# -------------------------------------------------------------------------------------------------------------- table


def row(
    workload: Workload,
    task: str,
    variant: str,
    duration: float,
    speed_up: float | None,
    of_peak: float | None,
    memory: int | None,
) -> dict[str, Any]:
    """One line of results: seconds, how many times as fast as eager that is, share of the multiply-add peak, bytes."""
    return {
        "workload": workload.name,
        "task": task,
        "variant": variant,
        "ms": duration * 1e3,
        "speed-up": speed_up,
        workload.unit: workload.operations(task) * 1e-9 / duration,
        "of peak": of_peak,
        "MB": None if memory is None else memory * 1e-6,
    }


_FORMATS = {"speed-up": "{:.2f}×", "of peak": "{:.0%}"}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as a Markdown table, aligned so that a terminal shows it well."""
    rows = list(rows)
    lines = [list(rows[0])] + [[_cell(name, value) for name, value in line.items()] for line in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [not isinstance(value, str) for value in rows[0].values()]
    text = ["| " + " | ".join(map(_justify, line, widths, numeric)) + " |" for line in lines]
    rule = ["-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([text[0], f"|{'|'.join(rule)}|", *text[1:]])


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _FORMATS.get(name, "{:.0f}" if value >= 100 else "{:.3g}").format(value)


def _justify(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)
