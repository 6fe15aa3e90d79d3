from __future__ import annotations

import pytest
import torch

from hybridops.evaluation import attention_figure, resize_attention


def test_a_place_covers_its_part_of_the_image():
    weights = torch.eye(6)[:5]  # each word looks at one place of 2×3
    maps = resize_attention(weights, (2, 3), (40, 60))
    assert maps.shape == (5, 40, 60)
    for word, heat in enumerate(maps):
        row, column = divmod(word, 3)
        assert heat[20 * row + 10, 20 * column + 10] > 0.95
        assert heat[20 * row : 20 * row + 20, 20 * column : 20 * column + 20].sum() > 0.5 * heat.sum()
    assert torch.allclose(resize_attention(torch.full((1, 6), 1 / 6), (2, 3), (7, 5)), torch.full((1, 7, 5), 1 / 6))


@pytest.mark.parametrize("channels", [1, 3])
def test_one_picture_a_word(channels, tmp_path):
    pytest.importorskip("matplotlib")
    image = torch.rand(channels, 12, 16)
    weights = torch.rand(4, 6).requires_grad_()
    figure = attention_figure(image, ["a", "red", "circle", "moves"], weights, (2, 3), columns=3)
    first, *others = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in others] == ["a", "red", "circle", "moves"]
    assert torch.equal(torch.tensor(first.images[0].get_array()), image.expand(3, -1, -1).permute(1, 2, 0))
    heat = resize_attention(weights.detach(), (2, 3), (12, 16))
    assert all(torch.equal(torch.tensor(axes.images[1].get_array()), h) for axes, h in zip(others, heat, strict=True))
    figure.savefig(tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("image", "words", "weights", "message"),
    [
        (torch.rand(2, 4, 4), ["a"], torch.rand(1, 6), r"image must have 1 or 3 channels, got shape \(2, 4, 4\)"),
        (torch.rand(3, 4, 4), ["a", "b"], torch.rand(1, 6), r"weights must have shape \(2, places\), got \(1, 6\)"),
        (torch.rand(3, 4, 4), ["a"], torch.rand(1, 5), r"weights must have shape \(S, 6\), got \(1, 5\)"),
        (torch.rand(4, 4), ["a"], torch.rand(1, 6), r"image must have shape \(C, Y, X\), got \(4, 4\)"),
    ],
)
def test_bad_arguments_are_named(image, words, weights, message):
    with pytest.raises(ValueError, match=message):
        attention_figure(image, words, weights, (2, 3))
