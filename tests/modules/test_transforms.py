"""torch.func's transforms, and a vmap over a backward: the numbers and gradients of the plain modules."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils._pytree import tree_leaves, tree_map

from hybridops import modules, reference
from tests import tolerances
from tests.modules.agreement import examples, pair

kinds = pytest.mark.parametrize("kind", examples())


def loss_of(module: nn.Module, parameters: dict[str, torch.Tensor], *inputs):
    outputs = tree_leaves(functional_call(module, parameters, inputs))
    return sum(out.square().sum() for out in outputs if out is not None)


def both(kind: str, function) -> None:
    """`function(module, inputs)` of the plain and of the fused module."""
    arguments, inputs = examples()[kind]
    plain, fused = pair(kind, **arguments)
    torch.testing.assert_close(function(fused, inputs), function(plain, inputs), **tolerances.FLOAT64)


@kinds
def test_grad(kind):
    both(kind, lambda module, inputs: grad(partial(loss_of, module))(dict(module.named_parameters()), *inputs))


@kinds
def test_gradients_of_each_example(kind):
    def of_each(module, inputs):
        # of stacked states the batch is the second dimension
        dims = tree_map(lambda t: 1 if kind == "ConvLSTM" and t.shape[0] == 2 else 0, inputs)
        one = tree_map(lambda t, dim: t.movedim(dim, 0).unsqueeze(dim + 1), inputs, dims)
        per_example = vmap(grad(partial(loss_of, module)), in_dims=(None, *[0] * len(inputs)))
        return per_example(dict(module.named_parameters()), *one)

    both(kind, of_each)


@pytest.mark.parametrize("kind", [kind for kind in examples() if kind != "AttentionDecoder"])
def test_an_ensemble(kind):
    """vmap over stacked parameters, then an ordinary backward; of what vmap takes: it has no rule for `nn.LSTMCell`."""
    arguments, inputs = examples()[kind]

    def gradients(library, prefix):
        torch.manual_seed(0)
        models = [getattr(library, prefix + kind)(**arguments, dtype=torch.float64) for _ in range(3)]
        parameters, buffers = stack_module_state(models)
        outputs = vmap(lambda p, b: functional_call(models[0], (p, b), inputs))(parameters, buffers)
        sum(out.square().sum() for out in tree_leaves(outputs)).backward()
        return {name: parameter.grad for name, parameter in parameters.items()}

    torch.testing.assert_close(gradients(modules, "Fused"), gradients(reference, ""), **tolerances.FLOAT64)


@kinds
def test_jvp(kind):
    def of_first(module, inputs):
        function = lambda first: [out for out in tree_leaves(module(first, *inputs[1:])) if out is not None]  # noqa: E731
        return jvp(function, inputs[:1], (torch.ones_like(inputs[0]),))

    both(kind, of_first)


@kinds
@pytest.mark.parametrize("transform", [jacrev, jacfwd, hessian], ids=lambda f: f.__name__)
def test_jacobians(kind, transform):
    def of_bias(module, inputs):
        parameters = dict(module.named_parameters())
        name = min(parameters, key=lambda name: parameters[name].numel())
        return transform(lambda p: loss_of(module, parameters | {name: p}, *inputs))(parameters[name])

    both(kind, of_bias)


@kinds
def test_a_vectorised_jacobian(kind):
    """vmap over the backward of an ordinary graph."""

    def of_first(module, inputs):
        first = lambda x: tree_leaves(module(x, *inputs[1:]))[0].flatten()[:7]  # noqa: E731
        return torch.autograd.functional.jacobian(first, inputs[0], vectorize=True)

    both(kind, of_first)
