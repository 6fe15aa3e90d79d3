"""The autograd Function of the attention decoder: which gradients are asked for, second derivatives, transforms."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from tests import tolerances
from tests.decoder_problems import (
    CELLS,
    QUERIES,
    VARIANTS,
    decoder_inputs,
    fused_decoder,
    plain_decoder,
    problem,
    with_location,
)
from tests.problems import cast, with_gradients

cells = pytest.mark.parametrize("cell", CELLS)
queries = pytest.mark.parametrize("query", QUERIES)


def leaves_and_options(target, cell, query, variant="everything", **sizes):
    """All that has a gradient, as leaves; what is missing, and the rest."""
    inputs, options = problem(cell, query, variant, **sizes)
    inputs = cast(inputs, torch.float64, target.device)
    options = {name: o.to(target.device) if isinstance(o, torch.Tensor) else o for name, o in options.items()}
    leaves = {name: t.requires_grad_() for name, t in inputs.items() if t is not None}
    missing = {name: None for name, t in inputs.items() if t is None}
    return leaves, missing | options


def fused(target, **arguments):
    return fused_decoder(**arguments, backend=target.backend)


@cells
@queries
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(target, cell, query, variant):
    """Inputs are random: none is within a finite difference of a kink."""
    leaves, options = leaves_and_options(target, cell, query, variant, steps=3, hidden=3)

    def function(*tensors):
        return tuple(fused(target, **dict(zip(leaves, tensors, strict=True)), **options).values())

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)


@cells
@queries
@pytest.mark.parametrize("channels", [1, 2])
def test_gradcheck_with_a_location(target, cell, query, channels):
    """By the formulas' loop, whatever back end scores."""
    leaves, options = leaves_and_options(target, cell, query, steps=3, hidden=3)
    location = with_location({"v": leaves["v"].detach()}, channels)["location"]
    leaves |= {"location": location.to(target.device).requires_grad_()}

    def function(*tensors):
        return tuple(fused(target, **dict(zip(leaves, tensors, strict=True)), **options).values())

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()), fast_mode=True)


@pytest.mark.slow
@cells
@queries
@pytest.mark.parametrize("variant", ["zero states", "leaky_relu", "everything"])
def test_gradgradcheck(target, cell, query, variant):
    leaves, options = leaves_and_options(target, cell, query, variant, steps=3, hidden=3)

    def function(*tensors):
        return tuple(fused(target, **dict(zip(leaves, tensors, strict=True)), **options).values())

    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()), fast_mode=True)


@cells
@queries
def test_create_graph_gives_the_same(target, cell, query):
    """By the formulas, where the others are the back end's."""
    leaves, options = leaves_and_options(target, cell, query)
    grads = []
    for create_graph in (False, True):
        loss = sum(out.square().sum() for out in fused(target, **leaves, **options).values())
        grads.append(torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph))
    torch.testing.assert_close(grads[1], grads[0], **tolerances.FLOAT64)


def test_inputs_made_from_one(target):
    """Each path counts once."""
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x.to(target.device).requires_grad_()

    def loss(x):
        weight = x[0, 0].repeat(4).view(4, 4)
        made = {"x": x, "key": x.sin(), "value": x.cos(), "v": x.mean((0, 1)), "h0": x[:, 0], "c0": x[:, 1]}
        made |= {"weight_q": weight, "weight_ih": weight.repeat(4, 2), "weight_hh": weight.cos().repeat(4, 1)}
        made |= dict.fromkeys(decoder_inputs().keys() - made.keys())
        return fused(target, **made)["output"].square().sum()

    once = torch.autograd.grad(loss(x), x)
    again = torch.autograd.grad(loss(x), x, create_graph=True)
    torch.testing.assert_close(again, once, **tolerances.FLOAT64)
    assert torch.autograd.gradcheck(loss, x)


@cells
@queries
def test_one_gradient_alone(target, cell, query):
    leaves, options = leaves_and_options(target, cell, query)
    tensors = {name: leaf.detach() for name, leaf in leaves.items()}
    whole = with_gradients(partial(fused, target, **options), tensors)
    for name, tensor in tensors.items():
        others = {other: t for other, t in tensors.items() if other != name}
        alone = with_gradients(partial(fused, target, **others, **options), {name: tensor})
        torch.testing.assert_close(alone[f"d {name}"], whole[f"d {name}"], **tolerances.FLOAT64)


@cells
@queries
@pytest.mark.parametrize("used", ["output", "h_n", "c_n", "context", "weights"])
def test_one_output_alone(target, cell, query, used):
    """The gradients of the others are absent, not zeros."""
    if used == "c_n" and cell == "gru":
        pytest.skip("a GRU has no cell")
    leaves, options = leaves_and_options(target, cell, query)
    tensors = {name: leaf.detach() for name, leaf in leaves.items()}
    got, want = (
        with_gradients(lambda function=function, **t: {used: function(**t, **options)[used]}, tensors)
        for function in (partial(fused, target), plain_decoder)
    )
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


def test_no_graph_where_none_is_wanted(target):
    leaves, options = leaves_and_options(target, "lstm", "previous")
    with torch.no_grad():
        assert not any(out.requires_grad for out in fused(target, **leaves, **options).values())
    with torch.inference_mode():
        assert all(out.is_inference() for out in fused(target, **leaves, **options).values())
    tensors = {name: leaf.detach() for name, leaf in leaves.items()}
    assert not any(out.requires_grad for out in fused(target, **tensors, **options).values())


def test_backward_twice_gives_the_same(target):
    leaves, options = leaves_and_options(target, "lstm", "previous")
    loss = fused(target, **leaves, **options)["output"].square().sum()
    first = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, list(leaves.values())), first, **tolerances.EXACT)


@pytest.mark.parametrize("name", ["output", "h_n", "c_n", "context", "weights"])
def test_results_written_into(target, name):
    """The last states are read by no backward; the others are, and autograd says so."""
    leaves, options = leaves_and_options(target, "lstm", "previous")
    results = fused(target, **leaves, **options)
    loss = results[name].mul_(2).sum()
    if name in ("h_n", "c_n"):
        torch.autograd.grad(loss, leaves["weight_hh"])
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaves["weight_hh"])


LOSSES = {  # infinite, or NaN, in their derivative where a weight is zero
    "entropy": lambda results: torch.special.entr(results["weights"][[0, 2]]).sum(),
    "root": lambda results: results["weights"][[0, 2]].sqrt().sum() + results["output"].sum(),
}


@cells
@queries
@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_comes_from_behind_a_mask(target, cell, query, loss):
    """Masked places are selected in the backward: infinity times their weight of zero would be NaN. Against a memory
    that ends where the mask does.
    """
    inputs = cast(decoder_inputs(cell=cell, query=query), torch.float64, target.device)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3, dtype=torch.bool, device=target.device)
    leaves = {name: t.requires_grad_() for name, t in inputs.items() if t is not None}
    missing = {name: None for name, t in inputs.items() if t is None}
    options = {"cell": cell, "query": query, **missing}
    shorter = leaves | {name: leaves[name][:, :3] for name in ("key", "value")}
    want = torch.autograd.grad(LOSSES[loss](plain_decoder(**shorter, **options)), list(leaves.values()))
    for create_graph in (False, True):  # by the back end, and by the formulas
        got = LOSSES[loss](fused(target, **leaves, **options, mask=mask))
        got = torch.autograd.grad(got, list(leaves.values()), create_graph=create_graph)
        torch.testing.assert_close(got, want, **tolerances.FLOAT64)


# ------------------------------------------------------------------------------------------------------- transforms


@cells
@queries
@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd], ids=lambda f: f.__name__)
def test_transforms(target, cell, query, transform):
    leaves, options = leaves_and_options(target, cell, query)
    tensors = {name: leaf.detach() for name, leaf in leaves.items()}
    got, want = (
        transform(lambda x, function=function: function(**tensors | {"x": x}, **options)["output"].square().sum())(
            tensors["x"]
        )
        for function in (partial(fused, target), plain_decoder)
    )
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


@cells
@queries
def test_vmap(target, cell, query):
    """Over weights and inputs, of a function and of its gradient."""
    leaves, options = leaves_and_options(target, cell, query)
    names = ("x", "weight_hh", "h0")
    stacks = tuple(torch.stack([leaves[name].detach() * scale for scale in (0.5, 1.0, -1.0)]) for name in names)
    tensors = {name: leaf.detach() for name, leaf in leaves.items()}

    def loss(*some):
        results = fused(target, **tensors | dict(zip(names, some, strict=True)), **options)
        return sum(out.square().sum() for out in results.values())

    for function in (loss, grad(loss, (0, 1, 2))):
        each = [function(*(stack[i] for stack in stacks)) for i in range(3)]
        want = torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *each)
        torch.testing.assert_close(vmap(function)(*stacks), want, **tolerances.FLOAT64)


def test_jvp(target):
    leaves, options = leaves_and_options(target, "gru", "current")
    tensors = {name: leaf.detach() for name, leaf in leaves.items()}
    got, want = (
        jvp(
            lambda x, function=function: tuple(function(**tensors | {"x": x}, **options).values()),
            (tensors["x"],),
            (torch.ones_like(tensors["x"]),),
        )
        for function in (partial(fused, target), plain_decoder)
    )
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


def test_batched_gradients(target):
    """vmap over the backward of an ordinary graph."""
    leaves, options = leaves_and_options(target, "lstm", "previous")
    output = fused(target, **leaves, **options)["output"].flatten()[:5]
    wanted = [leaves["x"], leaves["key"], leaves["weight_q"]]
    want = [torch.autograd.grad(out, wanted, retain_graph=True) for out in output]
    basis = torch.eye(5, dtype=torch.float64, device=target.device)
    got = torch.autograd.grad(output, wanted, basis, is_grads_batched=True)
    torch.testing.assert_close(got, tuple(map(torch.stack, zip(*want, strict=True))), **tolerances.FLOAT64)
