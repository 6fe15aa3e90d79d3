"""From easy to hard: short captions or simple scenes first, all of them in the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from hybridops.checks import check_number, check_positive_int


class CurriculumSampler(Sampler[int]):
    """The easiest share c of the samples, in random order; c grows with the epochs until it is all of them, by the
    competence of Platanios et al. 2019 (https://arxiv.org/abs/1903.09848):

        c(epoch) = min(1, √(epoch / epochs · (1 − start²) + start²))

    Call `set_epoch` before each epoch, as with a DistributedSampler.

    Args:
        difficulty: of each sample a number: its caption's length, how many objects its image has. Ties are in the order
            they come.
        epochs: after so many epochs all samples are used.
        start: c of epoch 0, in (0, 1].
        seed: of the orders, another in each epoch.
    """

    def __init__(self, difficulty: Sequence[float] | Tensor, epochs: int, start: float = 0.2, seed: int = 0) -> None:
        values = torch.as_tensor(difficulty)
        if values.dim() != 1 or not len(values):
            raise ValueError(f"difficulty must be of shape (N,), N > 0, got {tuple(values.shape)}")
        if values.isnan().any():
            raise ValueError("difficulty must be numbers, got NaN among them")
        if not check_number("start", start, 0, 1):
            raise ValueError(f"start must be more than 0, got {start}")
        self.epochs = check_positive_int("epochs", epochs)
        self.start = start
        self.seed = seed
        self.epoch = 0
        self._from_easy = values.argsort(stable=True)

    def set_epoch(self, epoch: int) -> None:
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples in this epoch, one or more."""
        progress = min(1.0, self.epoch / self.epochs)
        competence = math.sqrt(progress * (1 - self.start**2) + self.start**2)
        return max(1, round(competence * len(self._from_easy)))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self), generator=generator)
        return iter(self._from_easy[order].tolist())
