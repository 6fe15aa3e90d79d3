from __future__ import annotations

import importlib.util

import pytest
import torch

from examples.data import anomalies

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples.systems.anomalies import DISTURBANCE, WINDOW, disturbed


@pytest.mark.parametrize(("name", "steps", "anomalous"), [("ucr", 7501, range(4187, 4199)), ("yahoo", 1000, None)])
def test_series(name, steps, anomalous):
    if importlib.util.find_spec(anomalies.SOURCES[name].package) is None:
        pytest.skip(f"needs {anomalies.SOURCES[name].package}")
    series = anomalies.load(name)
    assert series.values.shape == series.is_anomaly.shape == (steps,)
    assert not series.is_anomaly[: series.validation_end].any()
    assert 0 < series.train_end < series.validation_end
    found = series.is_anomaly.nonzero().squeeze(1).tolist()
    assert found == list(anomalous) if anomalous is not None else len(found) == 7


def test_bad_names(monkeypatch):
    with pytest.raises(ValueError, match="name must be one of"):
        anomalies.load("nab")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps sktime"):
        anomalies.load("yahoo")


def test_one_step_of_half_the_windows_is_disturbed():
    torch.manual_seed(0)
    windows, targets = torch.randn(2000, WINDOW, 1), torch.randn(2000, 1)
    changed, same = disturbed(list(zip(windows, targets, strict=True)))
    assert torch.equal(same, targets)
    change = (changed - windows).squeeze(2)
    steps = (change != 0).sum(1)
    assert steps.max() == 1
    assert 0.45 < steps.float().mean() < 0.55
    assert change[change != 0].std() == pytest.approx(DISTURBANCE, rel=0.1)
