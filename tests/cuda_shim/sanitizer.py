"""What a Python that loads a library under AddressSanitizer needs in its environment."""

from __future__ import annotations

import os
import shlex
import subprocess

_compiler = shlex.split(os.environ.get("CXX", "c++"))
_library = subprocess.run([*_compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)

# Python keeps memory until it ends, which is no leak of ours. Use of a stack after a return is not looked for: those of
# the fibres are used again and again.
ENVIRONMENT = {
    "LD_PRELOAD": _library.stdout.strip(),
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
}
