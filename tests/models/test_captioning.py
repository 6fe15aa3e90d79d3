"""Captioners: what they give, what does not count, and the penalty by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.layers import PretrainedEncoder
from hybridops.models import ImageCaptioner, SceneGraphCaptioner
from hybridops.training import doubly_stochastic_penalty
from tests import tolerances

VOCAB, SIZES = 13, (6, 8, 5)  # of a word, a state, the attention
KINDS = {
    "initial": {"context": "global"},
    "first": {"context": "global", "image_at": "first", "cell": "gru"},
    "every": {"context": "global", "image_at": "every"},
    "spatial": {},
    "spatial-gru": {"cell": "gru"},
    "adaptive": {"context": "adaptive"},
    "adaptive-global": {"context": "adaptive", "fallback": "global"},
    "objects": {"context": "objects"},
    "graph": {"num_layers": 2},
}


def captioner(**options: object) -> ImageCaptioner:
    torch.manual_seed(0)
    kind = SceneGraphCaptioner if "num_layers" in options else ImageCaptioner
    return kind(VOCAB, *SIZES, **options).double().eval()


def inputs(model: ImageCaptioner) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Images, and boxes with their mask where the model takes them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, 16, 24, generator=generator).double()
    if model.context != "objects":
        return images, ()
    boxes = torch.rand(3, 4, 4, generator=generator).double().sort(2).values * 16
    return images, (boxes, torch.arange(4) < torch.tensor([[4], [2], [3]]))


def tokens() -> Tensor:
    return torch.randint(3, VOCAB, (3, 5), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_what_it_gives(options):
    model = captioner(**options)
    images, objects = inputs(model)
    logits, weights = model.attend(images, tokens(), *objects)
    assert logits.shape == (3, 5, VOCAB)
    torch.testing.assert_close(model(images, tokens(), *objects), logits, **tolerances.EXACT)
    if model.context == "global":
        assert weights is None
    else:
        assert weights.shape == (3, 5, 4 if model.context == "objects" else 2 * 3)
        assert (weights >= 0).all()
        assert (weights.sum(2) <= 1 + 1e-12).all()


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_word_depends_on_those_before_it_and_on_the_image(options):
    model = captioner(**options)
    images, objects = inputs(model)
    words = tokens().requires_grad_(False)
    later = words.clone()
    later[:, 3:] = 3 + (later[:, 3:] - 2) % (VOCAB - 3)
    logits, changed = (model(images, each, *objects) for each in (words, later))
    torch.testing.assert_close(logits[:, :3], changed[:, :3], **tolerances.FLOAT64)
    assert not torch.allclose(logits[:, 3], changed[:, 3])
    assert not torch.allclose(logits, model(images.flip(0), words, *objects))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_sentences_are_the_likeliest_words(options):
    model = captioner(**options)
    nn.init.normal_(model.decoder.vocabulary.weight)
    images, objects = inputs(model)
    found = model.generate(images, *objects, max_length=6)
    words = torch.cat([torch.ones(3, 1, dtype=torch.int64), found.tokens[:, :-1]], 1)
    best = model(images, words, *objects).argmax(2)
    counts = torch.arange(best.shape[1]) < found.lengths[:, None]
    assert torch.equal(found.tokens[counts], best[counts])
    beam = model.generate(images, *objects, max_length=6, beam_size=3, length_penalty=0.0, need_weights=True)
    assert beam.tokens.shape[0] == 3
    assert (beam.weights is None) == (model.context == "global")


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_it_learns_three_sentences(options):
    model = captioner(**options).float().train()
    images, objects = inputs(model)
    images, objects = images.float(), tuple(t.float() if t.is_floating_point() else t for t in objects)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        logits, weights = model.attend(images, tokens(), *objects)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
        losses.append(loss.item())
        if weights is not None:
            loss = loss + 0.01 * doubly_stochastic_penalty(weights)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("options", [KINDS["objects"], KINDS["graph"]], ids=["objects", "graph"])
def test_objects_that_are_not_there_do_not_count(options):
    model = captioner(**options)
    images, (boxes, mask) = inputs(model)
    expected = model(images, tokens(), boxes, mask)
    elsewhere = boxes.masked_fill(~mask[..., None], torch.nan)
    torch.testing.assert_close(model(images, tokens(), elsewhere, mask), expected, **tolerances.EXACT)
    order = torch.tensor([2, 0, 3, 1])
    turned = model(images, tokens(), boxes[:, order], mask[:, order])
    torch.testing.assert_close(turned, expected, **tolerances.FLOAT64)


def test_objects_hear_of_each_other_through_the_graph():
    model = captioner(**KINDS["graph"])
    images, (boxes, mask) = inputs(model)
    alone = model.encoder(images, boxes, mask).values
    torch.testing.assert_close(model.encode(images, boxes, mask).values, alone, **tolerances.EXACT)  # at first
    for parameter in model.convolutions.parameters():
        nn.init.normal_(parameter)
    moved = boxes.clone()
    moved[0, 3] = torch.tensor([1.0, 2.0, 9.0, 5.0])
    before, after = (model.encode(images, each, mask).values for each in (boxes, moved))
    assert not torch.allclose(before[0, :3], after[0, :3])
    torch.testing.assert_close(before[1:], after[1:], **tolerances.EXACT)


def test_the_shapes_of_document_004():
    model = ImageCaptioner(10000, 256, 512, context="global")
    images, captions = torch.randn(8, 3, 224, 224), torch.randint(0, 10000, (8, 15))
    with torch.no_grad():
        assert model(images, captions).shape == (8, 15, 10000)


def test_an_encoder_of_one_s_own():
    backbone = nn.Sequential(nn.Conv2d(3, 9, 4, stride=4), nn.ReLU()).double()
    model = captioner(encoder=PretrainedEncoder(backbone, 9))
    images, _ = inputs(model)
    logits, weights = model.attend(images, tokens())
    assert weights.shape == (3, 5, 4 * 6)
    logits.sum().backward()
    assert all(p.grad is None for p in backbone.parameters())


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"context must be one of 'global', .*, got 'local'"):
        captioner(context="local")
    with pytest.raises(ValueError, match=r"cell must be one of 'lstm', got 'gru'"):
        captioner(context="adaptive", cell="gru")
    model = captioner()
    images, _ = inputs(model)
    with pytest.raises(ValueError, match=r"tokens must have shape \(3, S\), got \(2, 5\)"):
        model(images, tokens()[:2])
    with pytest.raises(ValueError, match=r"boxes must be None where context is 'spatial', got \(3, 4, 4\)"):
        model(images, tokens(), torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match=r"boxes must be a tensor of shape \(3, O, 4\), got NoneType"):
        captioner(context="objects")(images, tokens())
