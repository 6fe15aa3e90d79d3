"""Keys and values that the steps of a loop share: their gradients are those of a loop that shares nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import hybridops.functional as HF
from tests import tolerances
from tests.problems import attention_inputs, cast

MASK = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


def leaves_on(target, **sizes) -> dict[str, Tensor]:
    inputs = cast(attention_inputs(**sizes), torch.float64, target.device)
    return {name: t.requires_grad_() for name, t in inputs.items() if t is not None}


def loop(target, query, key, value, v, *, shares: bool, **options) -> list[tuple[Tensor, ...]]:
    """Each query in a step, which sees the context of the step before."""
    options |= {"mask": MASK.to(query.device), "return_weights": True, "return_lse": True, "backend": target.backend}
    shared = HF.share_keys(key, value) if shares else None
    results, asked = [], query[:, :1]
    for s in range(query.shape[1]):
        results.append(HF.additive_attention(asked, key, value, v, shared=shared, **options))
        asked = query[:, s : s + 1] + results[-1][0].sum()
    return results


def loss_of(results: list[tuple[Tensor, ...]], lse: bool = True) -> Tensor:
    return sum(
        context.square().sum() + weights.pow(3).sum() + (each[:1].sum() if lse else 0)
        for context, weights, each in results
    )


@pytest.mark.parametrize("options", [{}, {"scale": 0.7, "activation": "relu"}, {"dropout_p": 0.4}], ids=str)
def test_gradients(target, options):
    leaves = leaves_on(target)
    grads = []
    for shares in (False, True):
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(loss_of(loop(target, **leaves, shares=shares, **options)), [*leaves.values()]))
    torch.testing.assert_close(*grads, **tolerances.FLOAT64)


@pytest.mark.parametrize("fixed", ["key", "value"])
def test_one_of_them_alone(target, fixed):
    leaves = leaves_on(target)
    leaves[fixed].requires_grad_(False)
    wanted = [t for t in leaves.values() if t.requires_grad]
    want, got = (
        torch.autograd.grad(loss_of(loop(target, **leaves, shares=shares)), wanted) for shares in (False, True)
    )
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


def test_nothing_is_left_of_another_pass(target):
    """One that asks for other gradients, one of a part of the steps, and the same one again."""
    leaves = leaves_on(target)
    results = loop(target, **leaves, shares=True)
    plain = loop(target, **leaves, shares=False)
    for steps, wanted in ((3, ["query"]), (3, ["v"]), (1, ["key", "value"]), (3, ["value"]), (3, [*leaves])):
        inputs = [leaves[name] for name in wanted]
        want, got = (
            torch.autograd.grad(loss_of(steps_of[:steps]), inputs, retain_graph=True) for steps_of in (plain, results)
        )
        torch.testing.assert_close(got, want, **tolerances.FLOAT64)
        again = torch.autograd.grad(loss_of(results[:steps]), inputs, retain_graph=True)
        torch.testing.assert_close(again, got, **tolerances.EXACT)


def test_backward_in_two_parts_accumulates(target):
    leaves = leaves_on(target)
    want = torch.autograd.grad(loss_of(loop(target, **leaves, shares=False)), [*leaves.values()])
    results = loop(target, **leaves, shares=True)
    loss_of(results[:2]).backward(retain_graph=True)
    loss_of(results[2:]).backward()
    torch.testing.assert_close([t.grad for t in leaves.values()], list(want), **tolerances.FLOAT64)


def test_second_derivatives(target):
    leaves = leaves_on(target, queries=2, width=3)

    def attend(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            t[:1] for step in loop(target, **dict(zip(leaves, tensors, strict=True)), shares=True) for t in step
        )

    assert torch.autograd.gradcheck(attend, tuple(leaves.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, tuple(leaves.values()), fast_mode=True)


def test_keys_that_serve_another_use_too(target):
    """What comes to them by itself is added."""
    leaves, grads = leaves_on(target), []
    for shares in (False, True):
        key, value = 2 * leaves["key"], leaves["value"].sin()
        results = loop(target, leaves["query"], key, value, leaves["v"], shares=shares)
        loss = loss_of(results) + key.square().sum() + value.pow(3).sum()
        grads.append(torch.autograd.grad(loss, [*leaves.values()]))
    torch.testing.assert_close(*grads, **tolerances.FLOAT64)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_steps(target, reentrant):
    leaves = leaves_on(target)
    shared = HF.share_keys(leaves["key"], leaves["value"])

    def step(query: Tensor) -> Tensor:
        return HF.additive_attention(query, *others, shared=shared, backend=target.backend)

    others = [leaves[name] for name in ("key", "value", "v")]
    contexts = [checkpoint(step, query[:, None], use_reentrant=reentrant) for query in leaves["query"].unbind(1)]
    torch.cat(contexts, 1).square().sum().backward()
    want = HF.additive_attention(leaves["query"], *others, backend=target.backend).square().sum()
    want = torch.autograd.grad(want, [*leaves.values()])
    torch.testing.assert_close([t.grad for t in leaves.values()], list(want), **tolerances.FLOAT64)


def test_under_autocast(target):
    """Keys that are cast anew at each step have their gradients in float32: nothing is shared, nothing lost."""
    leaves = {name: t.detach().float().requires_grad_() for name, t in leaves_on(target).items()}
    grads = []
    for shares in (False, True):
        with torch.autocast(target.device, torch.bfloat16):
            results = loop(target, **leaves, shares=shares)
        grads.append(torch.autograd.grad(loss_of(results), [*leaves.values()]))
    torch.testing.assert_close(*grads, **tolerances.EXACT)


class OfShape(TorchDispatchMode):
    """How many operations gave a tensor of that shape, and wrote it anew."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.add.Tensor) and out.shape == self.shape:
            self.count += 1
        return out


def test_the_gradient_of_the_value_is_one_product(target):
    leaves = leaves_on(target, queries=6)
    loss = loss_of(loop(target, **leaves, shares=True))
    with OfShape((2, 5, 4)) as of_value:
        torch.autograd.grad(loss, [*leaves.values()])
    assert of_value.count == 1


def test_without_gradients_nothing_is_shared(target):
    leaves = leaves_on(target)
    with torch.no_grad():
        assert HF.share_keys(leaves["key"], leaves["value"]) is None
    assert HF.share_keys(leaves["key"].detach(), leaves["value"].detach()) is None


def test_shared_keys_of_another_shape(target):
    leaves = leaves_on(target)
    shared = HF.share_keys(leaves["key"][:, :4], leaves["value"][:, :4])
    with pytest.raises(ValueError, match=r"^shared must be of this key and value, got"):
        HF.additive_attention(**leaves, shared=shared, backend=target.backend)
