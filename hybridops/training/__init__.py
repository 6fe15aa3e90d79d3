"""Pieces for anybody's training loop: freezing, curricula, several tasks, rewards."""

from __future__ import annotations

from hybridops.training.coverage import doubly_stochastic_penalty
from hybridops.training.curriculum import CurriculumSampler
from hybridops.training.freezing import freeze, parameter_groups, unfreeze, unfreeze_first
from hybridops.training.multitask import BoxHead, ClassHead, MultiTaskLoss, box_loss, generalized_iou
from hybridops.training.self_critical import SelfCritical, self_critical_loss

__all__ = [
    "BoxHead",
    "ClassHead",
    "CurriculumSampler",
    "MultiTaskLoss",
    "SelfCritical",
    "box_loss",
    "doubly_stochastic_penalty",
    "freeze",
    "generalized_iou",
    "parameter_groups",
    "self_critical_loss",
    "unfreeze",
    "unfreeze_first",
]
