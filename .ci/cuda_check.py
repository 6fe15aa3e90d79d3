"""Compile and link hybridops._C_cuda, with or without a GPU, and say what each kernel needs; fail if one spills.

Needs nvcc and ninja. The library goes to build/cuda, beside what is in use. Arguments: architectures, by default those
of a release. Per kernel it prints registers a thread and bytes of shared memory a block. A kernel must do without local
memory, which is a thread's own part of the GPU's main memory: there goes what does not fit into registers, and what is
indexed by something that is known only when it runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

BUILD = "build/cuda"
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def build(archs: list[str]) -> str:
    """What the compiler said."""
    shutil.rmtree(BUILD, ignore_errors=True)
    settings = {
        "HYBRIDOPS_CUDA": "only", "TORCH_CUDA_ARCH_LIST": ";".join(archs), "NVCC_APPEND_FLAGS": "-Xptxas=-v"
    }  # fmt: skip
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", BUILD, "--build-temp", BUILD]
    finished = subprocess.run(
        command, env=os.environ | settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if finished.returncode != 0:
        sys.exit(finished.stdout)
    return finished.stdout


def readable(symbols: list[str]) -> list[str]:
    """Of void hybridops::entry<hybridops::Kernel<...>>(...) what is between the return type and the arguments."""
    shown = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    kernels = [re.search(r"hybridops::(\w+<.*?>)\(", line)[1] for line in shown.splitlines()]
    return [re.sub(r"(hybridops|c10|torch|headeronly)::|\s(?=>)", "", kernel) for kernel in kernels]


log = build(sys.argv[1:] or ["8.0", "9.0", "10.0"])
kernels = [match.groupdict(default="0") for match in KERNEL.finditer(log)]
if not kernels:
    sys.exit(f"{log}\nno kernel was compiled")
spilling = 0
for name, kernel in sorted(zip(readable([k["name"] for k in kernels]), kernels, strict=True), key=lambda pair: pair[0]):
    local = any(int(kernel[kind]) for kind in ("stack", "stores", "loads"))
    spilling += local
    print(f"{kernel['arch']:8}{kernel['registers']:>3} registers {kernel['shared']:>6} B shared  {name}", end="")
    print(f"  LOCAL MEMORY {kernel['stack']} B, spilled {kernel['stores']} B" if local else "")
print(f"{len(kernels)} kernels, {spilling} with local memory")
sys.exit(spilling > 0)
