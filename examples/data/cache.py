"""What takes long to read is kept in $HYBRIDOPS_CACHE, by default ~/.cache/hybridops."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def cached(name: str, make: Callable[[], T]) -> T:
    """What `make` gives: lists, tuples, dicts, numbers, strings and tensors, from the file `name` if it is there."""
    folder = Path(os.environ.get("HYBRIDOPS_CACHE") or Path.home() / ".cache" / "hybridops")
    path = folder / f"{name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    made = make()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")  # never half a file, whatever else runs
    torch.save(made, part)
    part.replace(path)
    return made
