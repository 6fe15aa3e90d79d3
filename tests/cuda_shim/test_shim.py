"""The shim sees what it is there to see."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests import tolerances
from tests.cuda_shim.sanitizer import environment

ORDERS = ["forward", "reverse", "random"]


@pytest.fixture
def ops(shim):
    torch.ops.load_library(str(shim))
    return torch.ops.hybridops_shim


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_orders_threads(ops, monkeypatch, order):
    monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)
    x = torch.arange(64.0)
    want = torch.cat([x[:1], x[:-1]])
    torch.testing.assert_close(ops.shift(x, True), want, **tolerances.EXACT)


@pytest.mark.parametrize(("order", "hidden"), [("forward", True), ("reverse", False), ("random", False)])
def test_a_missing_barrier_shows_in_some_order(ops, monkeypatch, order, hidden):
    """Shared memory is NaN where a thread reads it before another has written it."""
    monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)
    assert ops.shift(torch.arange(64.0), False).isfinite().all() == hidden


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("of_warp", [False, True], ids=["block", "warp"])
def test_a_divergent_barrier_is_an_error(ops, monkeypatch, order, of_warp):
    monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)
    x = torch.zeros(1)
    for stay in (1, 63):
        with pytest.raises(RuntimeError, match="divergent barrier"):
            ops.divergent(x, stay, of_warp)
    ops.divergent(x, 0, of_warp)
    ops.divergent(x, 64, of_warp)


def test_a_warp_may_leave_alone(ops):
    ops.divergent(torch.zeros(1), 32, True)
    with pytest.raises(RuntimeError, match="divergent barrier"):
        ops.divergent(torch.zeros(1), 32, False)


@pytest.mark.parametrize("order", ORDERS)
def test_copies_come_when_they_are_waited_for(ops, monkeypatch, order):
    """Every other one is of zeros."""
    monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)
    x = torch.arange(1.0, 129.0)
    want = x.where(torch.arange(128) % 8 < 4, 0.0)
    torch.testing.assert_close(ops.copied(x, True), want, **tolerances.EXACT)
    assert ops.copied(x, False).isfinite().all() == (order == "forward")


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_wait_for_one_another(ops, monkeypatch, order):
    monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)
    want = torch.tensor([2.0, 3.0, 4.0, 1.0])
    torch.testing.assert_close(ops.next_block(torch.zeros(4), 0, True), want, **tolerances.EXACT)
    assert not torch.equal(ops.next_block(torch.zeros(4), 0, False), want)
    with pytest.raises(RuntimeError, match="divergent barrier"):
        ops.next_block(torch.zeros(4), 1, True)


def test_out_of_bounds_is_seen(sanitized_shim):
    code = f"import torch; torch.ops.load_library({str(sanitized_shim)!r}); "
    for op, error in (("shift(torch.zeros(64), True)", ""), ("out_of_bounds(torch.zeros(32))", "heap-buffer-overflow")):
        command = [sys.executable, "-c", f"{code} torch.ops.hybridops_shim.{op}"]
        finished = subprocess.run(command, env=os.environ | environment(), capture_output=True, text=True, timeout=300)
        assert (finished.returncode != 0) == bool(error), finished.stderr
        assert error in finished.stderr
