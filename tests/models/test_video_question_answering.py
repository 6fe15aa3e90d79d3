"""VideoQuestionAnswering: questions are asked of frames, of those that are there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybridops.models import VideoQuestionAnswering
from tests.tolerances import FLOAT64

FUSIONS = ("additive", "product", "bilinear")
LENGTHS = torch.tensor([4, 2, 3])


def make(fusion: str, **of_film: bool) -> VideoQuestionAnswering:
    torch.manual_seed(0)
    sizes = {"embed_dim": 5, "hidden_dim": 6, "fused_dim": 7, "channels": (4, 8)}
    return VideoQuestionAnswering(11, 3, fusion=fusion, **sizes, **of_film).double().eval()


def draw() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Videos, questions, their lengths, which video each is about."""
    generator = torch.Generator().manual_seed(1)
    videos = torch.rand(3, 4, 3, 8, 8, generator=generator).double()
    questions = torch.randint(1, 11, (5, 6), generator=generator)
    return videos, questions, torch.tensor([6, 2, 4, 1, 5]), torch.tensor([0, 0, 1, 2, 2])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_behind_the_end_does_not_count(fusion):
    model, (videos, *questions) = make(fusion), draw()
    logits = model(videos, *questions, LENGTHS)
    assert logits.shape == (5, 3)
    behind = torch.arange(4) >= LENGTHS[:, None]
    garbage = videos.masked_fill(behind[..., None, None, None], torch.nan)
    longer = torch.cat([garbage, torch.full_like(garbage[:, :2], torch.inf)], 1)
    torch.testing.assert_close(model(longer, *questions, LENGTHS), logits, **FLOAT64)
    assert not torch.allclose(model(videos, *questions), logits)  # all frames


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_question_is_about_its_own_video(fusion):
    model, (videos, words, lengths, index) = make(fusion), draw()
    together = model(videos, words, lengths, index, LENGTHS)
    for row, video in enumerate(index.tolist()):
        asked, one = words[row : row + 1, : lengths[row]], slice(video, video + 1)
        alone = model(videos[one, : LENGTHS[video]], asked)
        torch.testing.assert_close(alone[0], together[row], **FLOAT64)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_order_of_frames_and_of_words_counts_and_all_weights_learn(fusion):
    model, (videos, words, *others) = make(fusion), draw()
    logits = model(videos, words, *others)
    assert not torch.allclose(model(videos.flip(1), words, *others), logits)
    assert not torch.allclose(model(videos, words.flip(1), *others), logits)
    logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_mean_is_fused_without_attention():
    model, (videos, words, lengths, index) = make("bilinear"), draw()
    states = model.image_encoder(videos, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(states.pooled[row], states.values[row, :length].mean(0), **FLOAT64)
    q = model.question_encoder(model.embedding(words), lengths).pooled
    v = torch.nn.functional.linear(states.pooled, model.image_proj.weight, model.image_proj.bias)[index]
    logits = model.classifier(model.fusion(v, q))
    torch.testing.assert_close(model(videos, words, lengths, index, LENGTHS), logits, **FLOAT64)


def test_weights_of_frames():
    model, (videos, words, lengths, index) = make("additive"), draw()
    weights = model.weights(videos, words, lengths, index, LENGTHS)
    assert weights.shape == (5, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(5).double(), **FLOAT64)
    assert not weights[torch.arange(4) >= LENGTHS[index][:, None]].any()
    states = model.image_proj(model.image_encoder(videos, LENGTHS).values)[index]
    asks = model.question_encoder(model.embedding(words), lengths).pooled
    attention = model.attention.additive
    energy = torch.tanh(attention.query_proj(asks)[:, None] + attention.key_proj(states))
    scores = attention.v(energy).squeeze(2).masked_fill(torch.arange(4) >= LENGTHS[index][:, None], -torch.inf)
    torch.testing.assert_close(weights, scores.softmax(1), **FLOAT64)  # Jang et al. 2017
    with pytest.raises(ValueError, match=r"fusion must be one of .*'additive'.*, got 'product'"):
        make("product").weights(videos, words, lengths, index, LENGTHS)


@pytest.mark.parametrize("fusion", ["additive", "bilinear"])
def test_of_films_in_shots(fusion):
    model, (videos, *questions) = make(fusion, bidirectional=True, shots=True), draw()
    shots = torch.tensor([[2, 2, 0], [2, 0, 0], [1, 1, 1]])
    logits = model(videos, *questions, shots)
    behind = torch.arange(4) >= shots.sum(1, keepdim=True)
    garbage = videos.masked_fill(behind[..., None, None, None], torch.nan)
    torch.testing.assert_close(model(garbage, *questions, shots), logits, **FLOAT64)
    cut = shots.clone()
    cut[0] = torch.tensor([1, 3, 0])  # where shots are cut counts, for the two questions about this film
    changed = model(videos, *questions, cut)
    assert not torch.allclose(changed[:2], logits[:2])
    torch.testing.assert_close(changed[2:], logits[2:], **FLOAT64)
    logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_question_alone():
    model, (_, words, lengths, _) = make("none"), draw()
    assert model(None, words, lengths).shape == (5, 3)
    assert not any("image" in name for name, _ in model.named_parameters())


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="fusion must be one of"):
        make("sum")
    model, (videos, *questions) = make("additive"), draw()
    with pytest.raises(ValueError, match=r"frames must have shape \(B, T, C, Y, X\), got \(3, 3, 8, 8\)"):
        model(videos[:, 0], *questions)
    with pytest.raises(ValueError, match=r"lengths must have shape \(3\), got \(2\)"):
        model(videos, *questions, LENGTHS[:2])
    with pytest.raises(ValueError, match=r"lengths must have shape \(3, N\), got \(3\)"):
        make("additive", shots=True)(videos, *questions, LENGTHS)
