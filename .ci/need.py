"""Check that this interpreter has the named distributions; say which are missing, and how to get them.

The Makefile never installs into an environment it did not make, so it asks here first.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version


def installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


missing = [name for name in sys.argv[1:] if not installed(name)]
if missing:
    names = " ".join(missing)
    sys.exit(f"{sys.executable} lacks: {names}\ninstall with: {sys.executable} -m pip install {names}")
