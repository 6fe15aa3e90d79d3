"""Forecasts of time series, and anomalies as what was not forecast."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridops.checks import accumulation_dtype, check_bool, check_number, check_positive_int, check_shape
from hybridops.layers.encoders import RNNEncoder


class Forecaster(nn.Module):
    """An LSTM over a window of a series, a linear layer that forecasts the next step.

        x̂_{t+1} = W h_t + b             h_t = LSTM(x_{t-W+1}, ..., x_t)
        relative: x̂_{t+1} = x_t + W h_t + b     h_t = LSTM(x_{t-W+1} - x_t, ..., 0), so that the level does not matter

    Args:
        input_dim: channels C of the series.
        hidden_dim, num_layers: of the LSTM.
        relative: whether the last step's value is taken from the window and added to the forecast.
        dropout: between layers, in training.

    Shape: windows (B, W, C), W at least 1; gives (B, C).

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        input_dim: int = 1,
        hidden_dim: int = 50,
        num_layers: int = 1,
        *,
        relative: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = RNNEncoder(input_dim, hidden_dim, num_layers, dropout=dropout)
        self.proj = nn.Linear(hidden_dim, input_dim)
        self.relative = check_bool("relative", relative)

    def forward(self, windows: Tensor) -> Tensor:
        check_shape("windows", windows, ("B", "W", self.encoder.input_dim))
        if windows.shape[1] == 0:
            raise ValueError(f"windows must have at least one step, got shape {tuple(windows.shape)}")
        last = windows[:, -1:]
        pooled = self.encoder(windows - last if self.relative else windows).pooled
        forecast: Tensor = self.proj(pooled)
        return forecast + last[:, 0] if self.relative else forecast


class AnomalyDetector(nn.Module):
    """Steps of a series that a forecast model did not expect (Malhotra et al., ESANN 2015).

        error_t = mean over channels |x_t - model(x_{t-W} ... x_{t-1})|          anomaly: error_t > threshold

    Args:
        model: windows (B, W, C) -> the next step (B, C), trained on a series without anomalies.
        window_size: W.
        batch_size: windows that the model is given at a time.

    The threshold comes from a validation series without anomalies, or from its owner: `threshold` is a buffer, infinite
    at first, and part of the state_dict.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    threshold: Tensor

    def __init__(self, model: nn.Module, window_size: int, *, batch_size: int = 1024) -> None:
        super().__init__()
        self.model = model
        self.window_size = check_positive_int("window_size", window_size)
        self.batch_size = check_positive_int("batch_size", batch_size)
        self.register_buffer("threshold", torch.tensor(torch.inf))

    @torch.no_grad()
    def errors(self, series: Tensor) -> Tensor:
        """Of a series (T,) or (T, C): (T - W,), of the steps from W on."""
        windows, targets = series_windows(series, self.window_size)
        parts = zip(windows.split(self.batch_size), targets.split(self.batch_size), strict=True)
        errors = [(self.model(x) - y).abs().mean(1) for x, y in parts]
        return torch.cat(errors)

    def fit_threshold(self, series: Tensor, *, quantile: float | None = None, deviations: float | None = None) -> float:
        """Set the threshold by the errors of a validation series: their quantile, or their mean and so many standard
        deviations above it. One of the two is given.
        """
        if (quantile is None) == (deviations is None):
            raise ValueError(f"one of quantile and deviations must be given, got {quantile} and {deviations}")
        errors = self.errors(series)
        errors = errors.to(accumulation_dtype(errors.dtype))  # there is no quantile in half precision
        if quantile is not None:
            threshold = errors.quantile(check_number("quantile", quantile, 0.0, 1.0))
        else:
            assert deviations is not None
            threshold = errors.mean() + check_number("deviations", deviations) * errors.std(correction=0)
        self.threshold.copy_(threshold)
        return float(self.threshold)

    def forward(self, series: Tensor) -> Tensor:
        """The steps of a series (T,) or (T, C) that are anomalies, int64 (N,), in order; the first W never are."""
        return (self.errors(series) > self.threshold).nonzero().squeeze(1) + self.window_size


def series_windows(series: Tensor, window_size: int) -> tuple[Tensor, Tensor]:
    """Views of a series (T,) or (T, C): all windows (T - W, W, C), and the step that follows each (T - W, C)."""
    if isinstance(series, Tensor) and series.dim() == 1:
        series = series[:, None]
    check_shape("series", series, ("T", "C"))
    if len(series) <= window_size:
        raise ValueError(f"series must be longer than the window of {window_size} steps, got {len(series)}")
    return series.unfold(0, window_size, 1)[:-1].transpose(1, 2), series[window_size:]
