"""Weights that are computed from others: parametrizations, and the hooks of torch.nn.utils."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import hybridops
from tests.modules.agreement import assert_agree, examples, pair


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.3)


WAYS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight_norm's hook": weight_norm,
    "spectral_norm's hook": spectral_norm,
    "prune": pruned,
}


def reparametrized(module: nn.Module, way) -> nn.Module:
    torch.manual_seed(0)  # spectral_norm begins with random vectors
    for layer in [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]:
        way(layer)
    return module


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", examples())
def test_computed_weights(kind, way):
    """Computed anew for every call, with gradients of what they are computed from, in training and in evaluation.

    A plain ConvLSTM or decoder asks for its weights at every step, and spectral_norm moves on each time in training:
    hence `cached`, and for its hook one step.
    """
    arguments, inputs = examples()[kind]
    if kind in ("ConvLSTM", "AttentionDecoder") and way == "spectral_norm's hook":
        inputs = (inputs[0][:, :1], *inputs[1:])
    plain, fused = (reparametrized(module, WAYS[way]) for module in pair(kind, **arguments))
    for _ in range(2):
        with parametrize.cached():
            assert_agree(plain, fused, *inputs)
        with torch.no_grad():
            for module in (plain, fused):
                for parameter in module.parameters():
                    parameter.mul_(1.1)
    assert_agree(plain.eval(), fused.eval(), *inputs)


@pytest.mark.parametrize("kind", examples())
def test_hooks_of_the_module(kind):
    """Hooks of the module itself see and change what comes in and goes out, forward and backward."""
    arguments, inputs = examples()[kind]

    def first(outputs, factor):
        return outputs * factor if isinstance(outputs, torch.Tensor) else (outputs[0] * factor, *outputs[1:])

    seen = []
    modules = pair(kind, **arguments)
    for module in modules:
        module.register_forward_pre_hook(lambda module, given: (given[0] * 2, *given[1:]))
        module.register_forward_hook(lambda module, given, outputs: first(outputs, 3))
        module.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append((grad_in[0], grad_out[0])))
    assert_agree(*modules, *inputs)
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("kind", examples())
def test_fuse_leaves_hooks_within_alone(kind):
    """Unless they only compute a weight: a fused module would have to call that part."""
    arguments, _ = examples()[kind]
    modules = pair(kind, **arguments)[0], pair(kind, **arguments)[0]
    for module in modules:
        pruned(last_layer(module))
    last_layer(modules[1]).register_forward_hook(lambda *_: None)
    reports = [hybridops.fuse(module, report=True)[1] for module in modules]
    assert "" in reports[0].swapped
    assert "has hooks" in reports[1].left_alone[""]
    assert type(modules[1]).__name__ == kind


def last_layer(module: nn.Module) -> nn.Module:
    return [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))][-1]
