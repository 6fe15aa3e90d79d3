"""Same inputs, same bits: whatever the number of threads, run after run, and in a process that was forked.

Of the compiled ops alone: PyTorch's own products and sums around them depend on the number of threads.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

import pytest
import torch

from tests import tolerances
from tests.native.recorder import Call, record

VIDEO = {"channels": 5, "hidden": 9, "space": (21, 34), "peephole": "spatial"}
PAIRS = {"batch": 3, "queries": 37, "keys": 150, "width": 70, "score_bias": True}


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    """Large enough to be shared out among threads."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    return [
        call
        for dtype in dtypes
        for case in (("conv_lstm", VIDEO), ("attention", PAIRS))
        for call in record(*case, dtype)
    ]


@pytest.fixture
def _thread_count() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def assert_same(calls: list[Call], want: list[torch.Tensor]) -> None:
    torch.testing.assert_close(run(calls), want, **tolerances.EXACT)


def run(calls: list[Call]) -> list[torch.Tensor]:
    return [op(*arguments) for op, arguments in calls]


@pytest.mark.usefixtures("_thread_count")
def test_threads(calls):
    torch.set_num_threads(1)
    want = run(calls)
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        assert_same(calls, want)


def test_runs(calls):
    want = run(calls)
    for _ in range(3):
        assert_same(calls, want)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_process(calls):
    """As a DataLoader's workers are, which also set the number of threads first: OpenMP's do not outlive a fork."""
    want = run(calls)
    context = multiprocessing.get_context("fork")
    done = context.Queue()

    def child() -> None:
        torch.set_num_threads(1)
        assert_same(calls, want)
        done.put(os.getpid())

    process = context.Process(target=child)
    process.start()
    process.join(60)
    process.kill()  # nothing to end unless it hangs
    assert process.exitcode == 0
    assert done.get(timeout=10) == process.pid
