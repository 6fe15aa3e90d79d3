"""Tasks for a memory: what is asked is in the input, and where."""

from __future__ import annotations

import torch

from examples.data import memory_tasks


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
