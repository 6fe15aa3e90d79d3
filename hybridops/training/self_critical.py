"""Self-critical sequence training: captions that were sampled are rewarded by a metric, over a baseline
(Rennie et al. 2017, https://arxiv.org/abs/1612.00563).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hybridops.checks import check_lengths, check_shape


class SelfCritical(NamedTuple):
    loss: Tensor  # scalar, with a gradient
    rewards: Tensor  # (B, K), of the samples
    baseline: Tensor  # (B, K), what each was compared with


def self_critical_loss(
    log_probs: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    reward: Callable[[Tensor, Tensor], Tensor],
    *,
    greedy: tuple[Tensor, Tensor] | None = None,
) -> SelfCritical:
    """The loss whose gradient is that of −E[reward], from K samples for each of B inputs:

        L = −1/(B·K) Σ_bk (r_bk − baseline_bk) Σ_{t < length_bk} log p(w_bkt)

    The end token is one of the sampled tokens: its probability is in the sum, and the length counts it. Without it
    nothing teaches the model where to end.

    Args:
        log_probs: (B, K, T), of each sampled token its log-probability, with gradients; past the length it is not used.
        tokens: (B, K, T) integers, the samples.
        lengths: (B, K) integers, tokens of each sample with its end token; T of one that did not end.
        reward: takes tokens (B, K, T) and lengths (B, K) and gives (B, K): any metric, or several, added up. Inputs are
            in the order of the batch, so that their references are known.
        greedy: tokens (B, T′) and lengths (B,) of the greedy decoding, whose reward is the baseline. None: the mean
            reward of the input's other samples, which needs K ≥ 2 (Luo 2020, https://arxiv.org/abs/2003.09971).
    """
    check_shape("log_probs", log_probs, ("B", "K", "T"))
    check_shape("tokens", tokens, tuple(log_probs.shape))
    check_shape("lengths", lengths, tuple(log_probs.shape[:2]))
    check_lengths(lengths.flatten(), log_probs.flatten(0, 1))
    batch, samples, steps = log_probs.shape
    if lengths.numel() and not 0 <= lengths.min() <= lengths.max() <= steps:
        raise ValueError(f"lengths must be from 0 to {steps}, got {lengths.min().item()} to {lengths.max().item()}")
    rewards = _rewards(reward, tokens, lengths, log_probs)
    if greedy is not None:
        greedy_tokens, greedy_lengths = greedy
        check_shape("greedy[0]", greedy_tokens, (batch, "T"))
        check_shape("greedy[1]", greedy_lengths, (batch,))
        baseline = _rewards(reward, greedy_tokens[:, None], greedy_lengths[:, None], log_probs).expand(-1, samples)
    elif samples > 1:
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
    else:
        raise ValueError(f"log_probs must be of 2 or more samples an input without greedy, got shape {batch, 1, steps}")
    sampled = torch.arange(steps, device=log_probs.device) < lengths[..., None]
    sums = log_probs.where(sampled, 0).sum(-1)
    return SelfCritical(-((rewards - baseline) * sums).mean(), rewards, baseline)


def _rewards(reward: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, lengths: Tensor, like: Tensor) -> Tensor:
    with torch.no_grad():
        rewards = reward(tokens, lengths)
    check_shape("the reward", rewards, tuple(lengths.shape))
    return rewards.to(like)
