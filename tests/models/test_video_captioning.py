"""VideoCaptioner: what it gives, what a word may depend on, and that only an order of frames is learned by networks
over frames.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.layers import ConvEncoder, PretrainedEncoder
from hybridops.models import VideoCaptioner
from tests import tolerances

VOCAB, SIZES = 13, (6, 8, 5)  # of a word, a state, the attention
SHOTS = torch.tensor([[2, 2, 1], [1, 2, 0], [4, 0, 0]])
KINDS = {
    "mean": {"context": "mean"},
    "temporal": {"context": "temporal", "bidirectional": True},
    "temporal-gru": {"cell": "gru", "regions": 4},
    "hierarchical": {"context": "hierarchical", "regions": 4},
    "hierarchical-gru": {"context": "hierarchical", "cell": "gru", "bidirectional": True},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request) -> VideoCaptioner:
    torch.manual_seed(0)
    return VideoCaptioner(VOCAB, *SIZES, encoder=ConvEncoder(3, (4, 6)), **request.param).double().eval()


def film() -> Tensor:
    return torch.rand(3, 5, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def lengths(model: VideoCaptioner) -> Tensor:
    return SHOTS if model.context == "hierarchical" else SHOTS.sum(1)


def tokens() -> Tensor:
    return torch.randint(3, VOCAB, (3, 5), generator=torch.Generator().manual_seed(2))


def test_what_it_gives(model):
    logits, weights = model.attend(film(), tokens(), lengths(model))
    assert logits.shape == (3, 5, VOCAB)
    torch.testing.assert_close(model(film(), tokens(), lengths(model)), logits, **tolerances.EXACT)
    if model.context == "mean":
        assert weights is None
    else:
        assert weights.shape == (3, 5, 5)
        torch.testing.assert_close(weights.sum(2), torch.ones(3, 5).double(), **tolerances.FLOAT64)
        behind = torch.arange(5) >= SHOTS.sum(1, keepdim=True)
        assert not weights.transpose(1, 2)[behind].any()


def test_what_is_behind_the_end_does_not_count(model):
    logits = model(film(), tokens(), lengths(model))
    behind = torch.arange(5) >= SHOTS.sum(1, keepdim=True)
    garbage = film().masked_fill(behind[..., None, None, None], torch.nan)
    garbage = torch.cat([garbage, torch.full_like(garbage[:, :2], torch.inf)], 1)
    torch.testing.assert_close(model(garbage, tokens(), lengths(model)), logits, **tolerances.FLOAT64)


def test_a_word_depends_on_those_before_it_and_on_the_film(model):
    words, later = tokens(), tokens()
    later[:, 3:] = 3 + (later[:, 3:] - 2) % (VOCAB - 3)
    logits, changed = (model(film(), each, lengths(model)) for each in (words, later))
    torch.testing.assert_close(logits[:, :3], changed[:, :3], **tolerances.FLOAT64)
    assert not torch.allclose(logits[:, 3], changed[:, 3])
    moved = film()
    moved[:, [0, 1]] = moved[:, [1, 0]]  # the order of frames counts
    assert not torch.allclose(model(moved, words, lengths(model)), logits)


def test_without_lengths_all_frames_are_there(model):
    whole = torch.full((3,), 5)
    whole = whole[:, None] if model.context == "hierarchical" else whole
    expected = model(film(), tokens(), whole)
    torch.testing.assert_close(model(film(), tokens()), expected, **tolerances.FLOAT64)


def test_sentences_are_the_likeliest_words(model):
    nn.init.normal_(model.decoder.vocabulary.weight)
    found = model.generate(film(), lengths(model), max_length=6)
    words = torch.cat([torch.ones(3, 1, dtype=torch.int64), found.tokens[:, :-1]], 1)
    best = model(film(), words, lengths(model)).argmax(2)
    counts = torch.arange(best.shape[1]) < found.lengths[:, None]
    assert torch.equal(found.tokens[counts], best[counts])
    beam = model.generate(film(), lengths(model), max_length=6, beam_size=3, length_penalty=0.0, need_weights=True)
    assert beam.tokens.shape[0] == 3
    assert (beam.weights is None) == (model.context == "mean")


def test_it_learns_three_sentences(model):
    model = model.float().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        logits = model(film().float(), tokens(), lengths(model))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
        losses.append(loss.item())
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] / 4


def test_where_shots_are_cut_counts():
    torch.manual_seed(0)
    model = VideoCaptioner(VOCAB, *SIZES, context="hierarchical").double().eval()
    other = SHOTS.clone()
    other[0] = torch.tensor([1, 3, 1])
    logits, cut = (model(film(), tokens(), each) for each in (SHOTS, other))
    assert not torch.allclose(cut[0], logits[0])
    torch.testing.assert_close(cut[1:], logits[1:], **tolerances.FLOAT64)


def test_an_encoder_of_one_s_own():
    backbone = nn.Sequential(nn.Conv2d(3, 9, 4, stride=4), nn.ReLU()).double()
    model = VideoCaptioner(VOCAB, *SIZES, encoder=PretrainedEncoder(backbone, 9)).double()
    model(film(), tokens()).sum().backward()
    assert all(p.grad is None for p in backbone.parameters())


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"context must be one of 'mean', 'temporal', 'hierarchical', got 'global'"):
        VideoCaptioner(VOCAB, context="global")
    with pytest.raises(ValueError, match=r"cell must be one of 'lstm', 'gru', got 'rnn'"):
        VideoCaptioner(VOCAB, cell="rnn")
    with pytest.raises(ValueError, match=r"tokens must have shape \(3, S\), got \(2, 5\)"):
        VideoCaptioner(VOCAB)(film().float(), tokens()[:2])
    with pytest.raises(ValueError, match=r"frames must have shape \(B, T, C, Y, X\), got \(3, 3, 8, 8\)"):
        VideoCaptioner(VOCAB)(film()[:, 0].float(), tokens())
    with pytest.raises(ValueError, match=r"lengths must have shape \(3\), got \(3, 3\)"):
        VideoCaptioner(VOCAB)(film().float(), tokens(), SHOTS)
    with pytest.raises(ValueError, match=r"lengths must have shape \(3, N\), got \(3\)"):
        VideoCaptioner(VOCAB, context="hierarchical")(film().float(), tokens(), SHOTS.sum(1))
