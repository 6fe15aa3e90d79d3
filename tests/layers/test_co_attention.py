"""Attention of two modalities to each other, against the equations in loops; padding changes nothing."""

from __future__ import annotations

import pytest
import torch

from hybridops import use_backend
from hybridops.layers.co_attention import AlternatingCoAttention, CoAttention, CrossModalAttention
from tests.tolerances import EXACT, FLOAT64

CO = [CoAttention, AlternatingCoAttention]
SCORES = ["bilinear", "additive"]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def softmax_mean(scores, values):
    weights = torch.softmax(torch.stack(scores), 0)
    return sum(w * x for w, x in zip(weights, values, strict=True)), weights


def test_parallel_is_the_papers():
    v, q = draw(2, 3, 4), draw(2, 5, 6)
    module = CoAttention(4, 6, 7).double()
    out = module(v, q)
    w_b, w_v, w_q = (part.weight.detach() for part in (module.affinity, module.v_proj, module.q_proj))
    for b in range(2):
        c = torch.tensor([[torch.tanh(q[b, t] @ w_b @ v[b, n]) for n in range(3)] for t in range(5)])
        v_scores, q_scores = [], []
        for n in range(3):
            hidden = torch.tanh(w_v @ v[b, n] + sum(c[t, n] * (w_q @ q[b, t]) for t in range(5)))
            v_scores.append((module.v_score.weight @ hidden)[0])
        for t in range(5):
            hidden = torch.tanh(w_q @ q[b, t] + sum(c[t, n] * (w_v @ v[b, n]) for n in range(3)))
            q_scores.append((module.q_score.weight @ hidden)[0])
        for found, weights, (expected, expected_weights) in (
            (out.v[b], out.v_weights[b], softmax_mean(v_scores, v[b])),
            (out.q[b], out.q_weights[b], softmax_mean(q_scores, q[b])),
        ):
            torch.testing.assert_close(weights, expected_weights, **FLOAT64)
            torch.testing.assert_close(found, expected, **FLOAT64)


def additive(attention, query, values):
    energy = torch.tanh(attention.query_proj(query) + attention.key_proj(values))
    return softmax_mean(list(attention.v(energy)[:, 0]), values)


def test_alternating_asks_the_question_then_the_image_then_the_question():
    v, q = draw(2, 3, 4), draw(2, 5, 6)
    module = AlternatingCoAttention(4, 6, 7).double()
    out = module(v, q)
    for b in range(2):
        summary, _ = additive(module.summary.attention, torch.ones(1, dtype=torch.float64), q[b])
        expected_v, v_weights = additive(module.v_attention, summary, v[b])
        expected_q, q_weights = additive(module.q_attention, expected_v, q[b])
        torch.testing.assert_close(out.v[b], expected_v, **FLOAT64)
        torch.testing.assert_close(out.q[b], expected_q, **FLOAT64)
        torch.testing.assert_close(out.v_weights[b], v_weights, **FLOAT64)
        torch.testing.assert_close(out.q_weights[b], q_weights, **FLOAT64)


def test_cross_modal_scores():
    v, q = draw(2, 3, 4), draw(2, 6)
    bilinear = CrossModalAttention(4, 6).double()
    scored = CrossModalAttention(4, 6, score="additive", attn_dim=5).double()
    for b in range(2):
        scores = [q[b] @ bilinear.bilinear.weight.T @ v[b, n] for n in range(3)]
        expected, weights = softmax_mean(scores, v[b])
        torch.testing.assert_close(bilinear(v, q)[0][b], expected, **FLOAT64)
        torch.testing.assert_close(bilinear(v, q)[1][b], weights, **FLOAT64)
        expected, weights = additive(scored.additive, q[b], v[b])
        torch.testing.assert_close(scored(v, q)[0][b], expected, **FLOAT64)
        torch.testing.assert_close(scored(v, q)[1][b], weights, **FLOAT64)


@pytest.mark.parametrize("make", CO)
def test_padding_of_either_side_changes_nothing(make):
    v, q = draw(2, 3, 4), draw(2, 5, 6)
    module = make(4, 6, 7).double()
    bare = module(v, q)
    v_mask, q_mask = torch.arange(5).expand(2, 5) < 3, torch.arange(9).expand(2, 9) < 5
    v_padded = torch.cat([v, torch.full((2, 2, 4), torch.nan, dtype=torch.float64)], 1)
    q_padded = torch.cat([q, torch.full((2, 4, 6), torch.nan, dtype=torch.float64)], 1)
    padded = module(v_padded, q_padded, v_mask, q_mask)
    torch.testing.assert_close(padded.v, bare.v, **FLOAT64)
    torch.testing.assert_close(padded.q, bare.q, **FLOAT64)
    torch.testing.assert_close(padded.v_weights[:, :3], bare.v_weights, **FLOAT64)
    torch.testing.assert_close(padded.q_weights[:, :5], bare.q_weights, **FLOAT64)
    assert (padded.v_weights[:, 3:] == 0.0).all()
    assert (padded.q_weights[:, 5:] == 0.0).all()


@pytest.mark.parametrize("score", SCORES)
def test_cross_modal_padding_changes_nothing(score):
    v, q = draw(2, 3, 4), draw(2, 6)
    module = CrossModalAttention(4, 6, score=score, attn_dim=5).double()
    mask = torch.arange(5).expand(2, 5) < 3
    padded = torch.cat([v, torch.full((2, 2, 4), torch.inf, dtype=torch.float64)], 1)
    torch.testing.assert_close(module(padded, q, mask)[0], module(v, q)[0], **FLOAT64)
    torch.testing.assert_close(module(padded, q, mask)[1][:, :3], module(v, q)[1], **FLOAT64)


@pytest.mark.parametrize("make", CO)
def test_a_side_without_anything_gives_zeros_and_no_gradients(make):
    v, q = draw(2, 3, 4).requires_grad_(), draw(2, 5, 6).requires_grad_()
    module = make(4, 6, 7).double()
    v_mask = torch.tensor([[True] * 3, [False] * 3])
    out = module(v, q, v_mask)
    assert (out.v[1] == 0.0).all()
    assert (out.v_weights[1] == 0.0).all()
    assert out.q.isfinite().all()
    (out.v.sum() + out.q.sum()).backward()
    assert (v.grad[1] == 0.0).all()
    assert q.grad.isfinite().all()
    torch.testing.assert_close(out.v[0], module(v, q).v[0], **FLOAT64)


@pytest.mark.parametrize("make", CO)
def test_gradients(make):
    module = make(3, 4, 5).double()
    v, q = draw(2, 3, 3).requires_grad_(), draw(2, 4, 4).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda v, q: module(v, q, mask), (v, q))


@pytest.mark.parametrize("make", CO)
def test_fused_is_the_reference(make):
    module = make(4, 6, 7).double()
    v, q = draw(2, 3, 4), draw(2, 5, 6)
    fused = module(v, q)
    with use_backend("reference"):
        plain = module(v, q)
    for found, expected in zip(fused, plain, strict=True):
        torch.testing.assert_close(found, expected, **FLOAT64)


def test_no_regions_and_no_words():
    out = CoAttention(4, 6, 7)(torch.zeros(2, 0, 4), torch.zeros(2, 0, 6))
    torch.testing.assert_close(out.v, torch.zeros(2, 4), **EXACT)
    torch.testing.assert_close(out.q, torch.zeros(2, 6), **EXACT)


@pytest.mark.parametrize("make", CO)
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (ValueError, {"v": torch.zeros(2, 3, 5)}, r"v must have shape \(B, T, 4\), got \(2, 3, 5\)"),
        (ValueError, {"q": torch.zeros(3, 5, 6)}, r"q must have shape \(2, T, 6\), got \(3, 5, 6\)"),
        (ValueError, {"v_mask": torch.ones(2, 5, dtype=torch.bool)}, r"v_mask must have shape \(2, 3\), got \(2, 5\)"),
        (TypeError, {"q_mask": torch.ones(2, 5)}, r"q_mask must be a boolean tensor \(True = may be attended\)"),
    ],
)
def test_errors(make, kind, change, message):
    inputs = {"v": torch.zeros(2, 3, 4), "q": torch.zeros(2, 5, 6), **change}
    with pytest.raises(kind, match=message):
        make(4, 6, 7)(**inputs)


def test_cross_modal_errors():
    with pytest.raises(ValueError, match="score must be one of 'bilinear', 'additive', got 'dot'"):
        CrossModalAttention(4, 6, score="dot")
    with pytest.raises(ValueError, match=r"q must have shape \(2, 6\), got \(2, 5\)"):
        CrossModalAttention(4, 6)(torch.zeros(2, 3, 4), torch.zeros(2, 5))
