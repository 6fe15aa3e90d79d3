from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hybridops.training import BoxHead, ClassHead, MultiTaskLoss, box_loss, generalized_iou


def losses(**values):
    return {task: torch.tensor(value, dtype=torch.float64, requires_grad=True) for task, value in values.items()}


def test_given_weights():
    loss = MultiTaskLoss({"caption": 1, "class": 0.5, "box": 2})
    parts = losses(caption=3.0, box=1.0, **{"class": 4.0})
    total = loss(parts)
    assert total.item() == 3 + 0.5 * 4 + 2 * 1
    total.backward()
    assert [parts[task].grad.item() for task in ("caption", "class", "box")] == [1, 0.5, 2]
    assert loss.weights() == {"caption": 1, "class": 0.5, "box": 2}
    assert not list(loss.parameters())


def test_learned_weights_are_the_equation():
    loss = MultiTaskLoss(["class", "box"], regression=["box"])
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor([0.4, -1.0]))
    expected = math.exp(-0.4) * 3 + 0.2 + math.exp(1) * 0.5 / 2 - 0.5
    assert loss(losses(box=0.5, **{"class": 3.0})).item() == pytest.approx(expected)


def test_learned_weights_go_to_their_optimum():
    """dL/ds = 0 at exp(−s) = 1 / (2 L_class), and at exp(−s) = 1 / L_box."""
    loss = MultiTaskLoss(["class", "box"], regression=["box"])
    parts = losses(box=0.1, **{"class": 2.0})
    optimizer = torch.optim.LBFGS(loss.parameters(), line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = loss(parts)
        total.backward()
        return total

    for _ in range(5):
        optimizer.step(closure)
    assert loss.weights() == pytest.approx({"class": 1 / 4, "box": 0.5 / 0.1}, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"tasks must be one or more, each once, got \[\]"),
        ((["a", "a"],), "each once"),
        (("class",), "tasks must be one or more, each once, got 'class'"),
        ((["a"], ["b"]), r"regression must be some of the tasks \('a',\), got \('b',\)"),
        (({"a": 1.0}, ["a"]), "regression must be empty where weights are given"),
        (({"a": -1.0},), r"tasks\['a'\] must be .* got -1.0"),
    ],
)
def test_bad_tasks_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskLoss(*arguments)


def test_losses_of_other_tasks_are_named():
    loss = MultiTaskLoss(["a", "b"])
    with pytest.raises(ValueError, match=r"losses must be of the tasks \('a', 'b'\), got \('a',\)"):
        loss(losses(a=1.0))
    with pytest.raises(ValueError, match=r"losses\['b'\] must have shape \(\), got \(1\)"):
        loss(losses(a=1.0, b=[1.0]))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 9),
        ((0, 0, 4, 4), (1, 1, 2, 3), 2 / 16),
        ((0, 0, 1, 1), (2, 0, 3, 1), -1 / 3),
        ((0, 0, 1, 1), (9, 9, 10, 10), -98 / 100),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0),
    ],
)
def test_generalized_iou(a, b, expected):
    a, b = torch.tensor(a).double(), torch.tensor(b).double()
    assert generalized_iou(a, b).item() == pytest.approx(expected)
    assert generalized_iou(b, a).item() == pytest.approx(expected)


def random_boxes(*shape, generator):
    corners = torch.rand(*shape, 2, 2, dtype=torch.float64, generator=generator)
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def test_box_loss_is_the_mean_over_boxes_that_are_there():
    generator = torch.Generator().manual_seed(0)
    boxes, targets = (random_boxes(3, 4, generator=generator) for _ in range(2))
    mask = torch.rand(3, 4, generator=generator) < 0.5
    expected = [
        5 * (a - b).abs().sum() + 2 * (1 - generalized_iou(a, b))
        for a, b in zip(boxes[mask], targets[mask], strict=True)
    ]
    assert box_loss(boxes, targets, mask).item() == pytest.approx(torch.stack(expected).mean().item())
    nonsense = targets.masked_fill(~mask[..., None], math.nan)
    assert box_loss(boxes, nonsense, mask) == box_loss(boxes, targets, mask)
    assert box_loss(targets, targets).item() == pytest.approx(0)
    boxes.requires_grad_()
    box_loss(boxes, targets, mask & False).backward()
    assert not boxes.grad.any()
    assert torch.autograd.gradcheck(lambda x: box_loss(x, targets, mask), boxes)


def test_gradients_of_empty_boxes_are_finite():
    boxes = torch.tensor([[0.5, 0.2, 0.5, 0.9]], requires_grad=True)
    box_loss(boxes, boxes.detach()).backward()
    assert boxes.grad.isfinite().all()


def test_bad_boxes_are_named():
    with pytest.raises(ValueError, match=r"targets must have shape \(2, 4\), got \(3, 4\)"):
        box_loss(torch.rand(2, 4), torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"must have shape \(2, 4\), got \(2, 5\)"):
        box_loss(torch.rand(2, 5), torch.rand(2, 5))
    with pytest.raises(TypeError, match="mask must be a boolean tensor"):
        box_loss(torch.rand(2, 4), torch.rand(2, 4), torch.ones(2))


def test_heads_learn_a_small_set():
    torch.manual_seed(0)
    features = torch.randn(8, 16)
    classes = torch.randint(5, (8, 3))
    targets = random_boxes(8, 3, generator=torch.Generator().manual_seed(1)).float()
    class_head, box_head = ClassHead(16, 5, places=3), BoxHead(16, places=3)
    loss = MultiTaskLoss(["class", "box"])
    parameters = [*class_head.parameters(), *box_head.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)

    def parts():
        logits, boxes = class_head(features), box_head(features)
        assert logits.shape == (8, 3, 5)
        assert (boxes[..., 2:] >= boxes[..., :2]).all()
        return {"class": F.cross_entropy(logits.flatten(0, 1), classes.flatten()), "box": box_loss(boxes, targets)}

    before = parts()
    for _ in range(150):
        optimizer.zero_grad()
        loss(parts()).backward()
        optimizer.step()
    after = parts()
    assert all(after[task] < 0.3 * before[task] for task in after)
