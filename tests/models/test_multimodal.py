"""MultimodalClassifier: shapes, what may not matter, and that two halves make a whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hybridops.layers import FUSIONS
from hybridops.models.multimodal import MultimodalClassifier
from tests.tolerances import EXACT, FLOAT64

ALL = [*FUSIONS, "late"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(fusion: str = "concat", **more) -> MultimodalClassifier:
    sizes = {"hidden_dim": 5, "channels": (4,), "branch_dim": 6}
    return MultimodalClassifier(2, 1, 3, fusion=fusion, **sizes, **more).double().eval()


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sequence, images = torch.randn(4, 7, 2, dtype=torch.float64), torch.rand(4, 1, 6, 6, dtype=torch.float64)
    return sequence, images, torch.tensor([7, 1, 3, 5])


@pytest.mark.parametrize("fusion", ALL)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_nothing(fusion, bidirectional):
    model, (sequence, images, lengths) = make(fusion, bidirectional=bidirectional), draw()
    logits = model(sequence, images, lengths)
    assert logits.shape == (4, 3)
    padded = sequence.masked_fill((torch.arange(7) >= lengths[:, None])[..., None], torch.nan)
    torch.testing.assert_close(model(padded, images, lengths), logits, **FLOAT64)
    alone = torch.cat([model(sequence[[i], : lengths[i]], images[[i]]) for i in range(4)])
    torch.testing.assert_close(alone, logits, **FLOAT64)


@pytest.mark.parametrize("fusion", ALL)
def test_both_branches_matter_and_all_weights_learn(fusion):
    model, (sequence, images, lengths) = make(fusion), draw()
    logits = model(sequence, images, lengths)
    assert not torch.allclose(model(sequence.flip(0), images, lengths), logits)
    assert not torch.allclose(model(sequence, images.flip(0), lengths), logits)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_one_branch_does_not_look_at_the_other():
    sequence, images, lengths = draw()
    for branches, given in (("sequence", (sequence, None)), ("image", (None, images))):
        model = make(branches=branches)
        torch.testing.assert_close(model(*given, lengths), model(sequence, images, lengths), **EXACT)
        other = "image" if branches == "sequence" else "sequence"
        assert not any(name.startswith(other) for name, _ in model.named_parameters())


def test_late_fusion_gives_log_probabilities_of_a_mixture():
    model, inputs = make("late"), draw()
    v, s = model._image(inputs[1]), model._sequence(inputs[0], inputs[2])
    expected = (model.classifier(v).softmax(1) + model.sequence_classifier(s).softmax(1)) / 2
    torch.testing.assert_close(model(*inputs).exp(), expected, **FLOAT64)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["concat", "late", "product"])
def test_two_halves_make_a_whole(fusion):
    """The image says whether it is class 0, the sequence whether it is class 1, and class 2 is neither."""
    model = MultimodalClassifier(1, 1, 3, fusion=fusion, hidden_dim=8, channels=(8,), branch_dim=8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        label = torch.randint(3, (32,))
        images = (label == 0)[:, None, None, None] + 0.1 * torch.randn(32, 1, 4, 4)
        sequence = (label == 1)[:, None, None] + 0.1 * torch.randn(32, 5, 1)
        optimizer.zero_grad()
        logits = model(sequence, images)
        F.cross_entropy(logits, label).backward()
        optimizer.step()
    assert (logits.argmax(1) == label).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("sum"), "fusion must be one of .*'late', got 'sum'"),
        (lambda: make(branches="none"), "branches must be one of 'both', 'sequence', 'image', got 'none'"),
        (lambda: make()(torch.zeros(4, 7, 3).double(), draw()[1]), r"x must have shape \(B, T, 2\), got \(4, 7, 3\)"),
        (lambda: make()(*draw()[:2], torch.ones(3, dtype=torch.int64)), r"lengths must have shape \(4\), got \(3\)"),
        (lambda: make()(draw()[0], draw()[1][:3]), r"q must have shape \(3, 6\), got \(4, 6\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
