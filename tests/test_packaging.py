"""What an sdist brings, what a build takes and leaves out, and what an installed package says of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from hybridops.native.library import BUILD
from tests.processes import ROOT, copy_uncompiled, run_python

pytestmark = pytest.mark.slow

setuptools = pytest.importorskip("setuptools")

NOT_FOR_SDIST = {".gitignore", ".pre-commit-config.yaml"}
LIST_SOURCES = """
import runpy, sys
sys.modules["torch"] = None  # which what is in an sdist must not depend on
sys.argv = ["setup.py", "-q", "egg_info", "--egg-base", {folder!r}]
runpy.run_path("setup.py")
"""


def test_an_sdist_brings_what_the_checkout_has(tmp_path):
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no checkout, or no git")
    run_python(LIST_SOURCES.format(folder=str(tmp_path)), HYBRIDOPS_REQUIRE_NATIVE="0")
    brought = set((tmp_path / "hybridops.egg-info" / "SOURCES.txt").read_text().splitlines())
    tracked = set(subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines())
    assert {file for file in tracked - brought if not file.startswith(".github/")} == NOT_FOR_SDIST
    assert not [file for file in brought if file.endswith((".so", ".pyc"))]


@pytest.fixture
def sources(tmp_path) -> Path:
    """A copy of what a build reads."""
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "csrc").mkdir()
    return copy_uncompiled(tmp_path)


def built(sources: Path, **environment: str) -> Path:
    """The folder of what would be installed, but for the libraries."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "lib"],
        cwd=sources,
        env=os.environ | {"HYBRIDOPS_REQUIRE_NATIVE": "0"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sources / "lib"


HIDDEN = """
import importlib.util, runpy, setuptools
print(importlib.util.find_spec("torch"))
setuptools.setup = lambda **options: print(options["ext_modules"][0].name)
runpy.run_path("setup.py")
"""


def test_torch_is_found_where_pip_hides_it(tmp_path):
    """A build of pip's sees what it was made with, setuptools, and nothing else that is installed."""
    if Path(torch.__file__).parents[1] != Path(sysconfig.get_path("purelib")):
        pytest.skip("torch is not where pip installs")
    (tmp_path / "setuptools").symlink_to(Path(setuptools.__file__).parent)
    hide = "import sys\nsys.path = [path for path in sys.path if not path.endswith('-packages')]\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    assert run_python(HIDDEN, PYTHONPATH=str(tmp_path)).split() == ["None", "hybridops._C"]


SAY = "import hybridops; print(hybridops.__file__); print(hybridops.native.unavailable_reason())"


def test_what_a_build_left_out_and_why_is_said_after_pip_hid_it(sources):
    """Where torch is installed after it, or out of its sight."""
    hidden = sources / "hidden" / "torch"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no torch in sight')")
    lib = built(sources, PYTHONPATH=str(hidden.parent))
    file, said = run_python(SAY, root=lib).splitlines()
    assert file.startswith(str(lib))
    assert said == f"hybridops._C is not compiled (the build saw no torch: no torch in sight): {BUILD}"
    assert "pip install ." in BUILD
    assert not list((sources / "hybridops").glob("*.txt"))


def test_no_compiler_is_said_too(sources):
    _, said = run_python(SAY, root=built(sources, CXX="no-such-c++")).splitlines()
    assert said == f"hybridops._C is not compiled (the build found no C++ compiler: CXX=no-such-c++): {BUILD}"
    _, said = run_python(SAY, root=built(sources)).splitlines()  # built again, with one
    assert said == f"hybridops._C is not compiled: {BUILD}"


FLAGS = """
import runpy, setuptools
setuptools.setup = lambda **options: print(*options["ext_modules"][-1].extra_compile_args{which})
runpy.run_path("setup.py")
"""


@pytest.mark.parametrize("compiler", ["c++", "nvcc"])
def test_sources_are_compiled_as_c_plus_plus_20(compiler):
    """Torch 2.10 and 2.11 would say c++17, if nothing was said."""
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    which, cuda = ("['nvcc']", "1") if compiler == "nvcc" and torch.version.cuda is None else ("", "0")
    flags = run_python(FLAGS.format(which=which), HYBRIDOPS_CUDA=cuda).split()
    assert [flag for flag in flags if flag.startswith("-std")] == ["-std=c++20"]
