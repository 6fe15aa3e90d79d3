"""Stamps: what is read of a folder of pictures with lines beside them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

from examples.data import stamps


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two stamps with a line, in Tux Paint's form, and one without."""
    monkeypatch.setenv("HYBRIDOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stamps, "STAMPS", tmp_path / "stamps")
    for name, colour, size in (
        ("b/red", (255, 0, 0, 255), (40, 20)),
        ("a/clear", (0, 0, 0, 0), (8, 8)),
        ("c", 0, (4, 4)),
    ):
        path = tmp_path / "stamps" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", size, colour).save(path)
    (tmp_path / "stamps/b/red.txt").write_text(
        "A Red brick. It is wide.\nde.utf8=Ein roter Ziegel.\n", encoding="utf-8"
    )
    (tmp_path / "stamps/a/clear.txt").write_text("Nothing!\n", encoding="utf-8")


@pytest.mark.usefixtures("folder")
def test_load():
    found = stamps.load()
    assert found.captions == ["nothing", "a red brick"]
    assert found.images.shape == (2, 3, stamps.SIZE, stamps.SIZE)
    assert found.images.dtype == torch.uint8
    assert (found.images[0] == 255).all()  # on white
    centre, corner = found.images[1, :, 112, 112], found.images[1, :, 2, 2]
    assert centre.tolist() == [255, 0, 0]
    assert corner.tolist() == [255, 255, 255]  # above a picture that is wider than high


def test_words():
    assert stamps.words("A “pattypan” squash.") == "a pattypan squash"
    assert stamps.words("Pawn. Can only move forward.") == "pawn"
    assert stamps.words("A US 10 cent piece ($.10) called a dime.") == "a us 10 cent piece 10 called a dime"
    assert stamps.words("Jack-o'-lantern!") == "jack o lantern"


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDOPS_CACHE", str(tmp_path))
    monkeypatch.setattr(stamps, "STAMPS", tmp_path / "nowhere")
    with pytest.raises(ModuleNotFoundError, match="apt-get install tuxpaint-stamps-default"):
        stamps.load()
