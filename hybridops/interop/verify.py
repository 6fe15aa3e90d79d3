"""Holding an adapter to the module that it speaks for. It guards against a wrong word; it decides nothing.

Everything is tried on a twin: a copy with random parameters, so that zeros hide nothing. The module itself is never
called, and neither it nor PyTorch's generators are changed.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hybridops.interop.adapters import Plan, plan_for

TOLERANCE = 1e-8  # relative to the largest value of a tensor, or 1: all is tried in float64
SIZE, OTHERS = (2, 3), ((3, 2), (1, 1), (1, 30))  # batch and time; the last one is long


def verified(plan: Plan, module: nn.Module) -> Plan:
    """The plan, where the adapter says of a copy of the module what its own forward says.

    Raises:
        ValueError: it says something else: the class, the case and the largest difference.
    """
    kinds = {parameter.kind for parameter in inspect.signature(plan.original.forward).parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise ValueError(f"{plan.original.__name__} is not fused: its forward takes any number of arguments")
    device = next(module.parameters()).device
    with (  # whatever mode the caller is in, and without what foreign code warns of
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        twin = _twin(module)
        trial = _Trial(plan_for(twin, plan.adapter), twin)
        for training in (False, True):
            trial.hold(*SIZE, training)
        for size in OTHERS:
            trial.hold(*size, False, only=("random values", "1000 everywhere"))
        if not trial.answered:
            raise ValueError(f"{trial.name} is not fused: the adapter answers none of its examples")
        twin.train(module.training)
        return replace(plan, autocast=trial.agrees_under_autocast(next(module.parameters()).dtype))


class _Trial:
    def __init__(self, plan: Plan, twin: nn.Module) -> None:
        self.plan, self.twin, self.name = plan, twin, plan.original.__name__
        self.parameters = list(twin.parameters())
        self.like = self.parameters[0]
        self.answered = 0

    def hold(self, batch: int, steps: int, training: bool, only: Collection[str] = ()) -> None:
        """Every kind of arguments that the adapter claims, with values that are seldom and values that are not."""
        self.twin.train(training)
        mode = "in training" if training else "in evaluation"
        for number, args in enumerate(self._examples(batch, steps), start=1):
            for values, case in _cases(args).items():
                text = f"for arguments of kind {number}, {values}, batch {batch}, time {steps}, {mode},"
                if not only or values in only:
                    self._compare(text, case, gradients="NaN" not in values)

    def _examples(self, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
        weights = self._guard("the adapter cannot read its weights", lambda: self.plan.adapter.weights(self.twin))
        for args in self.plan.adapter.examples(self.twin, weights, batch, steps):
            args = pytree.tree_map_only(Tensor, lambda x: x.to(self.like.device), args)
            yield pytree.tree_map(lambda x: x.to(self.like.dtype) if _is_float(x) else x, args)

    def _compare(self, text: str, args: Any, gradients: bool) -> None:
        inputs, structure = pytree.tree_flatten(args)
        leaves = [x.detach().clone().requires_grad_() if _is_float(x) else x for x in inputs]
        args = pytree.tree_unflatten(leaves, structure)
        versions = [x._version for x in leaves if isinstance(x, Tensor)]
        wanted = self._guard(f"{text} its own forward raises", lambda: self.plan.original.forward(self.twin, *args))
        if not self.plan.is_known(self.twin):
            raise ValueError(f"{self.name} is not fused: {text} its forward changes what it keeps")
        if versions != [x._version for x in leaves if isinstance(x, Tensor)]:
            raise ValueError(f"{self.name} is not fused: {text} its forward writes into its arguments")
        got = self._guard(f"{text} the adapter raises", lambda: self.plan.run(self.twin, args))
        if got is NotImplemented:
            return
        self.answered += 1
        self._same(f"{text} what is returned", got, wanted)
        reached = [_reached(got), _reached(wanted)]
        if len(reached[0]) != len(reached[1]):
            raise ValueError(f"{self.name} is not fused: {text} gradients do not reach the same outputs")
        if gradients and reached[0]:
            sources = self.parameters + [x for x in leaves if _is_float(x)]
            loss = [torch.randn_like(out) for out in reached[0]]
            grads = [
                torch.autograd.grad(outs, sources, loss, allow_unused=True, materialize_grads=True) for outs in reached
            ]
            self._same(f"{text} a gradient", *grads)

    def _same(self, text: str, got: Any, wanted: Any) -> None:
        (got, nesting), (wanted, wanted_nesting) = pytree.tree_flatten(got), pytree.tree_flatten(wanted)
        if nesting != wanted_nesting:
            raise ValueError(f"{self.name} is not fused: {text} is nested otherwise: {nesting} for {wanted_nesting}")
        for one, other in zip(got, wanted, strict=True):
            if not isinstance(other, Tensor) or not isinstance(one, Tensor):
                difference = None if one is other else f"{one!r} for {other!r}"
            elif (one.shape, one.dtype) != (other.shape, other.dtype):
                difference = f"{tuple(one.shape)}, {one.dtype} for {tuple(other.shape)}, {other.dtype}"
            elif torch.allclose(one, other, rtol=0.0, atol=TOLERANCE * _largest(other), equal_nan=True):
                difference = None
            elif not torch.equal(one.isnan(), other.isnan()):
                difference = "NaN in other places"
            else:
                difference = f"{(one - other).abs().nan_to_num().max().item():.3g}"
            if difference is not None:
                raise ValueError(f"{self.name} is not fused: {text} differs, the largest difference is {difference}")

    def agrees_under_autocast(self, own: torch.dtype) -> bool:
        """Whether the dtypes are the same, in float32 too, as the module may be cast; some stay in float32 there."""
        if not torch.amp.is_autocast_available(self.like.device.type):
            return True
        for dtype in {torch.float32, own}:
            self.twin.to(dtype)
            for args in self._examples(*SIZE):
                with torch.autocast(self.like.device.type), torch.no_grad():
                    try:
                        got, wanted = self.plan.run(self.twin, args), self.plan.original.forward(self.twin, *args)
                    except Exception:  # noqa: BLE001  what a call raises there is for its own forward to say
                        return False
                if got is not NotImplemented and _dtypes(got) != _dtypes(wanted):
                    return False
        return True

    def _guard(self, text: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # whatever it is, it is what there is to say
            raise ValueError(f"{self.name} is not fused: {text} {type(error).__name__}: {error}") from error


def _cases(args: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    leaves, structure = pytree.tree_flatten(args)
    floats = [place for place, leaf in enumerate(leaves) if _is_float(leaf)]

    def changed(change: Callable[[Tensor], Tensor], places: Collection[int] = floats) -> Any:
        values = [change(x.contiguous().clone()) if place in places else x for place, x in enumerate(leaves)]
        return pytree.tree_unflatten(values, structure)

    return {
        "random values": args,
        "zeros": changed(torch.zeros_like),
        "zeros at the end of every dimension": changed(_zero_ends),
        "values in the thousands": changed(lambda x: x * 1e3),
        "1000 everywhere": changed(lambda x: torch.full_like(x, 1e3)),
    } | {f"NaN in one place of tensor {n}": changed(_one_nan, [place]) for n, place in enumerate(floats, start=1)}


def _zero_ends(x: Tensor) -> Tensor:
    for dim in range(x.dim() - 1):
        if x.shape[dim] > 1:
            x.select(dim, -1).zero_()
    return x


def _one_nan(x: Tensor) -> Tensor:
    x.view(-1)[x.numel() // 2] = torch.nan
    return x


def _twin(module: nn.Module) -> nn.Module:
    """Without the module's own hooks, which are none of forward's business."""
    hooks = (v for name, v in vars(module).items() if name.endswith("_hooks") and isinstance(v, dict))
    memo: dict[int, Any] = {id(v): type(v)() for v in hooks}
    kept = (value for child in module.modules() for value in vars(child).values() if isinstance(value, Tensor))
    memo |= {id(value): value.detach().clone() for value in kept if not value.is_leaf}
    try:
        twin = copy.deepcopy(module, memo).double()
    except Exception as error:
        name = type(module).__name__
        raise ValueError(f"{name} is not fused: it cannot be copied: {type(error).__name__}: {error}") from error
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
        fan_in = parameter[:1].numel() if parameter.dim() else 1
        parameter.data.normal_().div_(max(1, fan_in) ** 0.5)
    return twin


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _reached(outputs: Any) -> list[Tensor]:
    """Those that gradients flow from."""
    return [out for out in pytree.tree_leaves(outputs) if isinstance(out, Tensor) and out.requires_grad]


def _dtypes(outputs: Any) -> list[Any]:
    return [getattr(out, "dtype", None) for out in pytree.tree_leaves(outputs)]


def _largest(tensor: Tensor) -> float:
    return max(1.0, tensor.nan_to_num(posinf=0.0, neginf=0.0).abs().max().item()) if tensor.numel() else 1.0
