"""What the commands need of the repository and a wheel does not bring."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def has(file: str) -> bool:
    return (ROOT / file).exists()


def need(file: str) -> None:
    """Exit with a message unless this package stands in a checkout that has this file."""
    if not has(file):
        folder = file.split("/")[0]
        sys.exit(f"{ROOT / file} is not here: {folder}/ is not part of the installed package, run this in a checkout")
