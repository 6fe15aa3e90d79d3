"""Scores of classification."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops.checks import check_positive_int, check_shape
from hybridops.evaluation.imports import require


def accuracy(scores: Tensor, targets: Tensor) -> float:
    """The share of samples whose highest score is that of their class.

    Args:
        scores: (N, C), logits or probabilities.
        targets: (N,) class numbers, integers from 0 to C-1.
    """
    _check_classes(scores, targets)
    return float((scores.argmax(1) == targets).double().mean())


def top_k_accuracy(scores: Tensor, targets: Tensor, k: int = 5) -> float:
    """The share of samples whose class has one of the k highest scores. Shapes as for `accuracy`."""
    _check_classes(scores, targets)
    if check_positive_int("k", k) > scores.shape[1]:
        raise ValueError(f"k must not be more than the {scores.shape[1]} classes, got {k}")
    _, likeliest = scores.topk(k)
    return float((likeliest == targets[:, None]).any(1).double().mean())


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """The mean over classes of the average precision (by scikit-learn), for samples of several classes each.

    A class that no sample is of has no average precision, and is left out.

    Args:
        scores: (N, C), higher where a class is likelier.
        targets: (N, C) bool, True where a sample is of a class.
    """
    check_shape("scores", scores, ("N", "C"))
    check_shape("targets", targets, tuple(scores.shape))
    if targets.dtype != torch.bool:
        raise TypeError(f"targets must be a boolean tensor, got {targets.dtype}")
    occurs = targets.any(0)
    if not occurs.any():
        raise ValueError("targets must have a positive in one class or more, got none")
    average_precision_score = require("sklearn.metrics").average_precision_score
    return float(average_precision_score(targets[:, occurs].cpu(), scores[:, occurs].detach().float().cpu()))


def _check_classes(scores: Tensor, targets: Tensor) -> None:
    check_shape("scores", scores, ("N", "C"))
    check_shape("targets", targets, scores.shape[:1])
    if targets.dtype.is_floating_point or targets.dtype == torch.bool:
        raise TypeError(f"targets must be class numbers, a tensor of integers, got {targets.dtype}")
    if not len(targets):
        raise ValueError("scores must have one sample or more, got none")
    if targets.min() < 0 or targets.max() >= scores.shape[1]:
        raise ValueError(
            f"targets must be from 0 to {scores.shape[1] - 1}, got {targets.min().item()} to {targets.max().item()}"
        )
