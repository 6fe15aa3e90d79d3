"""The kernels of csrc/cuda compiled for the CPU."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from tests.processes import ROOT

# As on a GPU, a product and a sum are one instruction. Optimised, or the fibres would take minutes.
FLAGS = [
    "-std=c++20", "-O2", "-g1", "-march=native", "-ffp-contract=fast", "-Wall", "-Werror", "-Wno-unknown-pragmas",
    "-fPIC", "-shared", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020A000000000000",
]  # fmt: skip


def compile_shim(library: Path, *options: str) -> Path:
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    include = [f"-I{path}" for path in (*cpp_extension.include_paths(), ROOT / "tests" / "cuda_shim")]
    link = [f"-L{path}" for path in cpp_extension.library_paths()]
    source = ROOT / "tests" / "cuda_shim" / "shim.cpp"
    command = [*compiler, *FLAGS, *options, *include, str(source), "-o", str(library), *link, "-ltorch_cpu", "-ltorch"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="session")
def _shims(tmp_path_factory) -> Iterator[tuple[Future[Path], Future[Path]]]:
    """Both at once: most runs want both, and a compiler takes one core."""
    folder = tmp_path_factory.mktemp("shim")
    with ThreadPoolExecutor() as pool:
        yield (
            pool.submit(compile_shim, folder / "shim.so"),
            pool.submit(compile_shim, folder / "sanitized.so", "-fsanitize=address", "-O1"),
        )


@pytest.fixture(scope="session")
def shim(_shims) -> Path:
    return _shims[0].result()


@pytest.fixture(scope="session")
def sanitized_shim(_shims) -> Path:
    return _shims[1].result()
