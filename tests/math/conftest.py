"""csrc/math and the vectors of csrc/cpu/simd.h compiled for the tests alone, as a module on NumPy arrays."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils import cpp_extension

from tests.libraries import digest, kept
from tests.processes import ROOT

NAME = "hybridops_math"
# The optimisation of setup.py, so that the functions are rounded as the compiled ops round them.
FLAGS = [
    "-std=c++20", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fPIC", "-shared",
    "-Wall", "-Werror",
]  # fmt: skip
KINDS = ["scalar", "portable", "avx2", "avx512"]


def compile_module(pybind11_include: str, pybind11_version: str) -> Path:
    """Some seconds, once for each version of the sources and the compiler; of several processes one does it."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler: {compiler[0]}")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    folders = (pybind11_include, sysconfig.get_path("include"), *cpp_extension.include_paths())
    include = [f"-I{path}" for path in folders]
    command = [*compiler, *FLAGS, *include, str(ROOT / "tests" / "math" / "module.cpp")]

    def key() -> str:
        return digest(ROOT, "math", version, *command, pybind11_version, torch.__version__)

    def build(library: Path) -> None:
        subprocess.run([*command, "-o", str(library)], check=True)

    return kept(ROOT / "build" / "math", NAME, key, build)


@pytest.fixture(scope="session")
def compiled() -> ModuleType:
    pybind11 = pytest.importorskip("pybind11")
    library = compile_module(pybind11.get_include(), pybind11.__version__)
    spec = importlib.util.spec_from_file_location(NAME, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions_of(compiled: ModuleType, kind: str) -> ModuleType:
    if not hasattr(compiled, kind):
        pytest.skip(f"this processor has no {kind}")
    return getattr(compiled, kind)


@pytest.fixture(scope="session", params=KINDS)
def numbers(request, compiled) -> ModuleType:
    """The functions for one kind of number: plain ones, or vectors of one instruction set."""
    return functions_of(compiled, request.param)


@pytest.fixture(scope="session", params=KINDS[1:])
def vectors(request, compiled) -> ModuleType:
    """The functions for the vectors of one instruction set."""
    return functions_of(compiled, request.param)
