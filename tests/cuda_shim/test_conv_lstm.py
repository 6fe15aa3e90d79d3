"""The ConvLSTM's ways to compute a sequence on a GPU, each by its own kernels, on a CPU."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch

from tests import tolerances
from tests.cuda_shim.sanitizer import environment
from tests.cuda_shim.test_shim import ORDERS
from tests.problems import assert_parity, cast, conv_lstm_inputs, fused_conv_lstm, plain_conv_lstm, with_gradients
from tests.processes import run_python

# How many multiprocessors a device has decides how these inputs are computed: with many, all blocks of a step are on it
# at once; with two, small blocks do not fit all at once, and large ones do not fill it; with one, those do.
SIZES = {"batch": 2, "steps": 3, "channels": 16, "hidden": 40, "space": (7, 9)}
MULTIPROCESSORS = {"persistent": 16, "small blocks": 3, "large blocks": 1}
KERNELS = {
    "persistent": ("PersistentSteps<", "Tile<4, 4, 1,", "Tile<1, 4, 1,"),
    "small blocks": ("FusedStep<", "Tile<4, 4, 1,", "Tile<1, 4, 1,"),
    "large blocks": ("FusedStep<", "Tile<4, 4, 2,", "Tile<1, 4, 2,"),
}
HALF = [torch.bfloat16, torch.float16]
plans = pytest.mark.parametrize("plan", list(MULTIPROCESSORS))


@pytest.fixture
def launched(shim, monkeypatch):
    """The names of the kernels that ran since it was last called."""
    torch.ops.load_library(str(shim))
    monkeypatch.setattr(torch.ops, "hybridops", torch.ops.hybridops_shim)
    names = ctypes.CDLL(str(shim)).hybridops_shim_launched
    names.restype = ctypes.c_char_p
    names()
    return lambda: names().decode()


@pytest.fixture
def device(monkeypatch):
    def choose(plan: str) -> None:
        monkeypatch.setenv("HYBRIDOPS_SHIM_MULTIPROCESSORS", str(MULTIPROCESSORS[plan]))

    return choose


@pytest.fixture
def tf32():
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


def assert_ran(names: str, plan: str) -> None:
    kind, forward, backward = KERNELS[plan]
    steps = [name for name in names.splitlines() if "Step<" in name or "Steps<" in name]
    assert any(kind in name and forward in name for name in steps)
    assert any(kind in name and backward in name for name in steps)
    assert all(kind in name for name in steps)


@plans
@pytest.mark.parametrize("order", ORDERS)
def test_plans(launched, device, monkeypatch, plan, order):
    device(plan)
    monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)
    assert_parity(plain_conv_lstm, fused_conv_lstm, conv_lstm_inputs(**SIZES), torch.bfloat16, backend="native")
    assert_ran(launched(), plan)
