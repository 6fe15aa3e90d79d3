"""The autograd Functions of the additive family: which gradients are asked for, second derivatives."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

import hybridops.functional as HF
from hybridops import native
from tests import tolerances
from tests.problems import (
    ACTIVATIONS,
    SLOPE,
    attention_inputs,
    cast,
    fused_attention,
    plain_attention,
    plain_scores,
    with_gradients,
)
from tests.processes import run_python

activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def problem(target, **sizes):
    inputs = cast(attention_inputs(score_bias=True, **sizes), torch.float64, target.device)
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool, device=target.device)
    return inputs, mask


@activations
def test_gradcheck(target, activation):
    """Inputs are random: none is within a finite difference of a kink."""
    inputs, mask = problem(target, queries=2, width=3)
    leaves = {name: t.requires_grad_() for name, t in inputs.items()}

    def attend(*tensors):
        options = {"mask": mask, "scale": 0.7, "activation": activation, "backend": target.backend}
        return tuple(fused_attention(**dict(zip(leaves, tensors, strict=True)), **options).values())

    def score(query, key, v):
        return HF.additive_scores(query, key, v, activation=activation, negative_slope=SLOPE, backend=target.backend)

    for function, names in ((attend, leaves), (score, ("query", "key", "v"))):
        arguments = tuple(leaves[name] for name in names)
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_gradcheck_of_log_sum_exp(target):
    """All three results, with a row that may attend nothing: its lse is a constant -inf, and left out."""
    inputs, mask = problem(target, queries=2, width=3)
    leaves = {name: t.requires_grad_() for name, t in inputs.items()}

    def attend(*tensors):
        arguments = dict(zip(leaves, tensors, strict=True))
        options = {"mask": mask, "scale": 0.7, "return_weights": True, "return_lse": True, "backend": target.backend}
        context, weights, lse = HF.additive_attention(**arguments, **options)
        return context, weights, lse[:1]

    assert torch.autograd.gradcheck(attend, tuple(leaves.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, tuple(leaves.values()), fast_mode=True)


def test_second_derivatives_with_prepared_keys(target):
    """The exponentials were taken once, outside of any graph; the keys' gradients do not go through them."""
    inputs, _ = problem(target, queries=2, width=3)
    exponentials = HF.prepare_exponentials(inputs["key"], backend=target.backend)
    leaves = {name: t.requires_grad_() for name, t in inputs.items()}

    def attend(*tensors):
        arguments = dict(zip(leaves, tensors, strict=True))
        return tuple(fused_attention(**arguments, prepared=exponentials, backend=target.backend).values())

    # not gradcheck: its finite differences change the keys, and not what was prepared of them
    assert torch.autograd.gradgradcheck(attend, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("needed", ["query", "key", "value", "v", "score_bias"])
def test_one_gradient_alone(target, needed):
    inputs, mask = problem(target)
    options = {"mask": mask, "backend": target.backend}
    want = with_gradients(fused_attention, inputs, **options)[f"d {needed}"]
    others = {name: t for name, t in inputs.items() if name != needed}
    got = with_gradients(lambda **leaf: fused_attention(**leaf, **others, **options), {needed: inputs[needed]})
    torch.testing.assert_close(got[f"d {needed}"], want, **tolerances.FLOAT64)


@pytest.mark.parametrize("used", ["context", "weights"])
def test_one_output_alone(target, used):
    """The gradient of the other is absent, not zeros."""
    inputs, mask = problem(target)

    def only(form, **options):
        return lambda **leaves: {used: form(**leaves, mask=mask, **options)[used]}

    got = with_gradients(only(fused_attention, backend=target.backend), inputs)
    torch.testing.assert_close(got, with_gradients(only(plain_attention), inputs), **tolerances.FLOAT64)


@activations
@pytest.mark.parametrize("used", ["context", "weights"])
def test_gradient_penalty(target, activation, used):
    """A second derivative in use: backward through the norm of a gradient."""
    results = []
    for form in (plain_attention, partial(fused_attention, backend=target.backend)):
        inputs, mask = problem(target)
        leaves = [t.requires_grad_() for t in inputs.values()]
        loss = form(**inputs, mask=mask, activation=activation)[used].square().sum()
        grads = torch.autograd.grad(loss, (inputs["query"], inputs["key"]), create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        results.append((grads, torch.autograd.grad(penalty, leaves, materialize_grads=True)))
    torch.testing.assert_close(*results, **tolerances.FLOAT64)


def test_no_graph_where_none_is_wanted(target):
    inputs, mask = problem(target)
    assert fused_attention(**inputs, mask=mask, backend=target.backend)["context"].grad_fn is None
    inputs["query"].requires_grad_()
    with torch.no_grad():
        assert fused_attention(**inputs, mask=mask, backend=target.backend)["context"].grad_fn is None
    with torch.inference_mode():
        assert fused_attention(**inputs, mask=mask, backend=target.backend)["context"].is_inference()


def test_backward_twice_gives_the_same(target):
    inputs, mask = problem(target)
    leaves = [t.requires_grad_() for t in inputs.values()]
    loss = fused_attention(**inputs, mask=mask, backend=target.backend)["context"].square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), first, **tolerances.EXACT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch itself uses here
def test_forward_mode(target):
    """The reference's operations have it; a compiled op refuses, and does not drop the tangent."""
    inputs, mask = problem(target)
    tangent = torch.randn_like(inputs["query"])
    with forward_ad.dual_level():
        dual = inputs | {"query": forward_ad.make_dual(inputs["query"], tangent)}
        want = forward_ad.unpack_dual(plain_attention(**dual, mask=mask)["context"]).tangent
        if target.backend != "reference":
            with pytest.raises((NotImplementedError, RuntimeError), match="forward"):
                fused_attention(**dual, mask=mask, backend=target.backend)
        else:
            context = fused_attention(**dual, mask=mask, backend=target.backend)["context"]
            torch.testing.assert_close(forward_ad.unpack_dual(context).tangent, want, **tolerances.FLOAT64)


STEP_MEMORY = """
import re, torch
from pathlib import Path
import hybridops.functional as HF

def resident(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def step(queries, keys, width):
    shapes = {"query": (queries, width), "key": (keys, width), "value": (keys, width)}
    inputs = {name: torch.randn(1, *shape, requires_grad=True) for name, shape in shapes.items()}
    inputs["v"] = torch.randn(width, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    HF.additive_attention(**inputs, backend="native").sum().backward()
    return resident("VmHWM") - before  # with what kernels and libraries take for themselves

step(64, 64, 64)
print(step(256, 2048, 256))
"""


@pytest.mark.slow
@pytest.mark.skipif(native.unavailable_reason() is not None, reason="the compiled ops are not here")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what a process had at its peak")
def test_memory_of_a_training_step():
    """At most six times (query, key, value and (B,S,T)), all in all; one (B,S,T,A) would be 82 times as much."""
    queries, keys, width = 256, 2048, 256
    inputs_and_scores = 4 * (queries * width + 2 * keys * width + queries * keys)
    assert inputs_and_scores < int(run_python(STEP_MEMORY)) <= 6 * inputs_and_scores


MASKS = {
    "padding": torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool),
    "of each query": torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.5,
    "nothing": torch.tensor([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool),
}
LOSSES = {  # infinite, or NaN, in their derivative where a weight is zero
    "entropy": lambda results: torch.special.entr(results["weights"]).sum(),
    "root": lambda results: results["weights"].sqrt().sum(),
    "both": lambda results: torch.special.entr(results["weights"]).sum() + results["context"].square().sum(),
}


def attention_over_what_may_be_attended(query, key, value, v, mask):
    """Row by row, over the keys that the mask leaves: what is behind it is not there."""
    weights, contexts = [], []
    for b, s in itertools.product(range(query.shape[0]), range(query.shape[1])):
        left = mask[b, s if mask.dim() == 3 else slice(None)].nonzero().flatten()
        row = torch.softmax(plain_scores(query[b, s].view(1, 1, -1), key[b, left][None], v), -1).flatten()
        weights.append(row)
        contexts.append(row @ value[b, left])
    return {"weights": torch.cat(weights), "context": torch.stack(contexts)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_comes_from_behind_a_mask(target, loss, mask):
    """Masked places are selected in the backward too: infinity times their weight of zero would be NaN."""
    inputs = cast(attention_inputs(), torch.float64, target.device)
    inputs = {name: t.requires_grad_() for name, t in inputs.items() if t is not None}
    leaves, where = list(inputs.values()), MASKS[mask].to(target.device)
    want = LOSSES[loss](attention_over_what_may_be_attended(**inputs, mask=where))
    want = torch.autograd.grad(want, leaves, materialize_grads=True, allow_unused=True)
    for create_graph in (False, True):  # by the back end, and by the formulas
        got = LOSSES[loss](fused_attention(**inputs, mask=where, backend=target.backend))
        got = torch.autograd.grad(got, leaves, create_graph=create_graph, materialize_grads=True, allow_unused=True)
        torch.testing.assert_close(got, want, **tolerances.FLOAT64)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in got), leaves, allow_unused=True)
    assert all(grad.isfinite().all() for grad in second if grad is not None)


def test_weights_of_fixed_scores_have_no_graph(target):
    """Where the value alone needs a gradient, none flows into the weights."""
    inputs = cast(attention_inputs(), torch.float64, target.device)
    inputs["value"].requires_grad_()
    results = fused_attention(**inputs, backend=target.backend)
    assert not results["weights"].requires_grad
    (grad,) = torch.autograd.grad(results["context"].sum(), inputs["value"])
    torch.testing.assert_close(grad, results["weights"].sum(1)[..., None].expand_as(grad), **tolerances.FLOAT64)


def test_changing_the_weights_in_place_is_refused(target):
    """The backward needs them; the context it does not."""
    inputs = cast(attention_inputs(), torch.float64, target.device)
    query = inputs["query"].requires_grad_()
    results = fused_attention(**inputs, backend=target.backend)
    torch.autograd.grad(results["context"].mul_(2).sum(), query, retain_graph=True)
    changed = results["weights"].mul_(2).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(changed, query)
