from __future__ import annotations

import pytest
import torch

from hybridops.models import Seq2Seq


@pytest.fixture(params=[True, False], ids=["attention", "without"])
def model(request) -> Seq2Seq:
    torch.manual_seed(0)
    model = Seq2Seq(11, 9, 6, 8, attention=request.param).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


SOURCE, LENGTHS = torch.randint(3, 11, (3, 6), generator=torch.Generator().manual_seed(1)), torch.tensor([6, 2, 4])


@torch.no_grad()
def test_generate_is_the_likeliest_word_after_those_before(model):
    found = model.generate(SOURCE, LENGTHS, max_length=7)
    before = torch.cat([torch.ones(3, 1, dtype=torch.int64), found.tokens[:, :-1]], 1)
    best = model(SOURCE, before, LENGTHS).argmax(2)
    for row, length in enumerate(found.lengths.tolist()):
        assert found.tokens[row, :length].tolist() == best[row, :length].tolist()


@torch.no_grad()
def test_beams_find_no_worse_sentences(model):
    greedy = model.generate(SOURCE, LENGTHS, max_length=5)
    beam = model.generate(SOURCE, LENGTHS, max_length=5, beam_size=200, length_penalty=0.0)
    ended = greedy.tokens.gather(1, greedy.lengths[:, None] - 1).squeeze(1) == 2
    assert (beam.scores >= greedy.scores - 1e-5)[ended].all()


@torch.no_grad()
def test_its_own_words(model):
    """With probability 1, every word but the first is what the model would say."""
    target = torch.randint(3, 9, (3, 5))
    target[:, 0] = 1
    logits = model(SOURCE, target, LENGTHS, sampling=1.0)
    own = torch.cat([target[:, :1], logits[:, :-1].argmax(2)], 1)
    torch.testing.assert_close(model(SOURCE, own, LENGTHS), logits)


def test_some_words_of_its_own():
    torch.manual_seed(0)
    model = Seq2Seq(11, 9, 6, 8)
    target = torch.randint(3, 9, (3, 5))
    model(SOURCE, target, LENGTHS, sampling=0.5).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_attention_sees_no_padding(model):
    found = model.generate(SOURCE, LENGTHS, max_length=4, need_weights=True)
    if found.weights is not None:
        assert found.weights[1, :, 2:].eq(0).all()
        torch.testing.assert_close(found.weights[1, 0].sum(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Seq2Seq(11, 9, cell="rnn"), "cell must be one of"),
        (lambda: Seq2Seq(11, 9, dropout=2.0), "dropout must be a number in"),
        (lambda: Seq2Seq(11, 9)(SOURCE[0], SOURCE), "source must have shape"),
        (lambda: Seq2Seq(11, 9)(SOURCE, SOURCE[:2]), "target must have shape"),
        (lambda: Seq2Seq(11, 9)(SOURCE, SOURCE, sampling=-0.1), "must be a number in"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
