"""Copies of modules: copied, pickled, saved, shared with other code that knows nothing of them."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from hybridops import FusedConvLSTM
from tests import tolerances
from tests.modules.agreement import assert_agree, examples, pair, results


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


@pytest.mark.parametrize("kind", examples())
def test_weights_only(kind, tmp_path):
    """No object of ours is in a state dict; of a whole module, its classes are all that has to be allowed."""
    arguments, inputs = examples()[kind]
    plain, module = pair(kind, **arguments)
    want = results(module, inputs)
    torch.save(module.state_dict(), tmp_path / "state")
    nn.init.zeros_(next(plain.parameters()))
    plain.load_state_dict(torch.load(tmp_path / "state", weights_only=True), strict=True)
    torch.testing.assert_close(results(plain, inputs), want, **tolerances.FLOAT64)
    torch.save(module, tmp_path / "module")
    with torch.serialization.safe_globals({type(part) for part in module.modules()}):
        twin = torch.load(tmp_path / "module", weights_only=True)
    torch.testing.assert_close(results(twin, inputs), want, **tolerances.EXACT)


@pytest.mark.parametrize("kind", ["ConvLSTMCell", "ConvLSTM"])
def test_channels_last(kind):
    """Weights in another layout: the same bits, and gradients that an optimizer can add to them."""
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments)
    want = results(module, inputs)
    module.to(memory_format=torch.channels_last)
    assert not any(p.is_contiguous() for name, p in module.named_parameters() if name.endswith("conv.weight"))
    torch.testing.assert_close(results(module, inputs), want, **tolerances.EXACT)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("kind", "given"), [("ConvLSTM", 1), ("AdditiveAttention", 3)])
def test_checkpointing(kind, given, reentrant):
    """torch.utils.checkpoint runs the forward again in the backward; reentrant it takes no tuples of tensors."""
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments)
    grads = []
    for run in (module, partial(torch.utils.checkpoint.checkpoint, module, use_reentrant=reentrant)):
        leaves = [t.detach().requires_grad_() for t in inputs[:given]]
        output = run(*leaves)[0]
        (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
        tensors = (*module.parameters(), *leaves)
        grads.append([t.grad for t in tensors])
        module.zero_grad(set_to_none=True)
    torch.testing.assert_close(*grads, **tolerances.EXACT)


def test_meta_device():
    """Shapes without numbers: the reference runs there."""
    module = FusedConvLSTM(3, 4, 3, num_layers=2, device="meta")
    output, (h_n, c_n) = module(torch.empty(2, 5, 3, 6, 7, device="meta"))
    assert output.shape == (2, 5, 4, 6, 7)
    assert h_n.shape == c_n.shape == (2, 2, 4, 6, 7)
    assert output.is_meta
