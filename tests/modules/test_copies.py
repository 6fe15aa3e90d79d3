"""Copies of modules: copied, pickled, saved, shared with other code that knows nothing of them."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from hybridops import FusedConvLSTM
from tests import tolerances
from tests.modules.agreement import assert_agree, examples, pair, randn, results


def saved_and_loaded(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", examples())
def test_copies(kind, way):
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments)
    module.backend = "reference"
    twin = way(module)
    assert type(twin) is type(module)
    assert twin.backend == "reference"
    assert_agree(module, twin, *inputs)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert next(module.parameters()).any()  # nothing is shared


def test_a_copy_keeps_what_is_saved():
    assert copy.deepcopy(FusedConvLSTM(1, 1, 3, save="recompute")).save == "recompute"


@pytest.mark.parametrize("kind", examples())
def test_frozen_and_functional(kind):
    """torch.func passes parameters in; a frozen module passes gradients through to its inputs."""
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments)
    _, grads = results(module, inputs)
    module.requires_grad_(False)
    x = inputs[0].detach().requires_grad_()
    outputs = torch.func.functional_call(module, dict(module.named_parameters()), (x, *inputs[1:]))
    outputs = [out for out in torch.utils._pytree.tree_leaves(outputs) if out is not None]
    loss = sum((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum() for out in outputs)
    (grad,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(grad, grads["input 0"], **tolerances.FLOAT64)


def test_data_parallel_replicas_and_checkpointing():
    """torch.utils.checkpoint runs the forward again in the backward."""
    plain, fused = pair("ConvLSTM", 3, 4, 3)

    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)

    assert_agree(Checkpointed(plain), Checkpointed(fused), randn(2, 3, 3, 4, 5))


def test_meta_device():
    """Shapes without numbers: the reference runs there."""
    module = FusedConvLSTM(3, 4, 3, num_layers=2, device="meta")
    output, (h_n, c_n) = module(torch.empty(2, 5, 3, 6, 7, device="meta"))
    assert output.shape == (2, 5, 4, 6, 7)
    assert h_n.shape == c_n.shape == (2, 2, 4, 6, 7)
    assert output.is_meta
