"""Compiled libraries that are kept in build/ from one run of the tests to the next: one takes up to a minute."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

KEPT = 4  # of each name; more than one, because another run may still load what it has found


def digest(root: Path, tests: str, *others: str) -> str:
    """A name for what a library is made of: csrc, the C++ in the folder `tests`, and all that is given besides."""
    folder = root / "tests" / tests
    paths = [*(root / "csrc").rglob("*"), *folder.glob("*.h"), *folder.glob("*.cpp")]
    sources = [(str(path.relative_to(root)), path.read_bytes()) for path in sorted(paths) if path.is_file()]
    return hashlib.sha256(repr((sources, others)).encode()).hexdigest()[:20]


def kept(folder: Path, name: str, key: Callable[[], str], build: Callable[[Path], None]) -> Path:
    """The library of this name whose sources have this key; built where it is not in the folder yet.

    Of those who want it at once, the first builds it and the others wait. The lock goes with the process that has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        while not (library := folder / f"{name}-{key()}.so").exists():
            part = folder / f"{name}-{os.getpid()}.part"
            build(part)
            if library == folder / f"{name}-{key()}.so":  # or a source was edited meanwhile: of which state is it?
                os.replace(part, library)
        os.utime(library)
        old = sorted(folder.glob(f"{name}-*.so"), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]
        for path in [*old, *folder.glob(f"{name}-*.part")]:  # parts: of builds that were cut short
            path.unlink()
    return library
