"""Forecasts against their equation, anomalies against the document's own loop over windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hybridops.models import AnomalyDetector, Forecaster
from hybridops.models.forecasting import series_windows
from tests.layers.networks import torch_network


def document_004(model, data, window_size, threshold):
    """Its loop, with the model's forecast and every error kept."""
    anomalies, errors = [], []
    for i in range(len(data) - window_size):
        window = data[i : i + window_size].view(1, window_size, -1)
        errors.append((data[i + window_size] - model(window)[0]).abs().mean().item())
        if errors[-1] > threshold:
            anomalies.append(i + window_size)
    return anomalies, errors


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("relative", [False, True])
def test_forecast_is_its_equation(channels, relative):
    torch.manual_seed(0)
    model = Forecaster(channels, 5, 2, relative=relative).double()
    windows = torch.randn(4, 6, channels, dtype=torch.float64)
    last = windows[:, -1]
    states, _ = torch_network(model.encoder, "lstm")(windows - last[:, None] if relative else windows)
    torch.testing.assert_close(model(windows), model.proj(states[:, -1]) + (last if relative else 0.0))
    shift = model(windows + 7.0) - model(windows)
    assert relative == torch.allclose(shift, torch.full_like(shift, 7.0))


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3)])
@pytest.mark.parametrize("batch_size", [7, 1024])
def test_detector_finds_what_the_loop_finds(shape, batch_size):
    torch.manual_seed(0)
    series = torch.randn(shape, dtype=torch.float64)
    model = Forecaster(shape[1] if len(shape) > 1 else 1, 5).double()
    detector = AnomalyDetector(model, 12, batch_size=batch_size)
    errors = detector.errors(series)
    threshold = detector.fit_threshold(series, quantile=0.8)
    anomalies, expected = document_004(model, series, 12, threshold)
    torch.testing.assert_close(errors, torch.tensor(expected, dtype=torch.float64))
    assert 0 < len(anomalies) < 28
    assert detector(series).tolist() == anomalies


def test_thresholds():
    torch.manual_seed(0)
    series, detector = torch.randn(50), AnomalyDetector(Forecaster(1, 5), 4)
    assert detector(series).tolist() == []  # none yet
    errors = detector.errors(series)
    assert detector.fit_threshold(series, quantile=0.9) == pytest.approx(errors.quantile(0.9).item())
    expected = errors.mean() + 2.5 * errors.std(correction=0)
    assert detector.fit_threshold(series, deviations=2.5) == pytest.approx(expected.item())
    assert detector.bfloat16().fit_threshold(series.bfloat16(), quantile=0.5) == detector.threshold
    copy = AnomalyDetector(Forecaster(1, 5), 4)
    copy.load_state_dict(detector.state_dict())
    assert copy.threshold == detector.threshold


def test_a_spike_in_a_sine_is_found():
    """The document's series: forecasts learned on its first part, the threshold on the next."""
    torch.manual_seed(0)
    series = torch.sin(torch.linspace(0, 100, 600))
    series[500] += 1.5
    model = Forecaster(1, 16)
    windows, targets = series_windows(series[:300], 12)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(model(windows), targets).backward()
        optimizer.step()
    detector = AnomalyDetector(model, 12)
    assert detector.fit_threshold(series[300:450], deviations=6.0) < 0.5
    found = detector(series)
    assert found[0] == 500
    assert found[-1] <= 512  # windows that have the spike in them


def test_windows_are_views():
    series = torch.arange(5.0)
    windows, targets = series_windows(series, 3)
    assert windows.squeeze(2).tolist() == [[0, 1, 2], [1, 2, 3]]
    assert targets.squeeze(1).tolist() == [3, 4]
    assert windows.data_ptr() == series.data_ptr()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Forecaster(0), ValueError, "input_dim"),
        (lambda: Forecaster(relative=1), TypeError, "relative"),
        (lambda: Forecaster()(torch.rand(2, 5)), ValueError, "windows must have shape"),
        (lambda: Forecaster()(torch.rand(2, 0, 1)), ValueError, "at least one step"),
        (lambda: AnomalyDetector(Forecaster(), 0), ValueError, "window_size"),
        (lambda: AnomalyDetector(Forecaster(), 5).errors(torch.rand(5)), ValueError, "longer than the window of 5"),
        (lambda: AnomalyDetector(Forecaster(), 5).errors(torch.rand(1, 9, 1)), ValueError, "series must have shape"),
        (lambda: AnomalyDetector(Forecaster(), 5).fit_threshold(torch.rand(9)), ValueError, "one of quantile and"),
        (
            lambda: AnomalyDetector(Forecaster(), 5).fit_threshold(torch.rand(9), quantile=95.0),
            ValueError,
            "quantile must be a number in",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
