"""Attention that looks at all of the image."""

from __future__ import annotations

from torch import Tensor

from hybridops.checks import check_shape


def doubly_stochastic_penalty(weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Σ_t (1 − Σ_s α_st)², the mean over sentences: low where all words together look at every region about once.

    To be added to the cross-entropy with a factor λ (Xu et al. 2015, https://arxiv.org/abs/1502.03044, section 4.2.1).

    Args:
        weights: (B, S, T), of each of S words those over T regions, as `ImageCaptioner.attend` gives them.
        mask: (B, S) bool, True = there is a word; None: everywhere.
    """
    check_shape("weights", weights, ("B", "S", "T"))
    if mask is not None:
        check_shape("mask", mask, weights.shape[:2])
        weights = weights.masked_fill(~mask[..., None], 0.0)
    return (1 - weights.sum(1)).square().sum(1).mean()
