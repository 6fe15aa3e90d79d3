"""Gradients under create_graph=True where one input was made from another: each path counts once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hybridops.functional as HF
from tests import tolerances
from tests.modules.agreement import examples, pair


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scores(x: Tensor, backend: str) -> Tensor:
    return HF.additive_scores(x, x.sin(), x.mean((0, 1)), backend=backend)


def attention(x: Tensor, backend: str) -> Tensor:
    bias = x.sum(-1, keepdim=True)
    return HF.additive_attention(x, x.sin(), x.cos(), x.mean((0, 1)), score_bias=bias, backend=backend)


def conv_lstm(x: Tensor, backend: str) -> Tensor:
    frames, weight = x[:, :, None, None].expand(-1, -1, 1, 3, -1), x[0, 0].repeat(3).view(4, 1, 1, 3)
    state = frames[:, 0].tanh()
    return HF.conv_lstm(frames, (state, state.sin()), weight, weight.cos(), weight.flatten()[:4], backend=backend)[0]


@pytest.mark.slow
@pytest.mark.parametrize("function", [scores, attention, conv_lstm])
def test_inputs_made_from_one(target, function):
    x = randn(2, 3, 4).to(target.device).requires_grad_()
    once = torch.autograd.grad(function(x, target.backend).square().sum(), x)
    again = torch.autograd.grad(function(x, target.backend).square().sum(), x, create_graph=True)
    torch.testing.assert_close(again, once, **tolerances.FLOAT64)
    (want,), (got,) = (
        torch.autograd.grad(function(x, backend).square().sum(), x, create_graph=True)
        for backend in ("reference", target.backend)
    )
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)
    assert torch.autograd.gradcheck(lambda x: function(x, target.backend), x)
    assert torch.autograd.gradgradcheck(lambda x: function(x, target.backend), x)


def test_attention_of_a_sequence_to_itself():
    """The keys are the values too, and the queries: the module's defaults."""
    grads = []
    for module in pair("AdditiveAttention", 4, 4, 5):
        x = randn(2, 3, 4).requires_grad_()
        for create_graph in (False, True):
            loss = module(x, x)[0].square().sum()
            grads.append(torch.autograd.grad(loss, [x, *module.parameters()], create_graph=create_graph))
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], **tolerances.FLOAT64)


@pytest.mark.parametrize("kind", examples())
def test_modules(kind):
    """Every input made from one tensor."""
    arguments, inputs = examples()[kind]
    grads = []
    for module in pair(kind, **arguments):
        x = randn(1).requires_grad_()
        made = torch.utils._pytree.tree_map_only(Tensor, lambda t: t if t.dtype == torch.bool else t * x.sin(), inputs)  # noqa: B023
        for create_graph in (False, True):
            outputs = [out for out in torch.utils._pytree.tree_leaves(module(*made)) if out is not None]
            loss = sum(out.square().sum() for out in outputs)
            grads.append(torch.autograd.grad(loss, x, create_graph=create_graph, retain_graph=True))
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], **tolerances.FLOAT64)
