"""Perceptron, recurrent and convolutional classifiers: their equations, their padding, their checks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridops.models import MLP, ConvClassifier, SequenceClassifier
from tests.layers.networks import torch_network

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def test_the_calls_of_document_003():
    assert MLP(20, (64, 32), 1)(torch.rand(32, 20)).shape == (32, 1)
    assert ConvClassifier()(torch.rand(32, 1, 28, 28)).shape == (32, 10)
    for cell in CELLS:
        for bidirectional in (False, True):
            model = SequenceClassifier(20, 64, 1, 3, cell=cell, bidirectional=bidirectional)
            assert model(torch.rand(32, 10, 20)).shape == (32, 1)


def test_mlp_is_its_equation():
    torch.manual_seed(0)
    model, x = MLP(5, (4, 3), 2).double(), torch.randn(2, 7, 5, dtype=torch.float64)
    first, second, last = (layer for layer in model.layers if isinstance(layer, nn.Linear))
    torch.testing.assert_close(model(x), last(second(first(x).relu()).relu()))
    assert MLP(5, (), 2)(torch.rand(3, 5)).shape == (3, 2)  # linear


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_classifier_reads_the_last_states(cell, bidirectional):
    torch.manual_seed(0)
    model = SequenceClassifier(4, 6, 3, 2, cell=cell, bidirectional=bidirectional).double()
    x = torch.randn(5, 7, 4, dtype=torch.float64)
    states, _ = torch_network(model.encoder, cell)(x)
    last = torch.cat([states[:, -1, :6], states[:, 0, 6:]], 1)  # no second half in one direction
    torch.testing.assert_close(model(x), model.classifier(last))


def test_stacked_is_one_network_on_the_other():
    """003's "nested" RNN."""
    torch.manual_seed(0)
    model, x = SequenceClassifier(4, 6, 3, 3, cell="rnn").double(), torch.randn(5, 7, 4, dtype=torch.float64)
    h = x
    for layer in range(3):
        (network,) = model.encoder.layers[layer]
        w_ih, w_hh, bias = network.weight_ih_l0, network.weight_hh_l0, network.bias_ih_l0 + network.bias_hh_l0
        states = [h.new_zeros(5, 6)]
        for x_t in h.unbind(1):
            states.append(torch.tanh(x_t @ w_ih.T + states[-1] @ w_hh.T + bias))
        h = torch.stack(states[1:], 1)
    torch.testing.assert_close(model(x), model.classifier(h[:, -1]))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_nothing(cell, bidirectional):
    torch.manual_seed(0)
    model = SequenceClassifier(4, 6, 3, 2, cell=cell, bidirectional=bidirectional).double()
    lengths, x = torch.tensor([7, 1, 4, 9]), torch.randn(4, 9, 4, dtype=torch.float64)
    alone = torch.cat([model(row[None, :length]) for row, length in zip(x, lengths, strict=True)])
    x[torch.arange(9) >= lengths[:, None]] = torch.nan
    torch.testing.assert_close(model(x, lengths), alone)
    assert torch.equal(model(F.pad(x, (0, 0, 0, 5)), lengths), model(x, lengths))


def test_conv_classifier_is_its_equation():
    torch.manual_seed(0)
    model, images = ConvClassifier(2, 5).double(), torch.randn(3, 2, 9, 14, dtype=torch.float64)
    first, second, third = (layer for layer in model.features if isinstance(layer, nn.Conv2d))
    x = F.max_pool2d(F.conv2d(images, first.weight, first.bias, padding=1).relu(), 2)
    x = F.avg_pool2d(F.conv2d(x, second.weight, second.bias, padding=1).relu(), 2)
    x = F.adaptive_max_pool2d(F.conv2d(x, third.weight, third.bias, padding=2, dilation=2).relu(), (4, 4))
    assert third.weight.shape == (64, 32, 3, 3)
    torch.testing.assert_close(model(images), model.classifier(x.flatten(1)))


@pytest.mark.parametrize("size", [(4, 4), (5, 31), (28, 28)])
def test_images_of_any_size(size):
    assert ConvClassifier(3, 7)(torch.rand(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: MLP(6, (16,), 3), (16, 6)),
        (lambda: SequenceClassifier(6, 16, 3, cell="gru"), (16, 8, 6)),
        (lambda: ConvClassifier(1, 3), (16, 1, 16, 16)),
    ],
    ids=["mlp", "sequence", "conv"],
)
def test_training_lowers_the_loss(make, shape):
    torch.manual_seed(0)
    model, x, labels = make(), torch.randn(shape), torch.randint(3, (16,))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MLP(0), ValueError, "input_dim"),
        (lambda: MLP(4, (3, 0)), ValueError, "hidden_dims"),
        (lambda: MLP(4, (3,), dropout=2.0), ValueError, "dropout"),
        (lambda: MLP(4)(torch.rand(2, 5)), ValueError, "x must have shape"),
        (lambda: SequenceClassifier(4, 6, 3, cell="nested"), ValueError, "cell"),
        (lambda: SequenceClassifier(4, 6, 0), ValueError, "output_dim"),
        (lambda: SequenceClassifier(4, 6, 3)(torch.rand(2, 5)), ValueError, "x must have shape"),
        (lambda: ConvClassifier(0), ValueError, "in_channels"),
        (lambda: ConvClassifier()(torch.rand(2, 3, 8, 8)), ValueError, "images must have shape"),
        (lambda: ConvClassifier()(torch.rand(2, 1, 8, 3)), ValueError, "at least 4 pixels"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
