"""What a type checker of a user's code sees: the return types of the public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.processes import ROOT

pytest.importorskip("mypy")

CODE = """
from typing import Any

import hybridops
import hybridops.functional as HF
from torch import Tensor
from typing_extensions import assert_type


def of_functions(x: Tensor, v: Tensor, flag: bool) -> None:
    assert_type(HF.additive_scores(x, x, v), Tensor)
    assert_type(HF.additive_attention(x, x, x, v), Tensor)
    assert_type(HF.additive_attention(x, x, x, v, return_weights=True), tuple[Tensor, Tensor])
    assert_type(HF.additive_attention(x, x, x, v, return_weights=flag), Tensor | tuple[Tensor, ...])
    assert_type(HF.additive_attention(x, x, x, v, return_lse=True), tuple[Tensor, Tensor])
    three = HF.additive_attention(x, x, x, v, return_weights=True, return_lse=True)
    assert_type(three, tuple[Tensor, Tensor, Tensor])
    assert_type(HF.conv_lstm(x, None, v, v), tuple[Tensor, tuple[Tensor, Tensor]])
    assert_type(HF.conv_lstm_cell(x, None, v, v), tuple[Tensor, Tensor])


def of_modules(x: Tensor) -> None:
    lstm = hybridops.FusedConvLSTM(3, 4, 3, num_layers=2, save="recompute", backend="native")
    assert_type(lstm.forward(x), tuple[Tensor, tuple[Any, Any]])
    assert_type(hybridops.FusedConvLSTMCell(3, 4, 3).forward(x), tuple[Tensor, Tensor])
    assert_type(hybridops.FusedConcatAttention(4).forward(x, x), Tensor)
    assert_type(hybridops.FusedAdditiveAttention(3, 4, 5).forward(x, x), tuple[Tensor, Tensor | None])
    decoder = hybridops.FusedAttentionDecoder(3, 4, 5, 6, cell="gru")
    assert_type(decoder.forward(x, x)[0], Tensor)
    assert_type(decoder.step(x, decoder.start(x))[2], Tensor)


hybridops.FusedConvLSTM(3, 4, kernel="3")
HF.additive_scores(1, 2)
"""
WRONG = ('Unexpected keyword argument "kernel"', "Missing positional argument")


@pytest.mark.slow
def test_types(tmp_path):
    """Exactly the two calls that are wrong are seen to be."""
    path = tmp_path / "uses.py"
    path.write_text(CODE)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    errors = [line for line in done.stdout.splitlines() if "uses.py" in line and "error" in line]
    last = len(CODE.splitlines())
    assert {line.split(":")[1] for line in errors} == {str(last - 1), str(last)}, done.stdout
    assert all(any(wrong in line for line in errors) for wrong in WRONG), done.stdout
