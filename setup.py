"""Builds the compiled back ends; all else about the package stands in pyproject.toml.

    hybridops._C         csrc/library.cpp csrc/cpu/*.cpp    wherever there is a C++ compiler
    hybridops._C_cuda    csrc/cuda/*.cu                     where torch is built for CUDA and nvcc is found

Two libraries, because a torch without CUDA cannot load the second. Both keep to LibTorch's stable ABI: one binary for
every torch from 2.10 and every Python from 3.10. The environment decides the rest:

    HYBRIDOPS_REQUIRE_NATIVE=1    fail where hybridops._C cannot be built, instead of warning and going on without it
    HYBRIDOPS_CUDA=0 | 1 | only   never build hybridops._C_cuda | build it or fail, on any torch | build nothing else
    HYBRIDOPS_EMULATE_AVX512=1    for tests: the AVX-512 kernels in AVX2 instructions (csrc/cpu/isa.h)
    HYBRIDOPS_SANITIZE=address,undefined    for tests: what GCC's and Clang's -fsanitize= takes (make sanitize)
    TORCH_CUDA_ARCH_LIST, CUDA_HOME, CC, CXX, MAX_JOBS        as in any torch extension; after changing one: --force

Pip hides a warning of a build that goes on. So what is installed without hybridops._C brings the reason along, in
hybridops/left_out.txt, and the package says it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.modified import newer_group

# Pip builds in an environment of its own, out of sight of the one it installs into: torch is in that.
sys.path.append(sysconfig.get_path("purelib"))
try:
    import torch
    from torch.utils import cpp_extension
except (ImportError, OSError) as error:  # OSError: torch is there, but one of its libraries is not
    torch, torch_error = None, error

# 0x02_0A: the stable ABI of torch 2.10. C++20 for std::atomic::wait: torch 2.10 and 2.11 would add -std=c++17, but none
# adds one where there is one already.
COMMON_FLAGS = ["-DTORCH_TARGET_VERSION=0x020A000000000000", "-std=c++20"]
# Short of -ffast-math: inf and NaN keep their meaning. All that is given up is errno and the floating-point exception
# flags, which nothing here reads and which keep loops with a sqrt, a division or a select from being vectorised.
# -g0: Python's own flags bring -g, which adds a third to the compile time and 8 MB to the library.
CXX_FLAGS = [*COMMON_FLAGS, "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall"]
if os.environ.get("HYBRIDOPS_EMULATE_AVX512") == "1":
    # a vector of two registers is passed as such, and no other file is concerned
    CXX_FLAGS += ["-DHYBRIDOPS_EMULATE_AVX512", "-Wno-psabi"]
SANITIZE = os.environ.get("HYBRIDOPS_SANITIZE")
SANITIZE_FLAGS = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
if SANITIZE:  # with lines in the stacks; -O0, because from -O1 on g++ 12 takes over ten minutes and two gigabytes
    CXX_FLAGS += [*SANITIZE_FLAGS, "-O0", "-g1", "-fno-omit-frame-pointer"]
RELEASE_ARCHS = "8.0;9.0;10.0+PTX"


def csrc(*patterns: str) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in Path("csrc").glob(pattern))


def without(part: str, demand: str, reason: str) -> list[Extension]:
    """No extensions and a warning, unless the environment variable `demand` insists on them."""
    if os.environ.get(demand) in ("1", "only"):
        sys.exit(f"hybridops: {demand}={os.environ[demand]}, but {reason}")
    print(f"hybridops: warning: {reason}; building without {part}", file=sys.stderr)
    return []


def missing_compiler() -> str | None:
    """The first of CC and CXX, as setuptools will resolve them, that is not there; None when both are."""
    for variable, default in ("CC", "cc"), ("CXX", "c++"):
        command = os.environ.get(variable) or sysconfig.get_config_var(variable) or default
        if shutil.which(shlex.split(command)[0]) is None:
            return f"{variable}={command}"
    return None


def find_cuda_home() -> Path | None:
    """The toolkit. /usr/local/cuda goes before the PATH, where nvcc may be a wrapper with no toolkit around it."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    candidates = [named] if named else ["/usr/local/cuda", on_path and Path(on_path).resolve().parents[1]]
    return next((Path(home) for home in candidates if home and (Path(home) / "bin" / "nvcc").exists()), None)


def nvcc_major(home: Path) -> str:
    banner = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+)", banner)[1]


def extension(name: str, sources: list[str], headers: list[str], **options) -> Extension:
    """A CppExtension, for CUDA sources too: a CUDAExtension also links libraries that a torch without CUDA lacks."""
    depends = [*headers, "setup.py"]
    return cpp_extension.CppExtension(f"hybridops.{name}", sources, depends=depends, py_limited_api=True, **options)


def cpu_extensions() -> list[Extension]:
    sources, headers = csrc("library.cpp", "cpu/*.cpp"), csrc("*.h", "math/*.h", "cpu/*.h")
    return [extension("_C", sources, headers, extra_compile_args=CXX_FLAGS, extra_link_args=SANITIZE_FLAGS)]


def cuda_extensions() -> list[Extension]:
    sources, headers = csrc("cuda/*.cu"), csrc("*.h", "math/*.h", "cuda/*.cuh")
    wish = os.environ.get("HYBRIDOPS_CUDA")
    if not sources or wish == "0" or (torch.version.cuda is None and wish not in ("1", "only")):
        return []
    skip = partial(without, "the native CUDA ops", "HYBRIDOPS_CUDA")
    home = find_cuda_home()
    if home is None:
        return skip("nvcc was not found (CUDA_HOME says where to look)")
    if torch.version.cuda and torch.version.cuda.split(".")[0] != nvcc_major(home):
        return skip(f"torch is built for CUDA {torch.version.cuda}, and nvcc is of CUDA {nvcc_major(home)}")

    cpp_extension.CUDA_HOME = str(home)  # a CPU torch leaves it None and does not look at the environment
    if not torch.cuda.is_available():  # no GPU to ask for its architecture
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", RELEASE_ARCHS)
    return [
        extension(
            "_C_cuda",
            sources,
            headers,
            include_dirs=[str(home / "include")],
            library_dirs=[str(home / "lib64"), str(home / "lib")],
            libraries=["cudart"],
            extra_compile_args={
                "cxx": [*CXX_FLAGS, "-DUSE_CUDA"],
                # relaxed: kernels may call what C++ can evaluate when compiling, such as numeric_limits
                "nvcc": [*COMMON_FLAGS, "-DUSE_CUDA", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-Wall"],
            },
            # libtorch brings libtorch_cuda but defines nothing itself, so that Debian's g++ would leave it out.
            extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
        )
    ]


def why_left_out() -> str | None:
    """Why hybridops._C cannot be built here; None if it can."""
    if torch is None:
        return f"the build saw no torch: {torch_error}"
    if torch.__version__ < (2, 10):
        return f"torch {torch.__version__}, which it was installed with, is older than 2.10"
    if missing := missing_compiler():
        return f"the build found no C++ compiler: {missing}"
    return None


def native_extensions() -> list[Extension]:
    if left_out:
        hint = "" if torch else "; if torch is installed, the build needs --no-build-isolation"
        part = "the native ops: the slower back ends still work"
        return without(part, "HYBRIDOPS_REQUIRE_NATIVE", left_out + hint)
    return ([] if os.environ.get("HYBRIDOPS_CUDA") == "only" else cpu_extensions()) + cuda_extensions()


def build_ext() -> type:
    class BuildExt(cpp_extension.BuildExtension):
        """Leaves alone what is up to date: torch's own command links anew every time where ninja is there."""

        def finalize_options(self) -> None:
            forced = self.force
            super().finalize_options()
            self.force = forced

        def run(self) -> None:
            if not (self.editable_mode and all(map(self.is_in_place, self.extensions))):
                super().run()

        def is_in_place(self, extension: Extension) -> bool:
            """Whether the checkout has it, as new as its sources: an editable install would compile it anew."""
            return not newer_group([*extension.sources, *extension.depends], self.get_ext_fullpath(extension.name))

        def build_extensions(self) -> None:
            if torch.version.cuda is None:  # then torch does not tell ninja which headers a .cu includes
                shutil.rmtree(Path(self.build_temp, "csrc", "cuda"), ignore_errors=True)
            super().build_extensions()

    return BuildExt


class BuildPy(build_py):
    """Puts the reason into what is installed, and nothing into a checkout."""

    def run(self) -> None:
        super().run()
        note = Path(self.build_lib, "hybridops", "left_out.txt")
        if left_out and not self.editable_mode:
            note.write_text(left_out)
        else:
            note.unlink(missing_ok=True)


# The ninja of an environment that is used without being activated
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])

left_out = why_left_out()
extensions = native_extensions()
setup(
    license="BSD-3-Clause",  # here, because pyproject.toml's `license` is spelt differently before setuptools 77
    ext_modules=extensions,
    cmdclass={"build_py": BuildPy} | ({"build_ext": build_ext()} if extensions else {}),
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
)
