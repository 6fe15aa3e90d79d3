"""ConvLSTM layers, eager, compiled and fused, one after the other; compare.py times the same in turn."""

from __future__ import annotations


def test_conv_lstm(measure, workload, task, variant):
    measure(workload, task, variant)
