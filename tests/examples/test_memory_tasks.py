"""Tasks for a memory: what is asked is in the input, and where; and the system of them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn")
from examples.data import memory_tasks
from examples.data.moving_sprites import PARTS


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_copy():
    task = memory_tasks.copy(3, 4, drawn(), bits=5)
    assert task.inputs.shape == (3, 9, 6)
    assert torch.equal(task.inputs[:, :4, :5], task.targets)
    assert task.inputs[:, :, 5].tolist() == [[0, 0, 0, 0, 1, 0, 0, 0, 0]] * 3
    assert not task.inputs[:, 4:, :5].any()
    assert set(task.targets.flatten().tolist()) == {0.0, 1.0}
    assert not torch.equal(memory_tasks.copy(3, 4, drawn().manual_seed(1), bits=5).inputs, task.inputs)


def test_associative_recall():
    task = memory_tasks.associative_recall(50, 3, drawn(), bits=6, rows=2)
    assert task.inputs.shape == (50, 15, 8)
    assert task.inputs[:, :, 6].tolist() == [[1, 0, 0] * 3 + [0] * 6] * 50
    assert task.inputs[:, :, 7].tolist() == [[0] * 9 + [1, 0, 0, 1, 0, 0]] * 50
    assert not task.inputs[:, 13:].any()
    items = task.inputs[:, :9, :6].unflatten(1, (3, 3))[:, :, 1:]
    for row in range(50):
        after = [items[row, i + 1] for i in range(2) if torch.equal(items[row, i], task.inputs[row, 10:12, :6])]
        assert any(torch.equal(item, task.targets[row]) for item in after)
    assert (task.targets.flatten(1) != items[:, 2].flatten(1)).any(1).any()  # not always the last


@pytest.mark.parametrize("part", PARTS)
def test_copy_digits(part):
    task = memory_tasks.copy_digits(20, 3, drawn(), part=part)
    assert task.inputs.shape == (20, 7, 1, 8, 8)
    assert (task.inputs[:, 3] == 1.0).all()
    assert not task.inputs[:, 4:].any()
    images, classes = memory_tasks._digits(part)
    for image, label in zip(task.inputs[:, :3].flatten(0, 1), task.targets.flatten(), strict=True):
        assert label in classes[(images == image).all(2).all(1)]


def test_single_images():
    images, classes = memory_tasks.single_images("validation")
    digits, which = memory_tasks._digits("validation")
    assert torch.equal(images[:250, 0], digits)
    assert torch.equal(classes[:250], which)
    assert classes[250:].tolist() == [memory_tasks.WHITE] * 25 + [memory_tasks.BLACK] * 25
    assert (images[250:275] == 1.0).all()
    assert not images[275:].any()


@pytest.fixture(scope="module")
def system():
    for package in "rich", "matplotlib":
        pytest.importorskip(package)
    from examples.systems import memory

    return memory


def test_the_lstm_has_as_many_weights(system, tmp_path):
    for lists in system.LISTS.values():
        models = system.make_models(lists, system.Options(smoke=True, out=tmp_path)).values()
        ntm, lstm = map(system.count_weights, models)
        assert ntm <= lstm < 1.02 * ntm


def test_what_is_wrong(system):
    task = memory_tasks.copy(2, 3, drawn(), bits=4)

    def right(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :4, :4], 2.0 * x[:, :3, :4] - 1.0], 1)

    assert system.wrong(right, task) == 0.0
    assert system.wrong(lambda x: -right(x), task) == 1.0
    digits = memory_tasks.copy_digits(2, 3, drawn())
    scores = torch.nn.functional.one_hot(digits.targets, 10).float()
    assert system.wrong(lambda x: scores, digits) == 0.0
    scores[0, 1] = 0.0
    scores[0, 1, (digits.targets[0, 1] + 1) % 10] = 1.0
    assert system.wrong(lambda x: scores, digits) == pytest.approx(1 / 6)
