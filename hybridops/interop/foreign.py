"""Recognising modules that were written elsewhere: what their parameters' shapes allow is tried, and held to what they
compute.

Everything is tried on a twin: a copy without hooks, whose parameters are random, so that zeros or equal rows hide
nothing. The module itself is never called, and neither it nor PyTorch's generators are changed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hybridops.checks import accumulation_dtype
from hybridops.interop import additive_attention_calls, conv_lstm_calls
from hybridops.interop.calls import Call, Form, Plan, Reading, Returned, Signature

# Of outputs and gradients, relative to the largest of a tensor or 1. All sums are in float32 at least, so that another
# order of them is some 1e-6, while another order of gates or another function shows in the first digits.
TOLERANCE = 1e-4

_CALLED_WITH_FORWARD = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotRecognised(Exception):
    """With the reason."""


def recognise(module: nn.Module) -> Plan:
    """How fused functions can stand for the module's forward.

    Raises:
        NotRecognised: they cannot.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    readings = [*conv_lstm_calls.readings(shapes), *additive_attention_calls.readings(shapes)]
    if not readings:
        raise NotRecognised("its parameters are not those of a ConvLSTM or an additive attention")
    signature = _signature(module)
    devices = {parameter.device for parameter in parameters.values()}
    device = devices.pop()
    if devices or device.type == "meta" or not all(p.is_floating_point() for p in parameters.values()):
        raise NotRecognised("its parameters are not numbers on one device")
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _plainly(device):
        torch.manual_seed(0)
        calls = _Trial(module, signature).calls(readings)
    return Plan(type(module), signature, tuple(calls), _own_attributes(module))


def _own_attributes(module: nn.Module) -> frozenset[str]:
    """All that is not every module's, and forward."""
    within = {name for name, _ in (*module.named_parameters(recurse=False), *module.named_children())}
    names = within | vars(module).keys() | set(dir(type(module)))
    return frozenset(names - vars(nn.Module()).keys() - set(dir(nn.Module)) | {"forward"})


def _signature(module: nn.Module) -> Signature:
    """Of its forward, where nothing about the module is known to stand against swapping it."""
    signature = Signature.of(module.forward)
    if signature is None:
        raise NotRecognised("its forward takes any number of arguments")
    if "forward" in vars(module):
        raise NotRecognised("its forward is an attribute of this very module")
    if next(module.buffers(), None) is not None:
        raise NotRecognised("it has buffers")
    refuse_hooks_within(module)
    if any(isinstance(value, Tensor) for child in module.modules() for value in vars(child).values()):
        raise NotRecognised("it keeps tensors that are neither parameters nor buffers")
    return signature


def refuse_hooks_within(module: nn.Module, besides: tuple[type, ...] = ()) -> None:
    for name, child in module.named_modules():
        called = (
            hook for key, hooks in _hooks(child).items() if key in _CALLED_WITH_FORWARD for hook in hooks.values()
        )
        if child is not module and not all(isinstance(hook, besides) for hook in called):
            raise NotRecognised(f"{name} has hooks, which would no longer be called")


class _Trial:
    """A module's twin, and what has been found out about it."""

    def __init__(self, module: nn.Module, signature: Signature) -> None:
        self.signature = signature
        self.twin = _twin(module)
        self.parameters = dict(self.twin.named_parameters(remove_duplicate=False))
        self.like = next(iter(self.parameters.values()))

    def calls(self, readings: list[Reading]) -> list[Call]:
        """The forms of calls that are verified; one at least."""
        calls: list[Call] = []
        reasons: dict[int, str] = {}  # the highest number is the nearest miss
        for form, candidates in _by_form(readings).items():
            rest = self._rest(form)
            if rest is None or any(call.form.excludes(form) for call in calls):
                continue
            try:
                found = self._try(form, rest, [r for r in candidates if not calls or r.names == calls[0].reading.names])
            except NotRecognised:
                raise
            except Exception as error:  # noqa: BLE001  whatever foreign code raises is what there is to report
                reasons.setdefault(0, f"called as {form} it raises {type(error).__name__}: {error}")
            else:
                if isinstance(found, Call):
                    calls.append(found)
                else:
                    reasons.setdefault(*found)
        if not calls:
            raise NotRecognised(reasons[max(reasons)] if reasons else "its forward has too many arguments")
        return calls

    def _try(self, form: Form, rest: tuple[Any, ...], readings: list[Reading]) -> Call | tuple[int, str]:
        """The call, if it is verified; else how near it came, and what stands against it."""
        args = form.example(0, self.like)
        call = self._match(form, rest, readings, args, self._original(args))
        if call is None:
            return 1, f"called as {form} it computes something else than a {readings[0].family}"
        for training in (False, True):
            if not self._agrees(call, training):
                where = "in training (dropout?)" if training else "for other sizes, or in its gradients,"
                return 2, f"{where} it computes something else than a {readings[0].family}"
        return replace(call, autocast=self._agrees_in_dtypes(call))

    def _rest(self, form: Form) -> tuple[Any, ...] | None:
        """The defaults of the arguments behind the form's; None if it cannot be called so."""
        names = self.signature.names[len(form.arguments) :]
        if len(form.arguments) > len(self.signature.names) or any(
            name not in self.signature.defaults for name in names
        ):
            return None
        return tuple(self.signature.defaults[name] for name in names)

    def _original(self, args: tuple[Any, ...], training: bool = False) -> Any:
        """What the twin gives. A forward that keeps something is found out by it."""
        self.twin.train(training)
        before, given = _state(self.twin), _versions(args)
        outputs = self.twin.forward(*args)
        after = _state(self.twin)
        for name in before.keys() | after.keys():
            if name not in before or name not in after or not _is_same_state(before[name], after[name]):
                raise NotRecognised(f"its forward keeps something in {name}")
        if _versions(args) != given:
            raise NotRecognised("its forward writes into its arguments")
        return outputs

    def _match(
        self, form: Form, rest: tuple[Any, ...], readings: list[Reading], args: tuple[Any, ...], outputs: Any
    ) -> Call | None:
        """The first reading of which all that came back is a result."""
        leaves, structure = pytree.tree_flatten(outputs)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            return None
        inputs = form.bind(args)
        for reading in readings:
            results = reading.results(self.parameters, inputs)
            if not {leaf.shape for leaf in leaves} <= {result.shape for result in results.values()}:
                return None  # nor would any other reading's be of these shapes
            returns = [next((name for name in results if _same(results[name], leaf)), None) for leaf in leaves]
            if None not in returns:
                tensors = [Returned(name, leaf.is_contiguous()) for name, leaf in zip(returns, leaves, strict=True)]
                return Call(reading, form, rest, pytree.tree_unflatten(tensors, structure))
        return None

    def _agrees(self, call: Call, training: bool) -> bool:
        """With arguments of other sizes, in outputs and gradients."""
        args = call.form.example(1, self.like)
        wanted = self._with_gradients(lambda *args: self._original(args, training), args)
        got = self._with_gradients(lambda *args: call.run(self.twin, call.bind((*args, *call.rest))), args)
        return len(wanted) == len(got) and all(map(_same, got, wanted))

    def _agrees_in_dtypes(self, call: Call) -> bool:
        """Under autocast, which leaves some ways of writing the same in float32."""
        args = call.form.example(1, self.like)
        with torch.autocast(self.like.device.type):
            wanted, got = self._original(args), call.run(self.twin, call.bind((*args, *call.rest)))
        return [out.dtype for out in pytree.tree_leaves(wanted)] == [out.dtype for out in pytree.tree_leaves(got)]

    def _with_gradients(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
        """The outputs, and the gradients of arguments and parameters under random gradients of all outputs."""
        leaves, structure = pytree.tree_flatten(args)
        leaves = [_leaf(leaf) for leaf in leaves]
        with torch.enable_grad():
            outputs = pytree.tree_leaves(function(*pytree.tree_unflatten(leaves, structure)))
        reached = [out for out in outputs if out.requires_grad]
        if not reached:
            return outputs
        wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        generator = torch.Generator().manual_seed(1)
        given = [torch.randn(out.shape, generator=generator).to(out) for out in reached]
        wanted += self.parameters.values()
        return outputs + list(torch.autograd.grad(reached, wanted, given, allow_unused=True, materialize_grads=True))


def _by_form(readings: list[Reading]) -> dict[Form, list[Reading]]:
    forms: dict[Form, list[Reading]] = {}
    for reading in readings:
        for form, use in reading.uses():
            forms.setdefault(form, []).append(use)
    return forms


def _twin(module: nn.Module) -> nn.Module:
    """A copy without hooks, with random parameters of a dtype that sums are exact in."""
    memo = {id(hooks): type(hooks)() for child in module.modules() for hooks in _hooks(child).values()}
    try:
        twin = copy.deepcopy(module, memo).to(accumulation_dtype(next(module.parameters()).dtype))
    except Exception as error:
        raise NotRecognised(f"it cannot be copied: {type(error).__name__}: {error}") from error
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
        parameter.copy_(torch.randn_like(parameter) / max(1, parameter[:1].numel()) ** 0.5)
    return twin


def _hooks(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name.endswith("_hooks") and isinstance(value, dict)}


def _state(module: nn.Module) -> dict[str, tuple[Any, int]]:
    """All that the module and those within keep, and how much is in what can grow."""
    return {
        f"{name}.{key}".lstrip("."): (value, len(value) if isinstance(value, (list, dict, set)) else 0)
        for name, child in module.named_modules()
        for key, value in vars(child).items()
        if key != "training"
    }


def _is_same_state(before: tuple[Any, int], after: tuple[Any, int]) -> bool:
    return before[0] is after[0] and before[1] == after[1]


def _versions(args: tuple[Any, ...]) -> list[tuple[int, int]]:
    """Of the tensors, and which ones they are."""
    return [(id(leaf), leaf._version) for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]


def _same(got: Tensor, wanted: Tensor) -> bool:
    """NaN where NaN is wanted, too."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype or not wanted.is_floating_point():
        return False
    largest = max(1.0, wanted.nan_to_num().abs().max().item())
    return torch.allclose(got, wanted, rtol=0.0, atol=TOLERANCE * largest, equal_nan=True)


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


@contextmanager
def _plainly(device: torch.device) -> Iterator[None]:
    """Whatever mode the caller is in, and without what foreign code warns of."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
