"""The compile-only check: what is launched compiles for a GPU, and a spill is seen."""

from __future__ import annotations

import pytest

from tests.processes import run_python

pytest.importorskip("triton")
COMPILED = """
import sys
sys.argv = ["check", "--arch", "80", "--jobs", "1", "--only", {only!r}]
from hybridops.triton import additive_attention, check
from hybridops.triton.launch import Config
additive_attention.SOFTMAX = Config({{"BLOCK_T": {block}}}, num_warps={warps})
print("status", check.main())
"""


def softmax(block: int, warps: int) -> str:
    return run_python(COMPILED.format(only="softmax_kernel, float64", block=block, warps=warps), TRITON_INTERPRET="0")


def test_what_fits():
    said = softmax(block=512, warps=4)
    assert "sm_80 softmax_kernel, float64, tanh, 512, 4 warps, 2 stages" in said
    assert said.endswith("all 1 fit\nstatus 0\n")


def test_a_spill():
    said = softmax(block=16384, warps=1)
    assert "16384, 1 warps, 2 stages  SPILLS" in said
    assert said.endswith("1 of 1 do not fit\nstatus 1\n")
