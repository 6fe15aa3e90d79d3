"""The formulas of additive attention against loops, the plain module and autograd; the masked softmax."""

from __future__ import annotations

import math

import pytest
import torch

from hybridops.contract import Activation
from hybridops.formulas.additive_attention import (
    additive_scores_backward,
    additive_scores_forward,
    masked_logsumexp,
    masked_softmax,
)
from tests.reference.test_additive_attention import CLOSE, EXACT, INF, NAN, activations, anomaly_mode, make_attention


def make_scores(batch=2, queries=3, keys=5, channels=4, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((batch, queries, channels), (batch, keys, channels), (channels,))
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(
    ("activation", "act"),
    [("tanh", math.tanh), ("relu", lambda z: max(z, 0)), ("leaky_relu", lambda z: z if z > 0 else 0.3 * z)],
)
def test_scores_by_hand(activation, act):
    q, k, v = make_scores()
    scores = additive_scores_forward(q, k, v, Activation(activation, 0.3))
    want = [
        [
            [sum(va * act(qa + ka) for va, qa, ka in zip(v.tolist(), q_s, k_t, strict=True)) for k_t in k_b]
            for q_s in q_b
        ]
        for q_b, k_b in zip(q.tolist(), k.tolist(), strict=True)
    ]
    torch.testing.assert_close(scores, torch.tensor(want, dtype=torch.float64), **CLOSE)


@activations
def test_scores_are_the_plain_modules(activation):
    module, query, key, value = make_attention(activation=activation, negative_slope=0.3, scale=1.7, bias=True)
    q, k, v = module.query_proj(query), module.key_proj(key), module.v.weight[0]
    weights = torch.softmax(1.7 * additive_scores_forward(q, k, v, Activation(activation, 0.3)), dim=-1)
    torch.testing.assert_close(module(query, key, value), (weights @ value, weights), **CLOSE)


@activations
@pytest.mark.parametrize("kinks", [False, True])
def test_backward_formula_is_autograd(activation, kinks):
    q, k, v = (tensor.detach() for tensor in make_scores())
    if kinks:  # whole numbers: many sums are exactly 0; and one is NaN
        q, k = q.round(), k.round()
        q[0, 0, 0] = NAN
    q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
    scores = additive_scores_forward(q, k, v, Activation(activation, 0.3))
    grad = torch.randn_like(scores)
    want = torch.autograd.grad(scores, (q, k, v), grad)
    got = additive_scores_backward(grad, q, k, v, Activation(activation, 0.3))
    torch.testing.assert_close(got, want, equal_nan=True, **CLOSE)


@activations
@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 5), (2, 0, 5), (2, 3, 0), (1, 1, 1)])
def test_empty_and_single(activation, batch, queries, keys):
    q, k, v = make_scores(batch, queries, keys)
    scores = additive_scores_forward(q, k, v, Activation(activation, 0.3))
    assert scores.shape == (batch, queries, keys)
    grads = additive_scores_backward(scores, q, k, v, Activation(activation, 0.3))
    torch.testing.assert_close(grads, torch.autograd.grad(scores, (q, k, v), scores.detach()), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    q, k, v = make_scores(dtype=dtype, channels=64)
    scores = additive_scores_forward(q, k, v, Activation("tanh", 0.0))
    assert scores.dtype == torch.float32
    assert {grad.dtype for grad in additive_scores_backward(scores, q, k, v, Activation("tanh", 0.0))} == {dtype}
    exact = additive_scores_forward(q.double(), k.double(), v.double(), Activation("tanh", 0.0))
    # Half precision enters with the inputs only, so what is left is float32's rounding of 64 terms.
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-5)


@activations
def test_formulas_are_differentiable(activation):
    """Double backward runs the backward formula again under autograd."""
    q, k, v = make_scores()
    grad = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    arguments = (grad, q, k, v)
    assert torch.autograd.gradcheck(lambda *a: additive_scores_backward(*a, Activation(activation, 0.3)), arguments)


# ------------------------------------------------------------------------------------------------- masked softmax


def test_softmax_without_a_mask_is_torchs():
    scores = torch.tensor([[1.0, 2.0, -INF], [NAN, 0.0, 1.0], [INF, 0.0, 1.0], [-INF, -INF, -INF]])
    torch.testing.assert_close(masked_softmax(scores, None), torch.softmax(scores, -1), equal_nan=True, **EXACT)
    everything = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(masked_softmax(scores, everything), torch.softmax(scores, -1), equal_nan=True, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_masked_positions_do_not_count(dtype):
    scores = torch.tensor([[1.0, NAN, 2.0], [1.0, 2.0, INF], [0.0, NAN, 1.0], [NAN, 5.0, -INF]], dtype=dtype)
    mask = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    a, b = torch.softmax(scores[0, ::2], -1), torch.softmax(scores[1, :2], -1)
    want = torch.stack([a[0], 0 * a[0], a[1], b[0], b[1], 0 * b[0]]).reshape(2, 3)
    weights = masked_softmax(scores, mask)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights[:2], want)
    assert not weights[:2][~mask[:2]].any()
    assert weights[2, 0] == 0  # exactly, in a row that is NaN elsewhere
    assert weights[2, 1:].isnan().all()
    assert not weights[3].any()


@anomaly_mode
def test_an_empty_row_has_no_gradient_and_makes_no_nan():
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    with torch.autograd.detect_anomaly(check_nan=True):
        (grad,) = torch.autograd.grad(masked_softmax(scores, mask).square().sum(), scores)
    assert not grad[~mask].any()
    assert grad[0, mask[0]].all()
    assert torch.autograd.gradcheck(masked_softmax, (scores, mask))
    assert torch.autograd.gradgradcheck(masked_softmax, (scores, mask))


@anomaly_mode
def test_log_sum_exp_of_an_empty_row():
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    lse = masked_logsumexp(scores, mask)
    want = torch.stack([scores[0, mask[0]].exp().sum().log(), torch.tensor(-INF).double(), scores[2, 1]])
    torch.testing.assert_close(lse, want, **CLOSE)
    with torch.autograd.detect_anomaly(check_nan=True):
        (grad,) = torch.autograd.grad(lse[[0, 2]].sum(), scores, retain_graph=True)
    torch.testing.assert_close(grad, masked_softmax(scores, mask), **CLOSE)
    (grad,) = torch.autograd.grad(lse.sum(), scores)
    torch.testing.assert_close(grad, masked_softmax(scores, mask), **CLOSE)


def test_mask_is_broadcast():
    scores, mask = torch.randn(2, 3, 5), torch.rand(2, 1, 5) > 0.5
    torch.testing.assert_close(masked_logsumexp(scores, mask), masked_logsumexp(scores, mask.expand(2, 3, 5)), **EXACT)
    torch.testing.assert_close(masked_softmax(scores, mask), masked_softmax(scores, mask.expand(2, 3, 5)), **EXACT)
