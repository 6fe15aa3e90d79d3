"""Adapters: what a module that was written elsewhere is, said by whoever knows it; and the class that it gets then."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridops.checks import autocast_is_on
from hybridops.modules.parts import has_hooks

NAMED: dict[str, Adapter] = {}


@dataclass(frozen=True)
class Adapter:
    """How a class of modules keeps its weights, and how it is called. `adapter` makes and explains it."""

    weights: Callable[[nn.Module], Any]
    call: Callable[..., Any]
    examples: Callable[..., Iterable[tuple[Any, ...]]]
    varies: frozenset[str] = frozenset()
    name: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.name is not None:
            return find, (self.name,)
        return Adapter, (self.weights, self.call, self.examples, self.varies)


def adapter(
    weights: Callable[[nn.Module], Any] | str,
    call: Callable[..., Any],
    examples: Callable[..., Iterable[tuple[Any, ...]]],
    *,
    varies: Collection[str] = (),
) -> Adapter:
    """What a class of modules computes, for `fuse(model, adapters={TheirClass: adapter(...)})`.

    Args:
        weights: weights(module) gives the weights as `call` takes them. They are the module's own tensors, or computed
            of them, so that gradients reach its parameters. Or the name of a source: they are read as that one's are.
        call: call(module, weights, *arguments) gives what the module's own forward gives for these arguments, in its
            order, defaults filled in; or NotImplemented, and the own forward is called.
        examples: examples(module, weights, batch, steps) gives tuples of arguments, of every kind that `call` answers,
            with random tensors for so many entries and time steps or keys. `fuse` verifies the adapter with them.
        varies: names of the module's attributes that `call` reads or writes at every call. Where any other attribute
            has changed since `fuse`, the own forward is called.

    Raises:
        TypeError: an argument is not as said here.
        ValueError: `weights` is not the name of a source.
    """
    weights = find(weights).weights if isinstance(weights, str) else weights
    for name, function in {"weights": weights, "call": call, "examples": examples}.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")
    if isinstance(varies, str) or not all(isinstance(name, str) for name in varies):
        raise TypeError(f"varies must be names of attributes, got {varies!r}")
    return Adapter(weights, call, examples, frozenset(varies))


def find(name: str) -> Adapter:
    if name not in NAMED:
        raise ValueError(f"the name of an adapter must be one of {', '.join(map(repr, sorted(NAMED)))}, got {name!r}")
    return NAMED[name]


class Form(NamedTuple):
    """A way of calling a source's module. `take` may give NotImplemented."""

    take: Callable[..., Any]  # (module, *arguments) -> what the fused functions take
    give: Callable[..., Any]  # (module, what they give, *arguments) -> what the module's own forward returns
    make: Callable[..., Iterable[Any]]  # (module, *random tensors) -> tuples of arguments
    projected: bool = False  # an attention whose keys were projected beforehand
    varies: tuple[str, ...] = ()


def register(
    name: str, form: Form, weights: Callable[[nn.Module], Any], call: Callable[..., Any], examples: Callable[..., Any]
) -> None:
    NAMED[name] = Adapter(weights, partial(call, form), partial(examples, form), frozenset(form.varies), name)


def turned(module: nn.Module, x: Tensor) -> Tensor:
    """Batch first, or back to how the module has it."""
    return x if getattr(module, "batch_first", True) else x.transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Plan:
    """What the fused class of a module needs."""

    original: type[nn.Module]
    adapter: Adapter
    parts: dict[str, tuple[type, dict[str, Any]]]  # of each module within: its class and its attributes
    autocast: bool = True  # whether the dtypes are the module's own under autocast too

    def run(self, module: nn.Module, values: Collection[Any]) -> Any:
        """What its forward gives; NotImplemented where its own forward has to say."""
        return self.adapter.call(module, self.adapter.weights(module), *values)

    def is_known(self, module: nn.Module) -> bool:
        """Whether all that was there when it was verified is there still, and nothing listens to a part's call."""
        found: dict[str, nn.Module] = dict(module.named_modules())
        if found.keys() != self.parts.keys():
            return False
        for name, (kind, attributes) in self.parts.items():
            part = found[name]
            if name and (type(part) is not kind or has_hooks(part)):
                return False
            if not _agree(attributes_of(part, self.adapter.varies), attributes):
                return False
        return True


def plan_for(module: nn.Module, adapter: Adapter) -> Plan:
    parts = {name: (type(m), attributes_of(m, adapter.varies)) for name, m in module.named_modules()}
    return Plan(type(module), adapter, parts)


def attributes_of(module: nn.Module, varies: Collection[str] = ()) -> dict[str, Any]:
    """All that not every module has; lists as tuples, so that what is done to them shows."""
    return {n: _frozen(value) for n, value in module.__dict__.items() if n not in _EVERY_MODULES and n not in varies}


_EVERY_MODULES = frozenset({*vars(nn.Module()), "_is_full_backward_hook", "_non_persistent_buffers_set"})
_BY_VALUE = (bool, int, float, str, tuple, torch.dtype, torch.device)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _agree(got: Any, wanted: Any) -> bool:
    if got is wanted:
        return True
    if type(got) is not type(wanted):
        return False
    if isinstance(got, dict):
        return got.keys() == wanted.keys() and all(_agree(got[name], wanted[name]) for name in got)
    if isinstance(got, tuple):
        return len(got) == len(wanted) and all(map(_agree, got, wanted))
    return isinstance(got, _BY_VALUE) and got == wanted


def fused_class(plan: Plan) -> type[nn.Module]:
    """A subclass whose forward has the signature of the module's own, and calls it where the adapter does not know."""
    original = plan.original
    parameters = list(inspect.signature(original.forward).parameters.values())[1:]

    @wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        values = _bind(parameters, args, kwargs)
        if values is not None and (plan.autocast or not _autocast_is_on(values)) and plan.is_known(self):
            outputs = plan.run(self, values)
            if outputs is not NotImplemented:
                return outputs
        return original.forward(self, *args, **kwargs)

    def __reduce_ex__(self: nn.Module, protocol: int) -> Any:
        reduced = original.__reduce_ex__(self, protocol)
        if type(self) is not fused or not isinstance(reduced, tuple):
            return reduced
        make, args, *state = reduced
        return _rebuild, (plan, make, tuple(original if arg is fused else arg for arg in args)), *state

    body = {"forward": forward, "__reduce_ex__": __reduce_ex__, "plan": plan}
    body |= {name: getattr(original, name) for name in ("__module__", "__doc__")}
    fused = type(f"Fused{original.__name__}", (original,), body)
    return fused


def _rebuild(plan: Plan, make: Callable[..., nn.Module], args: tuple[Any, ...]) -> nn.Module:
    module = make(*args)
    module.__class__ = fused_class(plan)
    return module


def _bind(parameters: list[inspect.Parameter], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
    """The value of every parameter, in order; None if they do not fit, as the module's own forward will say."""
    values, named = list(args), 0
    for parameter in parameters[len(args) :]:
        named += parameter.name in kwargs
        values.append(kwargs.get(parameter.name, parameter.default))
    fits = len(values) == len(parameters) and named == len(kwargs)
    return values if fits and not any(value is inspect.Parameter.empty for value in values) else None


def _autocast_is_on(values: list[Any]) -> bool:
    return any(isinstance(value, Tensor) and autocast_is_on(value) for value in values)
