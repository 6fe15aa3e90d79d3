"""Several tasks on one encoder: the sum of their losses, and heads for classes and boxes.

L = λ₁ L_caption + λ₂ L_class + λ₃ L_box
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.checks import check_number, check_positive_int, check_shape


class MultiTaskLoss(nn.Module):
    """The weighted sum of losses, with weights that are given, or learned by the tasks' uncertainty
    (Kendall et al. 2018, https://arxiv.org/abs/1705.07115):

        given     L = Σ_i w_i L_i
        learned   L = Σ_i exp(−s_i) L_i + s_i / 2        s_i = log σ_i², a parameter; half of L_i for a regression

    Give the parameters of a learned one to the optimizer too, without weight decay.
    Learned weights balance losses, not what these do to the network that the tasks share: where the norms of its
    gradients differ much from task to task, give weights that make them alike.

    Args:
        tasks: names of tasks, for learned weights; or their weights by name.
        regression: those tasks, of learned weights, whose loss is a squared error: a Gaussian's −log p is
            L / (2σ²) + log σ, that of a softmax about L / σ² + log σ.
    """

    def __init__(self, tasks: Sequence[str] | Mapping[str, float], regression: Sequence[str] = ()) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks) or isinstance(tasks, str):
            raise ValueError(f"tasks must be one or more, each once, got {tasks!r}")
        if not set(regression) <= set(self.tasks):
            raise ValueError(f"regression must be some of the tasks {self.tasks}, got {tuple(regression)}")
        self.log_variance: nn.Parameter | None = None
        if isinstance(tasks, Mapping):
            if regression:
                raise ValueError(f"regression must be empty where weights are given, got {tuple(regression)}")
            factors = [check_number(f"tasks[{task!r}]", weight, low=0) for task, weight in tasks.items()]
        else:
            factors = [0.5 if task in regression else 1.0 for task in self.tasks]
            self.log_variance = nn.Parameter(torch.zeros(len(factors)))
        self.register_buffer("factors", torch.tensor(factors), persistent=False)
        self.factors: Tensor

    def weights(self) -> dict[str, float]:
        """What each loss is multiplied by, now."""
        return dict(zip(self.tasks, self._weights().tolist(), strict=True))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses, each a scalar, one for every task."""
        if set(losses) != set(self.tasks):
            raise ValueError(f"losses must be of the tasks {self.tasks}, got {tuple(losses)}")
        for task, loss in losses.items():
            check_shape(f"losses[{task!r}]", loss, ())
        total = (self._weights() * torch.stack([losses[task] for task in self.tasks])).sum()
        return total if self.log_variance is None else total + self.log_variance.sum() / 2

    def _weights(self) -> Tensor:
        return self.factors if self.log_variance is None else self.factors * (-self.log_variance).exp()


class ClassHead(nn.Module):
    """Logits of the classes of `places` objects: features (B, D) -> (B, places, classes)."""

    def __init__(self, feature_dim: int, classes: int, places: int = 1) -> None:
        super().__init__()
        self.shape = (check_positive_int("places", places), check_positive_int("classes", classes))
        self.linear = nn.Linear(check_positive_int("feature_dim", feature_dim), places * classes)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(features).unflatten(-1, self.shape)
        return logits


class BoxHead(nn.Module):
    """Boxes of `places` objects: features (B, D) -> (B, places, 4), x1, y1, x2, y2 as shares of the image's sides.

    x1 ≤ x2 and y1 ≤ y2 always: what is predicted is centre and size, each by a sigmoid, as in DETR.
    """

    def __init__(self, feature_dim: int, places: int = 1) -> None:
        super().__init__()
        self.places = check_positive_int("places", places)
        self.linear = nn.Linear(check_positive_int("feature_dim", feature_dim), 4 * places)

    def forward(self, features: Tensor) -> Tensor:
        centre, size = self.linear(features).sigmoid().unflatten(-1, (self.places, 2, 2)).unbind(-2)
        return torch.cat([centre - size / 2, centre + size / 2], -1)


def box_loss(
    boxes: Tensor, targets: Tensor, mask: Tensor | None = None, l1_weight: float = 5.0, giou_weight: float = 2.0
) -> Tensor:
    """l1_weight · ‖box − target‖₁ + giou_weight · (1 − GIoU), the mean over the boxes that are there; 0 if none is.

    The weights are those of DETR (Carion et al. 2020, https://arxiv.org/abs/2005.12872).

    Args:
        boxes: (..., 4), corners x1, y1, x2, y2.
        targets: of the same shape; what stands where the mask is False changes nothing.
        mask: (...) bool, True where there is a box; None: everywhere.
    """
    check_shape("targets", targets, tuple(boxes.shape))
    if mask is not None:
        check_shape("mask", mask, tuple(boxes.shape[:-1]))
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be a boolean tensor (True = there is a box), got {mask.dtype}")
        boxes, targets = boxes[mask], targets[mask]
    distance = F.l1_loss(boxes, targets, reduction="none").sum(-1)
    loss = l1_weight * distance + giou_weight * (1 - generalized_iou(boxes, targets))
    return loss.sum() / max(1, loss.numel())


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU − the share of the smallest box around both that neither covers: (..., 4) corners -> (...) in [−1, 1]
    (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630). 0 where that box is empty.
    """
    check_shape("b", b, (*a.shape[:-1], 4))
    inner = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    outer = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - inner
    smallest = torch.finfo(union.dtype).eps  # that the gradient of an empty box is not infinite
    return inner / union.clamp(min=smallest) - (outer - union) / outer.clamp(min=smallest)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(-1)
