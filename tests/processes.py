"""Python in a process of its own, for what is decided once in a process: environment variables, what can be loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_python(code: str, *, root: Path = ROOT, **environment: str) -> str:
    """What the code prints, with the package as it stands in `root`; a failure shows what it said."""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)} | environment,
        capture_output=True,
        text=True,
        timeout=300,  # a hang is a failure, not a longer wait
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def copy_uncompiled(folder: Path) -> Path:
    """The folder, with a copy of the package in it that is without what was compiled."""
    shutil.copytree(ROOT / "hybridops", folder / "hybridops", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    return folder
