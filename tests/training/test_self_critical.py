"""Three words, of which the last ends, and at most three of them: every caption there is can be written down."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from hybridops.training import self_critical_loss

END, STEPS = 2, 3


def captions():
    """Every caption, (tokens padded with END, length): it ends with its first END, or after STEPS words."""
    found = {}
    for words in product(range(3), repeat=STEPS):
        length = words.index(END) + 1 if END in words else STEPS
        found[words[:length]] = ([*words[:length], *[END] * (STEPS - length)], length)
    tokens, lengths = zip(*found.values(), strict=True)
    return torch.tensor(tokens), torch.tensor(lengths)


TOKENS, LENGTHS = captions()
REWARDS = torch.linspace(-1, 2, len(TOKENS), dtype=torch.float64).cos()


def reward(tokens, lengths):
    """Looked up by the caption."""
    known = {tuple(row[:length].tolist()): value for row, length, value in zip(TOKENS, LENGTHS, REWARDS, strict=True)}
    rows = zip(tokens.flatten(0, 1), lengths.flatten(), strict=True)
    return torch.stack([known[tuple(row[:length].tolist())] for row, length in rows]).view(lengths.shape)


def make_policy():
    """Logits of each word given the step and the word before it."""
    return torch.randn(STEPS, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def log_probs(policy, tokens):
    before = torch.cat([torch.full_like(tokens[:, :1], END), tokens[:, :-1]], 1)
    all_words = policy[torch.arange(STEPS), before].log_softmax(-1)
    return all_words.gather(-1, tokens[..., None]).squeeze(-1)


def probabilities(policy):
    words = log_probs(policy, TOKENS)
    return words.where(torch.arange(STEPS) < LENGTHS[:, None], 0).sum(1).exp()


def test_there_are_all_captions():
    assert len(TOKENS) == 1 + 2 + 4 + 8
    assert probabilities(make_policy()).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("baseline", ["greedy", "others"])
def test_the_expected_gradient_is_that_of_the_reward(baseline):
    """Over every pair of captions, times its probability: what sampling gives in the mean."""
    policy = make_policy()
    p = probabilities(policy)
    (expected,) = torch.autograd.grad(-(p * REWARDS).sum(), policy, retain_graph=True)

    greedy = (TOKENS[3:4], LENGTHS[3:4]) if baseline == "greedy" else None
    mean = torch.zeros_like(policy)
    for pair in product(range(len(TOKENS)), repeat=2):
        tokens, lengths = TOKENS[list(pair)], LENGTHS[list(pair)]
        loss = self_critical_loss(
            log_probs(policy, tokens)[None], tokens[None], lengths[None], reward, greedy=greedy
        ).loss
        (gradient,) = torch.autograd.grad(loss, policy)
        mean += p[list(pair)].prod().detach() * gradient
    assert torch.allclose(mean, expected, rtol=1e-10, atol=1e-12)


def test_baselines_are_the_greedy_reward_and_the_mean_of_the_others():
    tokens, lengths = TOKENS[:6].view(2, 3, STEPS), LENGTHS[:6].view(2, 3)
    words = torch.zeros(2, 3, STEPS, dtype=torch.float64)
    _, rewards, baseline = self_critical_loss(words, tokens, lengths, reward)
    assert torch.equal(rewards, REWARDS[:6].view(2, 3))
    others = [[(rewards[b].sum() - rewards[b, k]) / 2 for k in range(3)] for b in range(2)]
    assert torch.allclose(baseline, torch.tensor(others, dtype=torch.float64))
    greedy = (TOKENS[7:9], LENGTHS[7:9])
    assert torch.equal(self_critical_loss(words, tokens, lengths, reward, greedy=greedy).baseline[:, 2], REWARDS[7:9])


def test_the_end_token_counts_and_what_follows_it_does_not():
    words = torch.tensor([[[-1.0, -2.0, -4.0]]], dtype=torch.float64).requires_grad_()
    greedy = (TOKENS[:1], LENGTHS[:1])
    one = torch.tensor([[[0, END, END]]]), torch.tensor([[2]])
    loss, rewards, baseline = self_critical_loss(words, *one, reward, greedy=greedy)
    assert loss.item() == pytest.approx(-(rewards - baseline).item() * -3)
    loss.backward()
    advantage = (rewards - baseline).item()
    assert words.grad.tolist() == [[[-advantage, -advantage, 0]]]
    nonsense = words.detach().clone()
    nonsense[..., 2] = -math.inf
    assert self_critical_loss(nonsense, *one, reward, greedy=greedy).loss.item() == loss.item()


def test_training_finds_the_best_caption():
    torch.manual_seed(0)
    policy = make_policy()
    optimizer = torch.optim.Adam([policy], lr=0.05)
    before = (probabilities(policy) * REWARDS).sum().item()
    for _ in range(200):
        which = torch.multinomial(probabilities(policy).detach(), 8, replacement=True)
        optimizer.zero_grad()
        words = log_probs(policy, TOKENS[which])
        self_critical_loss(words[None], TOKENS[which][None], LENGTHS[which][None], reward).loss.backward()
        optimizer.step()
    best = REWARDS.max().item()
    assert (probabilities(policy) * REWARDS).sum().item() > best - 0.1 * (best - before)


WORDS = torch.zeros(2, 3, STEPS, dtype=torch.float64)
ROWS = torch.zeros(2, 3, STEPS, dtype=torch.int64)
ENDS = torch.full((2, 3), STEPS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((WORDS, ROWS[:, :2], ENDS, reward), ValueError, r"tokens must have shape \(2, 3, 3\), got \(2, 2, 3\)"),
        ((WORDS, ROWS, ENDS[0], reward), ValueError, r"lengths must have shape \(2, 3\), got \(3\)"),
        ((WORDS, ROWS, ENDS + 1, reward), ValueError, "lengths must be from 0 to 3, got 4 to 4"),
        ((WORDS, ROWS, ENDS.float(), reward), TypeError, "lengths must be a tensor of integers"),
        ((WORDS[:, :1], ROWS[:, :1], ENDS[:, :1], reward), ValueError, r"2 or more samples .* got shape \(2, 1, 3\)"),
        ((WORDS, ROWS, ENDS, lambda tokens, lengths: lengths[0]), ValueError, r"the reward must have shape \(2, 3\)"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        self_critical_loss(*arguments)


def test_a_greedy_decoding_of_another_batch_is_named():
    with pytest.raises(ValueError, match=r"greedy\[0\] must have shape \(2, T\), got \(1, 3\)"):
        self_critical_loss(WORDS, ROWS, ENDS, reward, greedy=(ROWS[0, :1], ENDS[0, :1]))
