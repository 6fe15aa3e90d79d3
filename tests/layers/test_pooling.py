from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridops.layers import AttentionPooling, LastState, MaxPooling, MeanPooling

KINDS = {
    "last": LastState,
    "mean": MeanPooling,
    "max": MaxPooling,
    "attention": lambda: AttentionPooling(3, 5),
    "gated": lambda: AttentionPooling(3, 5, gated=True),
}


@pytest.fixture(params=KINDS)
def pooling(request) -> nn.Module:
    return KINDS[request.param]().double()


def test_a_row_is_pooled_as_if_it_were_alone(pooling):
    values = torch.randn(4, 6, 3, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 1, 4, 0])[:, None]
    mask[2] = torch.tensor([True, False, True, True, False, False])  # not only padding at the end
    pooled = pooling(values.masked_fill(~mask[..., None], float("nan")), mask)
    for row in range(3):
        torch.testing.assert_close(pooled[row], pooling(values[row : row + 1, mask[row]])[0])
    assert pooled[3].eq(0).all()


def test_no_gradient_comes_from_behind_the_mask(pooling):
    values = torch.randn(3, 4, 3, dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([4, 2, 0])[:, None]
    values[~mask] = float("nan")
    pooling(values.requires_grad_(), mask).square().sum().backward()
    assert values.grad[~mask].eq(0).all()
    assert values.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in pooling.parameters())


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_nothing_to_pool(pooling, shape):
    pooled = pooling(torch.zeros(shape, dtype=torch.float64))
    assert pooled.shape == (shape[0], 3)
    assert pooled.eq(0).all()


def test_a_mask_of_integers_is_refused(pooling):
    with pytest.raises(TypeError, match="mask must be a boolean tensor"):
        pooling(torch.zeros(2, 4, 3, dtype=torch.float64), torch.ones(2, 4, dtype=torch.int64))


def test_attention_is_that_of_the_paper():
    pooling = AttentionPooling(3, 5).double()
    values = torch.randn(2, 4, 3, dtype=torch.float64)
    attention = pooling.attention
    energy = torch.tanh(values @ attention.key_proj.weight.T + attention.query_proj.weight[:, 0])
    weights = (energy @ attention.v.weight[0]).softmax(1)
    torch.testing.assert_close(pooling.weights(values), weights)
    torch.testing.assert_close(pooling(values), torch.einsum("bt,btd->bd", weights, values))


def test_the_gate_is_that_of_the_paper():
    pooling = AttentionPooling(3, 5, gated=True).double()
    values = torch.randn(2, 4, 3, dtype=torch.float64)
    attention = pooling.attention
    energy = torch.tanh(values @ attention.key_proj.weight.T + attention.query_proj.weight[:, 0])
    weights = ((energy * torch.sigmoid(pooling.gate(values))) @ attention.v.weight[0]).softmax(1)
    torch.testing.assert_close(pooling.weights(values), weights)
