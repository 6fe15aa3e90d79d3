"""Fusions of two vectors, against their equations written out in loops or other words, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hybridops.layers.fusion import (
    FUSIONS,
    BilinearFusion,
    CompactBilinearPooling,
    ConcatFusion,
    ElementwiseFusion,
    FactorizedBilinearPooling,
    GatedFusion,
    LateFusion,
    WeightedVoting,
    signed_sqrt,
    vector_fusion,
)
from tests.tolerances import EXACT, FLOAT64


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_concat():
    v, q = draw(3, 4), draw(3, 5)
    fusion = ConcatFusion(4, 5)
    assert fusion.dim == 9
    torch.testing.assert_close(fusion(v, q), torch.cat([v, q], 1), **EXACT)


def test_elementwise():
    v, q = draw(3, 4), draw(3, 4)
    torch.testing.assert_close(ElementwiseFusion(4)(v, q), v * q, **EXACT)
    fusion = ElementwiseFusion(4, 6).double()
    w_v, w_q, w_vq = fusion.proj.weight.split(4, 1)
    expected = torch.tanh(v @ w_v.T + q @ w_q.T + (v * q) @ w_vq.T + fusion.proj.bias)
    torch.testing.assert_close(fusion(v, q), expected, **FLOAT64)


def test_gated_is_between_the_two():
    v, q = draw(3, 4), draw(3, 4)
    fusion = GatedFusion(4).double()
    weights = fusion.weights(v, q)
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64), **FLOAT64)
    torch.testing.assert_close(fusion(v, q), weights[:, [0]] * v + weights[:, [1]] * q, **FLOAT64)
    with torch.no_grad():
        fusion.gate.bias.copy_(torch.tensor([1000.0, 0.0]))
    torch.testing.assert_close(fusion(v, q), v, **FLOAT64)


def test_bilinear_has_a_matrix_for_each_output():
    v, q = draw(3, 4), draw(3, 5)
    fusion = BilinearFusion(4, 5, 2).double()
    w, b = fusion.bilinear.weight.detach(), fusion.bilinear.bias.detach()
    expected = torch.tensor([[v[n] @ w[d] @ q[n] + b[d] for d in range(2)] for n in range(3)])
    torch.testing.assert_close(fusion(v, q), expected, **FLOAT64)


def test_compact_bilinear_of_known_hashes():
    fusion = CompactBilinearPooling(3, 2, 4, normalize=False)
    fusion.v_hash, fusion.v_sign = torch.tensor([0, 2, 2]), torch.tensor([1.0, -1.0, 1.0])
    fusion.q_hash, fusion.q_sign = torch.tensor([1, 3]), torch.tensor([1.0, -1.0])
    out = fusion(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0]]))
    torch.testing.assert_close(out, torch.tensor([[0.0, -1.0, 0.0, -1.0]]), rtol=0.0, atol=1e-6)


@given(v_dim=st.integers(1, 6), q_dim=st.integers(1, 6), out_dim=st.integers(1, 9))
def test_compact_bilinear_hashes_the_outer_product(v_dim, q_dim, out_dim):
    """Odd sizes too: without n=D the inverse transform would be one short."""
    fusion = CompactBilinearPooling(v_dim, q_dim, out_dim, normalize=False).double()
    v, q = draw(2, v_dim), draw(2, q_dim)
    expected = torch.zeros(2, out_dim, dtype=torch.float64)
    for i in range(v_dim):
        for j in range(q_dim):
            place = (fusion.v_hash[i] + fusion.q_hash[j]) % out_dim
            expected[:, place] += fusion.v_sign[i] * fusion.q_sign[j] * v[:, i] * q[:, j]
    torch.testing.assert_close(fusion(v, q), expected, **FLOAT64)


def test_compact_bilinear_estimates_the_bilinear_kernel():
    """⟨f(v, q), f(v', q')⟩ is ⟨v, v'⟩⟨q, q'⟩ in the mean of all hashes, which is what it is for."""
    v, q = draw(2, 5), draw(2, 7)
    products = []
    for _ in range(400):
        first, second = CompactBilinearPooling(5, 7, 64, normalize=False).double()(v, q)
        products.append(first @ second)
    found, exact = torch.stack(products), (v[0] @ v[1]) * (q[0] @ q[1])
    assert abs(found.mean() - exact) < 4 * found.std() / 20  # four standard errors of 400
    assert found.std() < v.norm(dim=1).prod() * q.norm(dim=1).prod()


def test_hashes_are_saved():
    one, two = CompactBilinearPooling(4, 5, 16), CompactBilinearPooling(4, 5, 16)
    v, q = torch.randn(2, 4), torch.randn(2, 5)
    assert not torch.equal(one(v, q), two(v, q))
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(v, q), two(v, q), **EXACT)


def test_factorized_sums_k_products():
    v, q = draw(3, 4), draw(3, 5)
    fusion = FactorizedBilinearPooling(4, 5, 2, factors=3, normalize=False).double()
    product = fusion.v_proj(v) * fusion.q_proj(q)
    expected = torch.stack([product[:, :3].sum(1), product[:, 3:].sum(1)], 1)
    torch.testing.assert_close(fusion(v, q), expected, **FLOAT64)


def test_factorized_of_rank_one_with_tanh_is_mlb():
    v, q = draw(3, 4), draw(3, 5)
    fusion = vector_fusion("mlb", 4, 6).double()
    expected = torch.tanh(fusion.v_proj(v)) * torch.tanh(fusion.q_proj(v))
    torch.testing.assert_close(fusion(v, v), expected, **FLOAT64)
    assert fusion.v_proj.out_features == 6
    with pytest.raises(ValueError, match=r"q must have shape \(3, 4\), got \(3, 5\)"):
        fusion(v, q)


def test_dropout_is_of_the_product():
    """A product that is dropped out is 0, and one that is kept grows by 1 / (1 − p), not by its square."""
    fusion = FactorizedBilinearPooling(1, 1, 1000, factors=1, dropout=0.5, normalize=False)
    for proj in fusion.v_proj, fusion.q_proj:
        nn.init.ones_(proj.weight)
        nn.init.zeros_(proj.bias)
    out = fusion(torch.ones(1, 1), torch.ones(1, 1))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert 400 < int((out > 0).sum()) < 600
    torch.testing.assert_close(fusion.eval()(torch.ones(1, 1), torch.ones(1, 1)), torch.ones(1, 1000), **EXACT)


@pytest.mark.parametrize("kind", ["mcb", "mfb"])
def test_normalized_rows_have_length_one(kind):
    fusion = vector_fusion(kind, 4, 7).double()
    out = fusion(draw(3, 4), draw(3, 4))
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3, dtype=torch.float64), **FLOAT64)


def test_signed_sqrt():
    x = torch.tensor([-4.0, -1e-3, 0.0, 1e-3, 4.0, 100.0], dtype=torch.float64, requires_grad=True)
    out = signed_sqrt(x)
    torch.testing.assert_close(out, x.sign() * x.abs().sqrt(), rtol=0.0, atol=1e-4)  # √eps
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert slope[2] == pytest.approx(0.5 / 1e-4)
    assert slope.isfinite().all()
    assert (slope > 0.0).all()


@pytest.mark.parametrize("kind", FUSIONS)
def test_gradients_of_every_fusion(kind):
    fusion = vector_fusion(kind, 4, 5).double()
    v, q = draw(3, 4).requires_grad_(), draw(3, 4).requires_grad_()
    assert fusion(v, q).shape == (3, fusion.dim)
    assert torch.autograd.gradcheck(fusion, (v, q))


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_and_half_precision_stay_finite(kind, dtype):
    fusion = vector_fusion(kind, 4, 5).to(dtype)
    v, q = torch.zeros(3, 4, dtype=dtype, requires_grad=True), torch.randn(3, 4).to(dtype)
    out = fusion(v, q)
    assert out.dtype == dtype
    out.float().sum().backward()
    assert out.isfinite().all()
    assert v.grad.isfinite().all()


@pytest.mark.parametrize("kind", FUSIONS)
def test_an_empty_batch(kind):
    fusion = vector_fusion(kind, 4, 5)
    assert fusion(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, fusion.dim)


def test_voting_is_a_mixture_of_probabilities():
    logits = [draw(2, 3) for _ in range(3)]
    voting = WeightedVoting(3, weights=[0.5, 0.2, 0.3]).double()
    expected = sum(w * one.softmax(1) for w, one in zip([0.5, 0.2, 0.3], logits, strict=True))
    torch.testing.assert_close(voting(logits).softmax(1), expected, rtol=1e-6, atol=1e-6)  # weights begin as float32
    torch.testing.assert_close(voting(logits).logsumexp(1), torch.zeros(2, dtype=torch.float64), **FLOAT64)


def test_voting_of_scores():
    logits = [draw(2, 3), draw(2, 3)]
    voting = WeightedVoting(2, average="logits").double()
    torch.testing.assert_close(voting(logits), (logits[0] + logits[1]) / 2, **FLOAT64)


def test_voting_learns_whom_to_trust_on_the_simplex():
    """Model 0 is right, model 1 wrong, and model 2 has no vote, and gets none."""
    voting = WeightedVoting(3, weights=[0.5, 0.5, 0.0])
    right = 3.0 * torch.eye(4)
    logits = [right, right.roll(1, 0), right]
    optimizer = torch.optim.Adam(voting.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(voting(logits), torch.arange(4)).backward()
        optimizer.step()
    assert voting.weights[0] > 0.99
    assert voting.weights[2] == 0.0
    assert voting.weights.sum().item() == pytest.approx(1.0, abs=1e-6)


def test_late_fusion():
    v, q = draw(2, 3), draw(2, 3)
    fusion = LateFusion(0.25)
    assert list(fusion.parameters()) == []
    expected = 0.25 * v.softmax(1) + 0.75 * q.softmax(1)
    torch.testing.assert_close(fusion(v, q).softmax(1), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(LateFusion(1.0)(v, q), v.log_softmax(1), **FLOAT64)
    assert [p.shape for p in LateFusion(learned=True).parameters()] == [(2,)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vector_fusion("sum", 4, 5), "fusion must be one of 'concat', .* got 'sum'"),
        (lambda: ConcatFusion(0, 5), "v_dim must be a positive int, got 0"),
        (lambda: BilinearFusion(4, 5, 0), "out_dim must be a positive int, got 0"),
        (lambda: FactorizedBilinearPooling(4, 5, 6, dropout=1.5), r"dropout must be a number in \[0, 1\], got 1.5"),
        (lambda: GatedFusion(4)(draw(3, 4), draw(2, 4)), r"q must have shape \(3, 4\), got \(2, 4\)"),
        (lambda: GatedFusion(4).weights(draw(3, 5), draw(3, 4)), r"v must have shape \(B, 4\), got \(3, 5\)"),
        (lambda: WeightedVoting(2, weights=[0.5, 0.6]), "weights must be 2 numbers >= 0 that sum to 1"),
        (lambda: WeightedVoting(2, weights=[1.5, -0.5]), "weights must be 2 numbers >= 0 that sum to 1"),
        (lambda: WeightedVoting(2, average="votes"), "average must be one of 'probabilities', 'logits', got 'votes'"),
        (lambda: WeightedVoting(2)([draw(2, 3)]), "logits must be of 2 models, got 1"),
        (lambda: LateFusion()(draw(2, 3), draw(2, 4)), r"logits\[1\] must have shape \(2, 3\), got \(2, 4\)"),
        (lambda: LateFusion(1.5), r"alpha must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
