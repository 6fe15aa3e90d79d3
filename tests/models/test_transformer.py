"""The Transformer: padding, the causal mask, positions, and a search that follows the model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hybridops.models import TransformerSeq2Seq


@pytest.fixture
def model() -> TransformerSeq2Seq:
    torch.manual_seed(0)
    return TransformerSeq2Seq(11, 13, 12, 3, feedforward_dim=20, dropout=0.0).double()


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(model, training):
    """In evaluation PyTorch's encoder takes another path."""
    model.train(training)
    lengths, source, target = torch.tensor([6, 1, 4]), torch.randint(11, (3, 6)), torch.randint(13, (3, 5))
    with torch.set_grad_enabled(training):
        together = model(source, target, lengths)
        alone = [model(source[i : i + 1, :n], target[i : i + 1]) for i, n in enumerate(lengths)]
        torch.testing.assert_close(together, torch.cat(alone))
        torch.testing.assert_close(model(F.pad(source, (0, 7), value=5), target, lengths), together)


def test_memory_is_zero_behind_the_end(model):
    memory = model.encode(torch.randint(11, (2, 6)), torch.tensor([6, 2]))
    assert torch.equal(memory.values[1, 2:], torch.zeros(4, 12, dtype=torch.float64))
    torch.testing.assert_close(memory.pooled[1], memory.values[1, :2].mean(0))


def test_no_word_sees_those_after_it(model):
    source, target = torch.randint(11, (2, 6)), torch.randint(13, (2, 5))
    other = target.clone()
    other[:, 3:] = (other[:, 3:] + 1) % 13
    before, after = model(source, target), model(source, other)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).all(2).any()


def test_positions_are_sinusoids(model):
    tokens = torch.randint(11, (2, 7))
    x = model.embedding(tokens) - math.sqrt(12) * model.embedding.words(tokens)
    for s in range(7):
        for i in range(6):
            angle = s / 10000 ** (2 * i / 12)
            expected = torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
            torch.testing.assert_close(x[0, s, 2 * i : 2 * i + 2], expected, rtol=0, atol=1e-6)  # float32 angles


def test_greedy_words_are_the_likeliest(model):
    model.eval()
    source, lengths = torch.randint(11, (3, 6)), torch.tensor([6, 2, 4])
    found = model.generate(source, lengths, max_length=8)
    target = torch.full((3, 1), model.start_token)
    with torch.no_grad():
        for _ in range(found.tokens.shape[1]):
            target = torch.cat([target, model(source, target, lengths)[:, -1].argmax(1, keepdim=True)], 1)
    for row, words, length in zip(target[:, 1:], found.tokens, found.lengths, strict=True):
        assert torch.equal(row[:length], words[:length])


def test_beam_search_finds_no_worse(model):
    model.eval()
    source, lengths = torch.randint(11, (3, 6)), torch.tensor([6, 2, 4])
    greedy = model.generate(source, lengths, max_length=6)
    beam = model.generate(source, lengths, max_length=6, beam_size=40, length_penalty=0.0)
    assert (beam.scores >= greedy.scores - 1e-9).all()
    for i, length in enumerate(beam.lengths):
        target = torch.cat([torch.tensor([model.start_token]), beam.tokens[i, :length]])[None]
        with torch.no_grad():
            log_p = model(source[i : i + 1, : lengths[i]], target[:, :-1]).log_softmax(2)
        score = log_p.gather(2, target[:, 1:, None]).sum()
        torch.testing.assert_close(beam.scores[i].double(), score, rtol=1e-5, atol=1e-5)  # searches sum in float32


@pytest.mark.slow
def test_it_learns_to_reverse():
    torch.manual_seed(0)
    model = TransformerSeq2Seq(13, 13, 32, 4, 1, 1, feedforward_dim=64, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        source = torch.randint(3, 13, (64, 6))
        target = F.pad(F.pad(source.flip(1), (1, 0), value=1), (0, 1), value=2)
        optimizer.zero_grad()
        F.cross_entropy(model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten()).backward()
        optimizer.step()
    model.eval()
    source = torch.randint(3, 13, (100, 6))
    found = model.generate(source, max_length=7)
    assert (found.tokens[:, :6] == source.flip(1)).all(1).float().mean() > 0.9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: TransformerSeq2Seq(11, 13, 9, 3), ValueError, "multiple of 2 and of num_heads, got 9 and 3"),
        (lambda model: TransformerSeq2Seq(11, 13, 12, 5), ValueError, "multiple of 2 and of num_heads"),
        (lambda model: TransformerSeq2Seq(0, 13), ValueError, "vocab_size"),
        (lambda model: TransformerSeq2Seq(11, 13, dropout=2.0), ValueError, "dropout"),
        (lambda model: model.encode(torch.zeros(3, dtype=torch.int64)), ValueError, "source must have shape"),
        (
            lambda model: model.encode(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 3])),
            ValueError,
            "source_lengths must be at least 1, got 0",
        ),
        (
            lambda model: model(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 3, dtype=torch.int64)),
            ValueError,
            "target must have shape",
        ),
    ],
)
def test_bad_arguments(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)
