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
TILES = [  # of Winograd's convolutions
    {"channels": 9, "hidden": 16, "space": (18, 23)},
    {"batch": 1, "channels": 12, "hidden": 9, "space": (31, 33), "kernel": (5, 5)},
]
DECODER = {"batch": 23, "steps": 3, "keys": 41, "hidden": 33, "width": 70, "values": 50, "gate": True}
PAIRS = {"batch": 3, "queries": 37, "keys": 150, "width": 70, "score_bias": True}


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    """Large enough to be shared out among threads."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    families = [("conv_lstm", VIDEO), ("attention", PAIRS), ("attention_decoder", DECODER)]
    cases = [(*family, dtype) for family in families for dtype in dtypes]
    plain = [call for case in cases for call in record(*case)]
    tiled = [call for sizes in TILES for call in record("conv_lstm", sizes)]
    return [*plain, *tiled, *(with_outliers(call) for call in tiled)]


def with_outliers(call: Call) -> Call:
    """Values that Winograd's tiles are left for, here and there: large ones, infinities and NaN."""
    op, given = call
    images = {"x", "h0", "grad_hs", "grad_hn", "da"}

    def spoiled(image: torch.Tensor) -> torch.Tensor:
        image = image.contiguous().clone()
        values = image.flatten()
        values[::997] = 40.0
        values[3::2003] = torch.inf
        values[5::4001] = torch.nan
        return values.view(image.shape)

    names = [argument.name for argument in op._schema.arguments]
    pairs = zip(names, given, strict=True)
    return op, tuple(spoiled(t) if name in images and t is not None else t for name, t in pairs)


@pytest.fixture
def _thread_count() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def assert_same(calls: list[Call], want: list[torch.Tensor]) -> None:
    torch.testing.assert_close(run(calls), want, **tolerances.EXACT, equal_nan=True)


def run(calls: list[Call]) -> list[torch.Tensor]:
    return [op(*arguments) for op, arguments in calls]


@pytest.mark.slow
@pytest.mark.usefixtures("_thread_count")
def test_threads(calls):
    torch.set_num_threads(1)
    want = run(calls)
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        assert_same(calls, want)


@pytest.mark.slow
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
