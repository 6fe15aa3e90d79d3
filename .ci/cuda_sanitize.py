"""Run tests of the compiled ops on a GPU under compute-sanitizer: memcheck and racecheck, on our own kernels alone.

Needs a GPU, hybridops._C_cuda, and compute-sanitizer, which is part of the CUDA toolkit
(https://docs.nvidia.com/compute-sanitizer). Arguments go to pytest in place of the tests below.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import torch

from hybridops import native

# Every kernel, with sizes that are no multiples of its tiles
WHICH = "(tiles and not large_batch) or queries_and_keys or dtypes or masks or kernels or channels or long_rows"
TESTS = ["tests/functional", "-k", f"native-cuda and ({WHICH})"]


def sanitizer() -> str:
    if not torch.cuda.is_available():
        sys.exit("compute-sanitizer needs a GPU: torch sees none")
    if reason := native.unavailable_reason("cuda"):
        sys.exit(reason)
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")
    return found or sys.exit(
        f"compute-sanitizer is neither on the PATH nor in {home}/bin: CUDA_HOME says where to look"
    )


def passes(command: list[str]) -> bool:
    # each tensor an allocation of its own: in PyTorch's pool a read behind the end of one is within another
    return subprocess.run(command, env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}).returncode == 0


checked = [sanitizer(), "--error-exitcode", "1", "--kernel-name", "kns=hybridops", "--tool"]
tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(sys.argv[1:] or TESTS)]
failed = [tool for tool in ("memcheck", "racecheck") if not passes([*checked, tool, *tests])]
sys.exit(f"compute-sanitizer failed: {', '.join(failed)}" if failed else 0)
