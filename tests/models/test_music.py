"""Melodies: the document's call, the next note after each, and generation that follows the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridops.models import MusicGenerator
from hybridops.models.music import MelodyState


@pytest.fixture
def model() -> MusicGenerator:
    torch.manual_seed(0)
    return MusicGenerator(9, 5, 7, 2, dropout=0.3).double().eval()


def test_the_call_of_document_004():
    model = MusicGenerator(vocab_size=88, embedding_dim=64, hidden_dim=256, n_layers=2)
    predictions, (h, c) = model(torch.randint(0, 88, (32, 100)))
    assert predictions.shape == (32, 100, 88)
    assert h.shape == c.shape == (2, 32, 256)


def test_in_parts_is_as_in_one(model):
    notes = torch.randint(9, (3, 10))
    whole, _ = model(notes)
    first, state = model(notes[:, :4])
    second, _ = model(notes[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_no_note_sees_those_after_it(model):
    notes = torch.randint(9, (3, 10))
    other = notes.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 9
    torch.testing.assert_close(model(notes)[0][:, :6], model(other)[0][:, :6])


@pytest.mark.parametrize("seed_length", [1, 4])
def test_the_likeliest_notes_are_read_again(model, seed_length):
    """top_k=1 draws the likeliest: as when the whole melody is read anew for each note."""
    seed = torch.randint(9, (3, seed_length))
    generated = model.generate(seed, 12, top_k=1)
    melody = seed
    for _ in range(12):
        melody = torch.cat([melody, model(melody)[0][:, -1].argmax(1, keepdim=True)], 1)
    assert torch.equal(generated, melody[:, seed_length:])


def test_melodies_end(model):
    end = model.generate(torch.tensor([[3]]), 12, top_k=1)[0, 5].item()
    notes = model.generate(
        torch.randint(9, (4, 2)), 40, end=end, num_samples=3, generator=torch.Generator().manual_seed(0)
    )
    assert notes.shape[0] == 12
    ended = (notes == end).cumsum(1) > 0
    assert ended.any()
    assert (notes[ended] == end).all()


def test_an_embedding_that_has_no_weight_of_its_own(model):
    """As one of another class, or one whose weights are elsewhere until it is called."""
    seed = torch.tensor([[3], [5]])
    before = model.generate(seed, 5, top_k=1)
    model.embedding = nn.Sequential(model.embedding)
    assert torch.equal(model.generate(seed, 5, top_k=1), before)


def test_what_is_drawn_follows_the_model(model):
    """Frequencies of the first note against the softmax, within four standard errors."""
    seed, count = torch.tensor([[2, 5]]), 4000
    generator = torch.Generator().manual_seed(0)
    notes = model.generate(seed, 1, num_samples=count, temperature=0.5, generator=generator)
    expected = (model(seed)[0][0, -1] / 0.5).softmax(0)
    found = notes.flatten().bincount(minlength=9) / count
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()
    again = model.generate(seed, 1, num_samples=count, temperature=0.5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(notes, again)


def test_state_follows_its_entries(model):
    """Searches reorder rows and drop entries with all their rows."""
    _, state = model(torch.randint(9, (3, 4)))
    state = MelodyState(*state, entries=3).reorder(torch.tensor([0, 0, 1, 1, 2, 2]))
    kept = state.select(torch.tensor([2, 0]))
    assert kept.entries == 2
    assert torch.equal(kept.h, state.h[:, [4, 5, 0, 1]])
    assert torch.equal(kept.c, state.c[:, [4, 5, 0, 1]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: MusicGenerator(0, 4, 4), ValueError, "vocab_size"),
        (lambda model: MusicGenerator(4, 4, 4, 0), ValueError, "n_layers"),
        (lambda model: MusicGenerator(4, 4, 4, dropout=-1.0), ValueError, "dropout"),
        (lambda model: model(torch.zeros(3, dtype=torch.int64)), ValueError, "notes must have shape"),
        (lambda model: model.generate(torch.zeros(3, 0, dtype=torch.int64), 5), ValueError, "at least one note"),
        (lambda model: model.generate(torch.zeros(3, 1, dtype=torch.int64), 0), ValueError, "max_length"),
    ],
)
def test_bad_arguments(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)
