from __future__ import annotations

import pytest
import torch

from hybridops.evaluation import accuracy, mean_average_precision, top_k_accuracy

SCORES = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4], [0.6, 0.3, 0.2], [0.7, 0.4, 0.9]])
LABELS = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]]).bool()


def test_known_mean_average_precision():
    pytest.importorskip("sklearn")
    assert mean_average_precision(SCORES, LABELS) == pytest.approx(0.861111, abs=5e-7)


def test_a_class_without_samples_is_left_out():
    pytest.importorskip("sklearn")
    more = torch.cat([SCORES, torch.rand(4, 1)], 1), torch.cat([LABELS, torch.zeros(4, 1, dtype=torch.bool)], 1)
    assert mean_average_precision(*more) == mean_average_precision(SCORES, LABELS)


def test_accuracy_and_top_k():
    targets = torch.tensor([0, 2, 1, 0])
    assert accuracy(SCORES, targets) == 0.25
    assert [top_k_accuracy(SCORES, targets, k) for k in (1, 2, 3)] == [0.25, 1, 1]
    assert top_k_accuracy(SCORES, torch.tensor([1, 0, 2, 1]), 2) == 0


@pytest.mark.parametrize(
    ("judge", "scores", "targets", "error", "message"),
    [
        (accuracy, SCORES, torch.tensor([0, 1, 2, 3]), ValueError, "targets must be from 0 to 2, got 0 to 3"),
        (accuracy, SCORES, torch.tensor([0, 1, 2]), ValueError, r"targets must have shape \(4\), got \(3\)"),
        (accuracy, SCORES, torch.rand(4), TypeError, "targets must be class numbers.*got torch.float32"),
        (accuracy, SCORES[:0], torch.tensor([0])[:0], ValueError, "scores must have one sample or more"),
        (
            top_k_accuracy,
            SCORES,
            torch.tensor([0, 1, 2, 0]),
            ValueError,
            "k must not be more than the 3 classes, got 5",
        ),
        (mean_average_precision, SCORES, LABELS.long(), TypeError, "targets must be a boolean tensor, got torch.int64"),
        (mean_average_precision, SCORES, LABELS[:, :2], ValueError, r"targets must have shape \(4, 3\), got \(4, 2\)"),
        (mean_average_precision, SCORES, LABELS & False, ValueError, "targets must have a positive"),
    ],
)
def test_bad_arguments_are_named(judge, scores, targets, error, message):
    with pytest.raises(error, match=message):
        judge(scores, targets)
