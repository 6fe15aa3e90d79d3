"""Anomalies as what a forecast did not expect (document 004), on two labelled series.

An LSTM forecasts each step from the ones before it, trained on the anomaly-free start. In half of the training windows
one step is disturbed, so that forecasts just behind an anomaly, whose windows hold it, are good again: else their
errors would look like anomalies too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.data import anomalies
from examples.data.anomalies import LabelledSeries
from examples.figures import save_figure
from examples.systems.table import Options, Row, Speed
from examples.training import Plan, fit
from hybridops.models import AnomalyDetector, Forecaster
from hybridops.models.forecasting import series_windows

WINDOW = 16
DISTURBANCE = 4.0  # standard deviation of what is added to a step, in that of the series
TITLES = {"ucr": "UCR 135, blood pressure", "yahoo": "Yahoo S5"}


def run(options: Options) -> list[Row]:
    rows, found = [], {}
    for name, title in TITLES.items():
        labelled = anomalies.load(name)
        values, detector = train(labelled, options, title)
        end = labelled.validation_end
        errors = detector.errors(values[end - WINDOW :]).numpy()
        truth = labelled.is_anomaly[end:].numpy()
        change = values[end:].sub(values[end - 1 : -1]).abs().numpy()
        precision, baseline = (average_precision_score(truth, score) for score in (errors, change))
        flagged = detector(values[end - WINDOW :]) - WINDOW
        right = int(truth[flagged].sum())
        rows.append(
            Row(
                "Forecaster", title, "average precision", precision, baseline, "|difference|", precision >= baseline,
                f"above the threshold: {len(flagged)} steps, {right} of the {truth.sum()} anomalies",
            )
        )  # fmt: skip
        if name == "ucr":  # the archive's own question: where is its one anomaly?
            hit = bool(truth[errors.argmax()])
            rows.append(Row("Forecaster", title, "largest error is in the anomaly", float(hit), None, "yes", hit))
        found[title] = labelled.values[end:].numpy(), errors, truth, float(detector.threshold)
    draw(found, options)
    return rows


def speed(options: Options) -> list[Speed]:
    """Nothing in it is fused."""
    return []


def train(labelled: LabelledSeries, options: Options, title: str) -> tuple[Tensor, AnomalyDetector]:
    """The whole series in units of its start's mean and deviation, and a detector with its threshold."""
    start = labelled.values[: labelled.train_end]
    values = (labelled.values - start.mean()) / start.std()
    windows, targets = series_windows(values[: labelled.train_end], WINDOW)
    validation = values[labelled.train_end - WINDOW : labelled.validation_end]
    torch.manual_seed(options.seed)
    detector = AnomalyDetector(Forecaster(1, 32, relative=True), WINDOW)
    plan = Plan(2 if options.smoke else 60, batch_size=32, learning_rate=1e-2, seed=options.seed)
    fit(
        detector.model, TensorDataset(windows, targets), loss, lambda _: -detector.errors(validation).mean().item(),
        plan, collate=disturbed, title=title,
    )  # fmt: skip
    detector.fit_threshold(validation, deviations=6.0)
    return values, detector


def disturbed(examples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch, half of its windows with noise on one step."""
    windows, targets = (torch.stack(parts) for parts in zip(*examples, strict=True))
    noise = DISTURBANCE * torch.randn(len(windows)) * (torch.rand(len(windows)) < 0.5)
    step = F.one_hot(torch.randint(WINDOW, (len(windows),)), WINDOW)
    return windows + (noise[:, None] * step)[..., None], targets


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    windows, targets = batch
    return F.l1_loss(model(windows), targets)


def draw(found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]], options: Options) -> None:
    """Each series with its anomalies, and the errors with the threshold."""
    with save_figure(options.out / "anomalies.png", rows=2, columns=len(found), size=5) as axes:
        for (above, below), (title, (values, errors, truth, threshold)) in zip(axes.T, found.items(), strict=True):
            steps = np.arange(len(values))
            above.plot(steps, values, linewidth=0.7)
            above.plot(steps[truth], values[truth], "r.")
            above.set(title=title, ylabel="value; anomalies red")
            below.plot(steps, errors, linewidth=0.7)
            below.axhline(threshold, color="gray", linestyle="--")
            below.set(xlabel="step of the test", ylabel="error of the forecast")
