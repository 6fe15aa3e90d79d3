"""The ways to compute a ConvLSTM's sequence on a GPU (choose() in csrc/cuda/conv_lstm_sequence.cuh), on a CPU."""

from __future__ import annotations

import ctypes
import math
import re
from contextlib import contextmanager

import pytest
import torch

from tests import tolerances
from tests.cuda_shim.sanitizer import environment
from tests.cuda_shim.test_shim import ORDERS
from tests.problems import assert_parity, cast, conv_lstm_inputs, fused_conv_lstm, plain_conv_lstm, with_gradients
from tests.processes import run_python

# Two large blocks of pixels, and two of the forward's channels. Of what device these are computed on depends how: with
# room for all small blocks at once, in one kernel; with too little, step by step; in large blocks where those fill it.
SIZES = {"batch": 2, "channels": 8, "hidden": 40, "space": (7, 10)}
MULTIPROCESSORS = {"persistent": 16, "small": 5, "large": 1}
KERNELS = {
    "library": {"conv_lstm_pointwise_kernel", "conv_lstm_pointwise_backward_kernel"},
    "persistent": {"conv_lstm_persistent_kernel Tile<4, 4, 1,", "conv_lstm_persistent_backward_kernel Tile<1, 4, 1,"},
    "small": {"conv_lstm_step_kernel Tile<4, 4, 1,", "conv_lstm_step_backward_kernel Tile<1, 4, 1,"},
    "large": {"conv_lstm_step_kernel Tile<4, 4, 2,", "conv_lstm_step_backward_kernel Tile<1, 4, 2,"},
}
plans = pytest.mark.parametrize("plan", list(MULTIPROCESSORS))
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def launched(shim, monkeypatch):
    """Which kernels for steps ran since this was last called: entry points, as a profiler shows them, and tiles."""
    torch.ops.load_library(str(shim))
    monkeypatch.setattr(torch.ops, "hybridops", torch.ops.hybridops_shim)
    names = ctypes.CDLL(str(shim)).hybridops_shim_launched
    names.restype = ctypes.c_char_p
    names()

    def steps() -> set[str]:
        found = re.findall(
            r"^(conv_lstm_(?:pointwise|step|persistent)\w*)[^\n]*?(Tile<\d, \d, \d,|$)", names().decode(), re.MULTILINE
        )
        return {f"{entry} {tile}".strip() for entry, tile in found}

    return steps


def set_device(monkeypatch, plan: str, order: str = "forward") -> None:
    monkeypatch.setenv("HYBRIDOPS_SHIM_MULTIPROCESSORS", str(MULTIPROCESSORS[plan]))
    monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)


@contextmanager
def tf32():
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


def check(dtype: torch.dtype, save: str = "gates", **sizes) -> None:
    inputs, options = conv_lstm_inputs(**sizes), {"backend": "native", "save": save}
    if dtype != torch.float32:
        assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, dtype, **options)
        return
    with tf32():
        got = with_gradients(fused_conv_lstm, cast(inputs, dtype), **options)
    want = with_gradients(plain_conv_lstm, cast(cast(inputs, dtype), torch.float64))
    torch.testing.assert_close(got, cast(want, dtype), **tolerances.TF32)


@plans
@pytest.mark.parametrize(("dtype", "order"), list(zip(DTYPES, ORDERS, strict=True)))
def test_dtypes(launched, monkeypatch, plan, dtype, order):
    set_device(monkeypatch, plan, order)
    check(dtype, **SIZES)
    assert launched() == KERNELS[plan]


@plans
@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": 8, "space": (9,), "kernel": (3,), "peephole": "channel"},
        {"hidden": 16, "space": (3, 5), "kernel": (5, 1), "peephole": "spatial", "states": False},
        {"hidden": 8, "space": (2, 2), "kernel": (7, 7), "bias": False, "save": "recompute"},
        {"hidden": 24, "channels": 72, "space": (4, 3), "kernel": (1, 3), "steps": 1, "batch": 3},
        {"hidden": 13, "channels": 9, "space": (7, 9), "peephole": "spatial"},
        {"hidden": 8, "channels": 3, "space": (3, 5)},
    ],
    ids=["row", "high", "patches of padding", "one step", "odd channels", "odd inputs"],
)
def test_sizes(launched, monkeypatch, plan, sizes):
    set_device(monkeypatch, plan, "random")
    check(torch.float16, **sizes)
    assert "conv_lstm_pointwise_backward_kernel" not in launched()


@pytest.mark.parametrize(
    ("compute_capability", "hidden", "dtype", "plan"),
    [
        (7, 8, torch.float16, "library"), (9, 8, torch.float32, "library"), (9, 8, torch.float16, "large"),
        (9, 128, torch.float16, "library"), (8, 128, torch.float16, "large"),
    ],
    ids=["before sm_80", "full precision", "sm_90", "many channels on sm_90", "many channels"],
)  # fmt: skip
def test_devices(launched, monkeypatch, compute_capability, hidden, dtype, plan):
    set_device(monkeypatch, "large")
    monkeypatch.setenv("HYBRIDOPS_SHIM_COMPUTE_CAPABILITY", str(compute_capability))
    inputs = cast(conv_lstm_inputs(hidden=hidden, channels=8, space=(2, 3), steps=1), dtype)
    with_gradients(fused_conv_lstm, inputs, backend="native")
    assert launched() == KERNELS[plan]


@plans
@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.bfloat16, math.inf), (torch.bfloat16, math.nan), (torch.float32, -math.inf), (torch.float32, math.nan)],
)
def test_infinities_and_nan(launched, monkeypatch, plan, dtype, value):
    """Where an input is no number, what follows from it is none, and nothing else."""
    set_device(monkeypatch, plan)
    inputs = cast(conv_lstm_inputs(channels=8, hidden=8, space=(5, 6), steps=2), dtype)
    inputs["x"][0, 0, 3, 2, 2] = value
    with tf32():
        got = with_gradients(fused_conv_lstm, inputs, backend="native")
    want = with_gradients(plain_conv_lstm, cast(inputs, torch.float64))
    for name, result in want.items():
        assert torch.equal(got[name].isfinite(), result.isfinite()), name
    assert not launched() & KERNELS["library"]


@plans
def test_the_same_bits_in_any_order(launched, monkeypatch, plan):
    inputs = cast(conv_lstm_inputs(**SIZES, peephole="channel"), torch.bfloat16)
    results = []
    for order in ORDERS:
        set_device(monkeypatch, plan, order)
        results.append(with_gradients(fused_conv_lstm, inputs, backend="native"))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], **tolerances.EXACT)


SANITIZED = """
import os
import torch
from tests.cuda_shim import plugin
from tests.cuda_shim.test_conv_lstm import MULTIPROCESSORS, SIZES, check
for multiprocessors in MULTIPROCESSORS.values():
    os.environ["HYBRIDOPS_SHIM_MULTIPROCESSORS"] = str(multiprocessors)
    check(torch.bfloat16, **SIZES, steps=2)
    check(torch.float32, **SIZES, steps=2, peephole="spatial")
    check(torch.float16, hidden=13, channels=9, space=(7, 9), steps=2, peephole="spatial")
"""


def test_under_address_sanitizer(sanitized_shim):
    run_python(SANITIZED, HYBRIDOPS_SHIM=str(sanitized_shim), **environment())
