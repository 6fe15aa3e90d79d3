"""A library is compiled anew when, and only when, something that goes into it has changed."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.libraries import KEPT, digest, kept

SOURCES = ["csrc/library.cpp", "csrc/cuda/ops.cu", "csrc/cuda/device.cuh", "csrc/math/tanh.h"]
FOLDER = "cuda_shim"
SHIM = ["tests/cuda_shim/shim.h", "tests/cuda_shim/shim.cpp"]


@pytest.fixture
def root(tmp_path) -> Path:
    for name in (*SOURCES, *SHIM, "tests/cuda_shim/conftest.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", [*SOURCES, *SHIM])
def test_a_changed_source_has_another_digest(root, name):
    path = root / name
    before = digest(root, FOLDER, "c++", "-O2")
    assert digest(root, FOLDER, "c++", "-O2") == before
    path.write_text("changed")
    assert digest(root, FOLDER, "c++", "-O2") != before
    path.write_text(name)
    assert digest(root, FOLDER, "c++", "-O2") == before
    path.rename(path.with_name(f"other_{path.name}"))
    assert digest(root, FOLDER, "c++", "-O2") != before


def test_another_command_has_another_digest(root):
    commands = [(), ("c++",), ("c++", "-O1"), ("c++", "-O2"), ("c++ -O2",)]
    assert len({digest(root, FOLDER, *command) for command in commands}) == len(commands)


def test_a_new_source_has_another_digest(root):
    before = digest(root, FOLDER)
    (root / "tests/cuda_shim/conftest.py").write_text("no part of the library")
    assert digest(root, FOLDER) == before
    (root / "csrc/cuda/new.cuh").touch()
    assert digest(root, FOLDER) != before


def test_what_is_there_is_not_built_again(root):
    built = []

    def build(path: Path) -> None:
        built.append(path)
        path.write_text((root / SOURCES[0]).read_text())

    def library() -> str:
        return kept(root / "build", "shim", lambda: digest(root, FOLDER), build).read_text()

    assert [library(), library()] == [SOURCES[0]] * 2
    assert len(built) == 1
    (root / SOURCES[0]).write_text("changed")
    assert library() == "changed"
    (root / SOURCES[0]).write_text(SOURCES[0])
    assert library() == SOURCES[0]
    assert len(built) == 2


def test_a_source_edited_while_it_is_compiled(root):
    """What was read before the edit is not kept as what comes after it, nor the reverse."""
    edits = iter(["edited"])

    def build(path: Path) -> None:
        path.write_text((root / SOURCES[0]).read_text())
        for text in edits:
            (root / SOURCES[0]).write_text(text)

    library = kept(root / "build", "shim", lambda: digest(root, FOLDER), build)
    assert library.read_text() == "edited"
    assert library.name == f"shim-{digest(root, FOLDER)}.so"
    assert [path.name for path in sorted((root / "build").iterdir())] == [library.name, "shim.lock"]


def test_one_of_many_builds(tmp_path):
    built = []

    def build(path: Path) -> None:
        built.append(path)
        time.sleep(0.2)
        path.touch()

    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(lambda _: kept(tmp_path, "shim", lambda: "key", build), range(4)))
    assert len(built) == len(set(libraries)) == 1


def test_the_folder_does_not_grow(tmp_path):
    """What was used last stays, and so does what has another name."""
    other = kept(tmp_path, "other", lambda: "key", Path.touch)
    libraries = [kept(tmp_path, "shim", lambda key=key: key, Path.touch) for key in "abcd"[:KEPT]]
    for age, path in enumerate(libraries):
        os.utime(path, (age, age))
    (tmp_path / "shim-1.part").touch()
    again = kept(tmp_path, "shim", lambda: "a", Path.touch)
    new = kept(tmp_path, "shim", lambda: "new", Path.touch)
    assert set(tmp_path.glob("*-*")) == {other, again, new, *libraries[2:]}
