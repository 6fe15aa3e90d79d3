from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from examples import demo
from examples.compare import Comparison, Run, compare
from examples.moving_digits import MovingDigits

pytestmark = pytest.mark.slow


def test_compare_measures_both_and_keeps_to_the_deadline():
    task = MovingDigits(batch_size=2)
    result = compare(task, steps=5, deadline=0)
    assert len(result.plain.losses) == len(result.fused.losses) == 1
    assert result.relative_difference < demo.SAME_LOSS
    positions, frames, layers, hidden = 32 * 32, 20, 2, 16
    gates = 4 * 4 * hidden * positions * frames * layers  # bytes: no way of training does without some of that
    assert gates / 2 < result.plain.peak_bytes < 50 * gates
    assert gates / 2 < result.fused.peak_bytes < 50 * gates


@pytest.mark.parametrize(("loss", "status"), [(0.5, 0), (0.5004, 0), (0.5006, 1), (math.nan, 1)])
def test_the_exit_status_says_whether_the_losses_agree(monkeypatch, tmp_path, loss, status):
    plain, fused = (Run(None, value, [value], 0.1, 1000) for value in (0.5, loss))
    monkeypatch.setattr(demo, "_train", lambda *args: Comparison(plain, fused))
    task = SimpleNamespace(
        name="a task",
        family="conv_lstm",
        spatial_dims=2,
        steps=1,
        draw=lambda model, path: None,
        report=lambda model: [],
    )
    assert demo.run([task], None, 1.0, tmp_path, "cpu") == status
