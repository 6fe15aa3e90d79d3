"""VisualQuestionAnswering: shapes, what may not matter, and that it learns what a sum of the two cannot express."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridops import use_backend
from hybridops.layers import FUSIONS, Memory
from hybridops.models.question_answering import ATTENTIONS, VisualQuestionAnswering
from tests.tolerances import EXACT, FLOAT64

ALL = [*FUSIONS, *ATTENTIONS]
SIZES = {"embed_dim": 5, "hidden_dim": 6, "fused_dim": 7, "channels": (4, 8)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(fusion: str, **more) -> VisualQuestionAnswering:
    return VisualQuestionAnswering(11, 3, fusion=fusion, **SIZES, **more).double().eval()


def draw(batch: int = 4, steps: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.rand(batch, 3, 16, 16, dtype=torch.float64)
    return images, torch.randint(1, 11, (batch, steps)), torch.tensor([5, 1, 3, 2])[:batch]


@pytest.mark.parametrize("fusion", [*ALL, "none"])
def test_padding_changes_nothing(fusion):
    model, (images, questions, lengths) = make(fusion), draw()
    logits = model(images, questions, lengths)
    assert logits.shape == (4, 3)
    longer = torch.cat([questions, torch.randint(11, (4, 3))], 1)
    longer[torch.arange(8) >= lengths[:, None]] = 7
    torch.testing.assert_close(model(images, longer, lengths), logits, **FLOAT64)
    alone = torch.cat([model(images[[i]], questions[[i], : lengths[i]]) for i in range(4)])
    torch.testing.assert_close(alone, logits, **FLOAT64)


@pytest.mark.parametrize("fusion", ALL)
def test_many_questions_about_an_image(fusion):
    model, (images, questions, lengths) = make(fusion), draw()
    index = torch.tensor([1, 0, 1, 1])
    together = model(images[:2], questions, lengths, index)
    torch.testing.assert_close(together, model(images[index], questions, lengths), **FLOAT64)


@pytest.mark.parametrize("fusion", ALL)
def test_both_sides_matter_and_all_weights_learn(fusion):
    model, (images, questions, lengths) = make(fusion), draw()
    logits = model(images, questions, lengths)
    assert not torch.allclose(model(images.flip(0), questions, lengths), logits)
    assert not torch.allclose(model(images, questions.flip(1), lengths), logits)
    logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_the_question_alone():
    model, (images, questions, lengths) = make("none"), draw()
    logits = model(None, questions, lengths)
    torch.testing.assert_close(model(images, questions, lengths), logits, **EXACT)
    assert not any("image" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("fusion", ATTENTIONS)
def test_weights_of_regions(fusion):
    model, (images, questions, lengths) = make(fusion), draw()
    weights = model.weights(images, questions, lengths)
    assert weights.shape == (4, 16)
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64), **FLOAT64)


@pytest.mark.parametrize("fusion", ATTENTIONS)
def test_fused_is_the_reference(fusion):
    model, inputs = make(fusion), draw()
    fused = model(*inputs)
    with use_backend("reference"):
        torch.testing.assert_close(model(*inputs), fused, **FLOAT64)


class Frames(nn.Module):
    """A video that is its own encoding."""

    dim = 8

    def forward(self, frames: torch.Tensor) -> Memory:
        there = torch.arange(frames.shape[1]) < 3
        frames = frames.masked_fill(~there[:, None], 0.0)
        return Memory(frames, there.expand(frames.shape[:2]), frames.sum(1))


@pytest.mark.parametrize("fusion", ["product", *ATTENTIONS])
def test_another_encoder_and_its_mask(fusion):
    model, (_, questions, lengths) = make(fusion, encoder=Frames()), draw()
    video = torch.randn(4, 6, 8, dtype=torch.float64)
    logits = model(video, questions, lengths)
    video[:, 3:] = 9.0
    torch.testing.assert_close(model(video, questions, lengths), logits, **FLOAT64)


@pytest.mark.parametrize("fusion", ALL)
def test_saved_and_loaded(fusion, tmp_path):
    model, inputs = make(fusion), draw()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = make(fusion)
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    torch.testing.assert_close(other(*inputs), model(*inputs), **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["product", "bilinear", "mfb", "co_attention", "alternating_co_attention"])
def test_learns_whether_question_and_image_agree(fusion):
    """One of two colours, one of two words, and whether they are the same: neither alone says anything of it."""
    model = VisualQuestionAnswering(3, 2, fusion=fusion, embed_dim=8, hidden_dim=16, fused_dim=16, channels=(8,))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(200):
        colour, word = torch.randint(2, (2, 32))
        images = torch.rand(32, 3, 4, 4) * 0.1
        images[torch.arange(32), colour] += 1.0
        optimizer.zero_grad()
        logits = model(images, word[:, None] + 1)
        F.cross_entropy(logits, (colour == word).long()).backward()
        optimizer.step()
    assert (logits.argmax(1) == (colour == word)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("sum"), "fusion must be one of 'concat', .* got 'sum'"),
        (lambda: make("product")(*draw(3)[:2], torch.tensor([1, 2])), r"lengths must have shape \(3\), got \(2\)"),
        (lambda: make("product")(draw(3)[0], torch.ones(3, dtype=torch.int64)), r"questions must have shape \(B, T\)"),
        (lambda: make("product")(*draw(3), torch.tensor([0, 1])), r"image_index must have shape \(3\), got \(2\)"),
        (lambda: make("product")(draw(2)[0], *draw(3)[1:]), r"q must have shape \(2, 6\), got \(3, 6\)"),
        (lambda: make("product")(None, *draw(3)[1:]), "."),
        (lambda: make("mfb").weights(*draw(3)), "fusion must be one of 'cross_modal', .* got 'mfb'"),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
