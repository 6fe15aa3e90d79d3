"""The compile-only check: what is launched compiles for a GPU; a spill is seen, and too much shared memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.processes import run_python

pytestmark = pytest.mark.slow

pytest.importorskip("triton")
COMPILED = """
import sys
sys.argv = ["check", "--arch", "80", "--jobs", "1", "--only", {only!r}]
from hybridops.triton import additive_attention, check
from hybridops.triton.launch import Config
additive_attention.SOFTMAX = Config({{"BLOCK_T": {block}}}, num_warps={warps})
check.SHARED_MEMORY |= {limits}
print("status", check.main())
"""


def softmax(block: int, warps: int, limits: dict[int, int] | None = None) -> str:
    """What is said of that kernel; `limits` are other GPUs' than the real ones."""
    only = "softmax_kernel, float64, tanh, even"
    return run_python(COMPILED.format(only=only, block=block, warps=warps, limits=limits or {}), TRITON_INTERPRET="0")


def test_what_fits():
    said = softmax(block=512, warps=4)
    assert "sm_80 softmax_kernel, float64, tanh, even, 512, 4 warps, 2 stages" in said
    assert said.endswith("all 1 fit\nstatus 0\n")


def test_a_spill():
    said = softmax(block=16384, warps=1)
    assert "16384, 1 warps, 2 stages  SPILLS" in said
    assert said.endswith("1 of 1 do not fit\nstatus 1\n")


def test_too_much_shared_memory():
    said = softmax(block=512, warps=4, limits={80: 0})
    assert "512, 4 warps, 2 stages  TOO MUCH SHARED MEMORY" in said
    assert said.endswith("1 of 1 do not fit\nstatus 1\n")


def test_nothing_is_called_so():
    """It does not say that all of nothing fits."""
    command = [sys.executable, "-m", "hybridops.triton.check", "--only", "no such kernel"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no module, kernel or case has 'no such kernel' in its name" in done.stderr
