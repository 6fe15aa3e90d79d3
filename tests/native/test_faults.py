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
from tests.decoder_problems import decoder_inputs, fused_decoder
from tests.problems import (
    Tensors,
    attention_inputs,
    cast,
    conv_lstm_inputs,
    far_apart,
    fused_attention,
    fused_conv_lstm,
    with_gradients,
)
from tests.processes import run_python

VIDEO = {"batch": 2, "steps": 4, "channels": 9, "hidden": 16, "space": (20, 24)}
PAIRS = {"queries": 60, "keys": 80, "width": 64}
STEPS = {"batch": 20, "steps": 9, "keys": 40, "hidden": 48, "width": 50, "values": 60, "gate": True}


def train(family: str, **sizes: int) -> Tensors:
    """All outputs and gradients, by the compiled ops."""
    if family == "conv_lstm":
        inputs = conv_lstm_inputs(**VIDEO | sizes)
        return with_gradients(fused_conv_lstm, cast(inputs, torch.float32), backend="native")
    if family == "attention_decoder":
        return with_gradients(fused_decoder, cast(decoder_inputs(**STEPS | sizes), torch.float32), backend="native")
    return with_gradients(fused_attention, cast(attention_inputs(**PAIRS | sizes), torch.float32), backend="native")


FAMILIES = ["conv_lstm", "attention", "attention_decoder"]
families = pytest.mark.parametrize("family", FAMILIES)

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
large = {
    "attention": {"queries": 900, "keys": 1000}, "conv_lstm": {"hidden": 64, "space": (16, 16), "kernel": (5, 5)},
    "attention_decoder": {"hidden": 300, "width": 300, "keys": 200},
}
for family, sizes in large.items():
    before, errors = pool.submit(train, family).result(), set()
    for megabytes in range(0, 150):
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


@pytest.mark.slow
def test_out_of_memory():
    """PyTorch's allocator raises, or a thread that finds no room to work in. Afterwards a call is right, and so is the
    one that got through. The variables make glibc ask the system for every larger piece, and give it back.
    """
    variables = {"OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    errors = dict(line.split(" ", 1) for line in run_python(OUT_OF_MEMORY, **variables).splitlines())
    assert errors == dict.fromkeys(("attention", "conv_lstm", "attention_decoder"), "RuntimeError")


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """An alarm does what Ctrl-C does."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def train_until_interrupted(family: str, seconds: float) -> NoReturn:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    while True:
        train(family)


@families
@pytest.mark.usefixtures("_interrupts")
def test_interrupted(family):
    """At a time that is another each time: in the forward, in the backward, between them."""
    want = train(family)
    for i in range(8):
        with pytest.raises(KeyboardInterrupt):
            train_until_interrupted(family, 0.001 + 0.0037 * i)
        torch.testing.assert_close(train(family), want, **tolerances.EXACT)


def test_many_threads():
    """Forward and backward of all families from eight threads at once, in sizes that want other working memory."""
    calls = [(family, {"batch": batch}) for batch in (1, 2, 3) for family in FAMILIES]
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
            family: train(family, batch=1)[name]
            for family, name in (("conv_lstm", "output"), ("attention", "d v"), ("attention_decoder", "d v"))
        }


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_data_loader():
    """Its workers, of one thread each, are forked from a process whose threads have run."""
    Computed()[0]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the decoder's gradients are products of PyTorch's, whose bits depend on it
    want = Computed()[0]
    torch.set_num_threads(before)
    batches = list(DataLoader(Computed(), batch_size=2, num_workers=2, timeout=120, multiprocessing_context="fork"))
    assert len(batches) == 2
    for batch in batches:
        torch.testing.assert_close(batch, {name: torch.stack([t, t]) for name, t in want.items()}, **tolerances.EXACT)


# Sizes, offsets, and counts beyond 32 bits: the kernels compute with 64.
FAR_X = {"batch": 3, "steps": 3, "channels": 3, "space": (3, 3)}
FAR_PAIRS = {"batch": 3, "queries": 3, "keys": 3, "width": 3, "values": 3, "score_bias": True}


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5)])
@pytest.mark.parametrize("dim", range(5))
def test_far_images(dim, kernel):
    """Of x, which is read by its strides; in one product and, with few channels, in another."""
    inputs = cast(conv_lstm_inputs(**FAR_X, kernel=kernel), torch.bfloat16)
    want = with_gradients(fused_conv_lstm, inputs, backend="native")
    far = inputs | {"x": far_apart(inputs["x"], dim)}
    torch.testing.assert_close(with_gradients(fused_conv_lstm, far, backend="native"), want, **tolerances.EXACT)


@pytest.mark.parametrize("dim", range(5))
def test_far_gradients(dim):
    """Of the output: they too are read by their strides."""
    inputs = cast(conv_lstm_inputs(**FAR_X, hidden=3), torch.bfloat16)
    leaves = {name: None if t is None else t.requires_grad_() for name, t in inputs.items()}
    output = fused_conv_lstm(**leaves, backend="native")["output"]
    weights = leaves["weight_ih"], leaves["weight_hh"]
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    want, got = (torch.autograd.grad(output, weights, g, retain_graph=True) for g in (grad, far_apart(grad, dim)))
    torch.testing.assert_close(got, want, **tolerances.EXACT)


@pytest.mark.parametrize("name", ["mask", "score_bias"])
@pytest.mark.parametrize("dim", range(3))
def test_far_pairs(name, dim):
    """Of the mask and the bias; what else the attention's kernels read they have in one piece."""
    mask = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.3
    inputs = {**cast(attention_inputs(**FAR_PAIRS), torch.float32), "mask": mask}
    far = inputs | {name: far_apart(inputs[name], dim)}
    want, got = (fused_attention(**given, backend="native") for given in (inputs, far))
    torch.testing.assert_close(got, want, **tolerances.EXACT)


@pytest.mark.slow
def test_more_elements_than_32_bits_can_count():
    """B·T·C·Y·X of 2^31 and some more, all of one image: the states are those of one channel, C times as strong."""
    image = torch.randint(-1, 2, (1, 1, 1, 512, 512), generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.tensor([0.25, -0.5, 1.0, 2.0]).bfloat16()[:, None, None, None]
    x = image.expand(2, 9, 512, 512, 512)
    assert x.numel() > 2**31
    w_ih, w_hh = weight / 512, weight
    output, _ = HF.conv_lstm(x, None, w_ih.expand(4, 512, 1, 1), w_hh, backend="native")
    want, _ = HF.conv_lstm(image.expand(2, 9, 1, 512, 512), None, weight, w_hh, backend="native")
    torch.testing.assert_close(output, want, **tolerances.EXACT)
