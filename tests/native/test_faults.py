"""What goes wrong around a call: memory runs out, it is interrupted, others call at once, the process forks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import hybridops.functional as HF
from tests import tolerances
from tests.problems import (
    Tensors,
    attention_inputs,
    cast,
    conv_lstm_inputs,
    fused_attention,
    fused_conv_lstm,
    with_gradients,
)
from tests.processes import run_python

VIDEO = {"batch": 2, "steps": 4, "channels": 9, "hidden": 16, "space": (20, 24)}
PAIRS = {"queries": 60, "keys": 80, "width": 64}


def train(family: str, **sizes: int) -> Tensors:
    """All outputs and gradients, by the compiled ops."""
    if family == "conv_lstm":
        inputs = conv_lstm_inputs(**VIDEO | sizes)
        return with_gradients(fused_conv_lstm, cast(inputs, torch.float32), backend="native")
    return with_gradients(fused_attention, cast(attention_inputs(**PAIRS | sizes), torch.float32), backend="native")


families = pytest.mark.parametrize("family", ["conv_lstm", "attention"])

# More memory from one attempt to the next, until the call is through: it fails at each allocation in turn. All in one
# thread, whose helpers' stacks are there by then: OpenMP ends the process where it cannot make a thread.
OUT_OF_MEMORY = """
import resource, torch
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tests import tolerances
from tests.native.test_faults import train

def limit(bytes):
    resource.setrlimit(resource.RLIMIT_AS, (bytes, resource.RLIM_INFINITY))

pool = ThreadPoolExecutor(1)
for family, sizes in (("attention", {"queries": 900, "keys": 1000}), ("conv_lstm", {"hidden": 128, "space": (30, 40)})):
    before, errors = pool.submit(train, family).result(), set()
    for megabytes in range(0, 150, 3):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit(used + megabytes * 2**20)
        attempt = pool.submit(train, family, **sizes)
        error = attempt.exception()
        limit(resource.RLIM_INFINITY)
        torch.testing.assert_close(pool.submit(train, family).result(), before, **tolerances.EXACT)
        if error is None:
            break
        errors.add(type(error).__name__)
    torch.testing.assert_close(attempt.result(), train(family, **sizes), **tolerances.EXACT)
    print(family, *sorted(errors))
"""


def test_out_of_memory():
    """PyTorch's allocator raises the one, the kernels' own the other. Afterwards a call is right, and so is the one
    that got through. The variables make glibc ask the system for every larger piece, and give it back.
    """
    variables = {"OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    errors = dict(line.split(" ", 1) for line in run_python(OUT_OF_MEMORY, **variables).splitlines())
    assert "RuntimeError" in errors["attention"]  # the scores are larger than all that the kernels take
    assert errors["conv_lstm"] == "MemoryError RuntimeError"


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """An alarm does what Ctrl-C does."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def train_on(family: str) -> NoReturn:
    while True:
        train(family)


@families
@pytest.mark.usefixtures("_interrupts")
def test_interrupted(family):
    """At a time that is another each time: in the forward, in the backward, between them."""
    want = train(family)
    for i in range(8):
        signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0037 * i)
        with pytest.raises(KeyboardInterrupt):
            train_on(family)
        torch.testing.assert_close(train(family), want, **tolerances.EXACT)


def test_many_threads():
    """Forward and backward of both families from eight threads at once, in sizes that want other working memory."""
    calls = [(family, {"batch": batch}) for batch in (1, 2, 3) for family in ("conv_lstm", "attention")]
    want = [train(family, **sizes) for family, sizes in calls]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda call: train(call[0], **call[1]), calls * 8))
    for i, result in enumerate(got):
        torch.testing.assert_close(result, want[i % len(calls)], **tolerances.EXACT)


class Computed(Dataset):
    """Data that are computed where they are loaded."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensors:
        return {
            family: train(family, batch=1)[name] for family, name in (("conv_lstm", "output"), ("attention", "d v"))
        }


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_data_loader():
    """Its workers are forked from a process whose threads have run."""
    want = Computed()[0]
    batches = list(DataLoader(Computed(), batch_size=2, num_workers=2, timeout=120, multiprocessing_context="fork"))
    assert len(batches) == 2
    for batch in batches:
        torch.testing.assert_close(batch, {name: torch.stack([t, t]) for name, t in want.items()}, **tolerances.EXACT)


@pytest.fixture
def _unwritten_memory() -> Iterator[None]:
    """What is not written to takes no room."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.usefixtures("_unwritten_memory")
def test_offsets_beyond_32_bits():
    """Of tensors that are read by their strides. All kernels compute with indices of 64 bits."""
    far = 2**31 + 64
    memory = torch.empty(far + 4096, dtype=torch.bfloat16)
    inputs = cast(conv_lstm_inputs(batch=2), torch.bfloat16)
    x, w_ih, w_hh = inputs["x"], inputs["weight_ih"].requires_grad_(), inputs["weight_hh"].requires_grad_()

    def spread(values: torch.Tensor) -> torch.Tensor:
        """The second half of the batch is that far behind the first."""
        return memory.as_strided(values.shape, (far, *values.contiguous().stride()[1:])).copy_(values)

    def run(x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output, _ = HF.conv_lstm(x, None, w_ih, w_hh, backend="native")
        return output, *torch.autograd.grad(output, (w_ih, w_hh), grad)

    grad = torch.randn(2, 3, 4, 4, 5).bfloat16()
    want = run(x, grad)
    torch.testing.assert_close(run(spread(x), grad), want, **tolerances.EXACT)
    torch.testing.assert_close(run(x, spread(grad)), want, **tolerances.EXACT)
