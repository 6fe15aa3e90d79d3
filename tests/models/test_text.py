"""Classifiers of text: the documents' calls, any length, and padding that changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridops.models import SentimentClassifier, TextClassifier
from tests.layers.networks import torch_network

MODELS = {
    "conv": lambda: TextClassifier(30, 8, 3, 6, 2),
    "conv of 3, backwards too": lambda: TextClassifier(30, 8, 3, 6, channels=5, kernel_size=3, bidirectional=True),
    "conv, gru": lambda: TextClassifier(30, 8, 3, 6, cell="gru"),
    "both directions": lambda: SentimentClassifier(30, 8, 6, 3, 2),
    "one direction": lambda: SentimentClassifier(30, 8, 6, 3, bidirectional=False),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    return request.param().double().eval()


def test_the_call_of_document_000():
    vocab_size, embed_size, num_classes, hidden_size, num_layers = 5000, 100, 2, 128, 2
    model = TextClassifier(vocab_size, embed_size, num_classes, hidden_size, num_layers)
    assert model(torch.randint(0, vocab_size, (8, 50))).shape == (8, 2)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_call_of_document_004(bidirectional):
    model = SentimentClassifier(
        vocab_size=10000, embedding_dim=100, hidden_dim=256, output_dim=1, n_layers=2, bidirectional=bidirectional,
        dropout=0.5, pad_idx=1,
    )  # fmt: skip
    text_batch, text_lengths = torch.randint(0, 10000, (32, 50)), torch.full((32,), 50)
    assert model(text_batch, text_lengths).shape == (32, 1)


def test_text_classifier_is_its_equation():
    """The document's own layers, on texts of an even length, with the convolution padded."""
    torch.manual_seed(0)
    model = TextClassifier(30, 8, 3, 6, 2).double()
    tokens = torch.randint(30, (4, 10))
    x = F.conv1d(F.pad(model.embedding(tokens).mT, (2, 2)), model.conv.weight, model.conv.bias).relu()
    states, _ = torch_network(model.encoder, "lstm")(F.max_pool1d(x, 2).mT)
    torch.testing.assert_close(model(tokens), model.classifier(states[:, -1]))


def test_sentiment_classifier_reads_the_last_states_of_both_directions():
    torch.manual_seed(0)
    model = SentimentClassifier(30, 8, 6, 3).double()
    states, _ = torch_network(model.encoder, "lstm")(model.embedding(tokens := torch.randint(30, (4, 10))))
    last = torch.cat([states[:, -1, :6], states[:, 0, 6:]], 1)
    torch.testing.assert_close(model(tokens), model.classifier(last))


@pytest.mark.parametrize("steps", range(1, 8))
def test_any_length(model, steps):
    logits = model(torch.randint(30, (3, steps)))
    assert logits.shape == (3, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize("longest", [7, 8])
def test_padding_changes_nothing(model, longest):
    """Each row alone, and in a batch with rows of other lengths and garbage behind its end."""
    lengths = torch.tensor([longest, 1, 2, 5, 6])
    tokens = torch.randint(30, (5, longest + 3))
    together = model(tokens, lengths)
    alone = torch.cat([model(row[None, :length]) for row, length in zip(tokens, lengths, strict=True)])
    torch.testing.assert_close(together, alone)
    other = torch.where(torch.arange(longest + 3) < lengths[:, None], tokens, torch.randint(30, tokens.shape))
    assert (tokens != other).any()
    assert torch.equal(together, model(other, lengths))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_padding_changes_no_bit(model, dtype):
    model = model.to(dtype)
    lengths = torch.tensor([40, 7, 33])
    tokens = torch.randint(30, (3, 40))
    expected = model(tokens, lengths)
    for extra in (1, 5, 88):
        assert torch.equal(model(F.pad(tokens, (0, extra), value=29), lengths), expected)


def test_padding_gets_no_gradient(model):
    tokens = torch.full((2, 6), 3)
    tokens[:, 4:] = 7
    model(tokens, torch.tensor([4, 2])).square().sum().backward()
    assert model.embedding.weight.grad[3].abs().sum() > 0
    assert torch.equal(model.embedding.weight.grad[7], torch.zeros(8, dtype=torch.float64))


def test_a_text_without_words_gets_the_bias(model):
    logits = model(torch.randint(30, (2, 4)), torch.tensor([0, 3]))
    torch.testing.assert_close(logits[0], model.classifier.bias)


def test_training_lowers_the_loss(model):
    torch.manual_seed(0)
    model.train()
    tokens, lengths = torch.randint(30, (16, 9)), torch.randint(1, 10, (16,))
    labels = torch.randint(3, (16,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens, lengths), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    for model in TextClassifier(30, 8, 3, 6, 2, dropout=0.5), SentimentClassifier(30, 8, 6, 3, 2, dropout=0.5):
        tokens = torch.randint(30, (4, 10))
        assert not torch.equal(model(tokens), model(tokens))
        model.eval()
        assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TextClassifier(0, 8, 2, 6), ValueError, "vocab_size"),
        (lambda: TextClassifier(30, 8, 2, 6, kernel_size=4), ValueError, "kernel_size must be odd, got 4"),
        (lambda: TextClassifier(30, 8, 2, 6, cell="lru"), ValueError, "cell"),
        (lambda: TextClassifier(30, 8, 2, 6, dropout=1.5), ValueError, "dropout"),
        (lambda: SentimentClassifier(30, 8, 6, 0), ValueError, "output_dim"),
        (lambda: SentimentClassifier(30, 8, 6, 1, bidirectional=1), TypeError, "bidirectional"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("tokens", "lengths", "error", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), None, ValueError, "tokens must have shape"),
        (torch.zeros(5, 0, dtype=torch.int64), None, ValueError, "at least one step"),
        (torch.zeros(5, 4, dtype=torch.int64), torch.ones(4, dtype=torch.int64), ValueError, "lengths"),
        (torch.zeros(5, 4, dtype=torch.int64), torch.ones(5), TypeError, "lengths must be a tensor of integers"),
        (torch.zeros(2, 4, dtype=torch.int64), torch.tensor([2, 5]), ValueError, "lengths must be at most 4"),
    ],
)
def test_bad_input(model, tokens, lengths, error, message):
    with pytest.raises(error, match=message):
        model(tokens, lengths)
