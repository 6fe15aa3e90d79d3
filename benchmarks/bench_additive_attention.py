"""Additive attention, eager, compiled and fused, one after the other; compare.py times the same in turn."""

from __future__ import annotations

import pytest

from benchmarks.workloads import SCALES, fused_backends, score_error


def test_additive_attention(measure, workload, task, variant):
    measure(workload, task, variant)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("backend", fused_backends("additive_attention"))
def test_accuracy(backend, scale):
    """Rounding of the sum q+k comes in as 2^-24 of it at the most, where tanh is steep: 1e-6 has room for all else."""
    assert score_error(backend, scale) < 1e-6
