"""The attention decoder, eager, compiled and fused, one after the other; compare.py times the same in turn."""

from __future__ import annotations


def test_attention_decoder(measure, workload, task, variant):
    measure(workload, task, variant)
