"""NeuralTuringMachine: what comes out, with a CNN in front, and that it learns to say again what it was shown."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hybridops.layers import ConvEncoder, FrameEncoder
from hybridops.models import NeuralTuringMachine
from tests.tolerances import FLOAT64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_an_output_of_every_step():
    model = NeuralTuringMachine(3, 2, 4, 6, 5).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    memory = model.ntm(x)
    torch.testing.assert_close(model(x), model.output(memory.values), **FLOAT64)
    later = torch.cat([x[:, :4], torch.randn_like(x[:, 4:])], 1)
    torch.testing.assert_close(model(later)[:, :4], model(x)[:, :4], **FLOAT64)  # and no step sees the next
    assert not torch.allclose(model(later)[:, 4], model(x)[:, 4])


def test_a_cnn_in_front():
    encoder = FrameEncoder(ConvEncoder(1, (4,)))
    model = NeuralTuringMachine(4, 2, 8, 6, 5, encoder=encoder).double().eval()
    frames, lengths = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64), torch.tensor([3, 1])
    logits = model(frames, lengths)
    x = encoder.encoder(frames.flatten(0, 1)).pooled.unflatten(0, (2, 3))
    torch.testing.assert_close(logits, model.output(model.ntm(x, lengths).values), **FLOAT64)
    torch.testing.assert_close(model.states(frames), model.ntm.states(x), **FLOAT64)
    logits.sum().backward()
    assert all(p.grad.any() for p in encoder.parameters())


@pytest.mark.slow
def test_learns_to_say_it_again():
    """Four bits of the first step, three steps later, of which an output at that step alone knows nothing."""
    model = NeuralTuringMachine(5, 4, 16, 8, 6)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        bits = torch.randint(2, (32, 4)).float()
        x = torch.zeros(32, 4, 5)
        x[:, 0, :4], x[:, 3, 4] = bits, 1.0
        optimizer.zero_grad()
        logits = model(x)[:, 3]
        F.binary_cross_entropy_with_logits(logits, bits).backward()
        optimizer.step()
    assert ((logits > 0) == (bits > 0)).double().mean() > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NeuralTuringMachine(3, 0), "output_dim must be a positive int, got 0"),
        (lambda: NeuralTuringMachine(3, 2)(torch.ones(2, 4, 5)), r"x must have shape \(B, T, 3\), got \(2, 4, 5\)"),
        (
            lambda: NeuralTuringMachine(3, 2)(torch.ones(2, 4, 3), torch.tensor([1])),
            r"lengths must have shape \(2\), got \(1\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
