"""What a Python that loads a library under AddressSanitizer needs in its environment."""

from __future__ import annotations

import os
import shlex
import subprocess


def environment() -> dict[str, str]:
    """Python keeps memory until it ends, which is no leak of ours. Use of a stack after a return is not looked for:
    those of the fibres are used again and again.
    """
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-print-file-name=libasan.so"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
