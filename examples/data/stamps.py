"""Stamps of Tux Paint: some 800 drawings and photographs, each with a line that says what it is, as Debian packages
them (GPL-2 and others, see the package: read, not passed on).

    "A beaver."   "A grey wolf howling."   "The sign for the letter U in American Sign Language."
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.data.cache import cached

STAMPS = Path("/usr/share/tuxpaint/stamps")
INSTALL = "apt-get install tuxpaint-stamps-default"
SIZE = 224  # pixels a side


@dataclass(frozen=True)
class Stamps:
    images: Tensor  # uint8 (N, 3, SIZE, SIZE), on white, as wide as high
    captions: list[str]  # words in lower case


def are_here() -> bool:
    return STAMPS.is_dir()


def load() -> Stamps:
    """Those with a line, by their path."""
    return Stamps(*cached("stamps", _read))


def _read() -> tuple[Tensor, list[str]]:
    if not are_here():
        raise ModuleNotFoundError(f"the stamps come with a package: {INSTALL}")
    images, captions = [], []
    for path in sorted(STAMPS.rglob("*.png")):
        text = path.with_suffix(".txt")
        caption = words(text.read_text(encoding="utf-8", errors="replace").split("\n")[0]) if text.exists() else ""
        if caption:
            images.append(_square(Image.open(path)))
            captions.append(caption)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), captions


def words(line: str) -> str:
    """The first sentence, in lower case, without its marks."""
    return " ".join(re.findall(r"\w+(?:['’]\w+)*", re.split(r"[.!;:]\s|[.!;:]$", line.lower())[0]))


def _square(image: Image.Image) -> np.ndarray:
    image = image.convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
