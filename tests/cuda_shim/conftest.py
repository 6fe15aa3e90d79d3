"""The kernels of csrc/cuda compiled for the CPU."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from tests.libraries import digest, kept
from tests.processes import ROOT

# As on a GPU, a product and a sum are one instruction. Optimised, or the fibres would take minutes.
FLAGS = [
    "-std=c++20", "-O2", "-g1", "-march=native", "-ffp-contract=fast", "-Wall", "-Werror", "-Wno-unknown-pragmas",
    "-fPIC", "-shared", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020A000000000000",
]  # fmt: skip


def shim_library(name: str, *options: str) -> Path:
    compiler = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS, *options]
    include = [f"-I{path}" for path in (*cpp_extension.include_paths(), ROOT / "tests" / "cuda_shim")]
    link = [f"-L{path}" for path in cpp_extension.library_paths()]
    command = [*compiler, *include, str(ROOT / "tests" / "cuda_shim" / "shim.cpp"), *link, "-ltorch_cpu", "-ltorch"]

    def key() -> str:
        # The macros say what -march=native is on this machine.
        about = [run(*compiler, "--version"), run(*compiler, "-dM", "-E", "-x", "c++", os.devnull)]
        return digest(ROOT, "cuda_shim", *command, *about, torch.__version__)

    return kept(ROOT / "build" / "cuda_shim", name, key, lambda library: run(*command, "-o", str(library)))


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "_shims" in item.fixturenames:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def _shims() -> Iterator[tuple[Future[Path], Future[Path]]]:
    """Both at once: most runs want both, and a compiler takes one core."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit(shim_library, "shim"), pool.submit(shim_library, "sanitized", "-fsanitize=address", "-O1")


@pytest.fixture(scope="session")
def shim(_shims) -> Path:
    return _shims[0].result()


@pytest.fixture(scope="session")
def sanitized_shim(_shims) -> Path:
    return _shims[1].result()
