"""Calls of modules that were written elsewhere: what goes in, what comes back, and how fused functions answer."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Tensors = dict[str, Tensor]


class Reading(Protocol):
    """A guess which parameter of a module is what, and so what the module computes."""

    family: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters that it reads."""

    def uses(self) -> Iterable[tuple[Form, Reading]]:
        """The ways in which such a module may be called, each with the reading that answers to it."""

    def results(self, parameters: Tensors, inputs: Any, wanted: Collection[str] | None = None) -> Tensors:
        """All that such a module may return, by name, in every arrangement of dimensions. What costs something is left
        out if its name is not wanted; None: all are."""


class Form(Protocol):
    """A way of calling a module. Hashable."""

    arguments: tuple[str, ...]

    def example(self, size: int, like: Tensor) -> tuple[Any, ...]:
        """Random arguments; size is 0 or 1, and no dimension that may vary is the same in both."""

    def bind(self, values: tuple[Any, ...]) -> Any | None:
        """The inputs for `Reading.results`; None if these arguments are not of this form."""

    def excludes(self, other: Form) -> bool:
        """Whether the other's calls could not be told from this one's."""


@dataclass(frozen=True)
class Signature:
    """The parameters of a forward, so that calls by position and by name are one."""

    names: tuple[str, ...]
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, forward: Any) -> Signature | None:
        """None if it takes any number of arguments."""
        parameters = inspect.signature(forward).parameters.values()
        if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters):
            return None
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return cls(tuple(parameter.name for parameter in parameters), defaults)

    def values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The value of every parameter, in order; None if they do not fit."""
        values = {**self.defaults, **dict(zip(self.names, args, strict=False)), **kwargs}
        twice = any(name in kwargs for name in self.names[: len(args)])
        if twice or len(args) > len(self.names) or len(values) > len(self.names):
            return None
        if not all(name in values for name in self.names):
            return None
        return tuple(values[name] for name in self.names)


@dataclass(frozen=True)
class Returned:
    """A tensor that a module returns."""

    name: str  # of a result
    contiguous: bool  # so that whoever takes a view of it still can

    def of(self, results: Tensors) -> Tensor:
        return results[self.name].contiguous() if self.contiguous else results[self.name]


@dataclass(frozen=True)
class Call:
    """A form of calling a module, and what it returns then."""

    reading: Reading
    form: Form
    rest: tuple[Any, ...]  # the values of the arguments behind those of the form: their defaults
    returns: Any  # what the module returns, with a Returned in place of each tensor
    autocast: bool = True  # whether the dtypes are the module's under autocast too

    def bind(self, values: tuple[Any, ...]) -> Any | None:
        """The inputs for `run`; None if these arguments are to be given to the module's own forward."""
        count = len(self.form.arguments)
        if not self.autocast and _autocast_is_on(values):
            return None
        for value, default in zip(values[count:], self.rest, strict=True):
            if not _is_still(value, default):
                return None
        return self.form.bind(values[:count])

    def run(self, module: nn.Module, inputs: Any) -> Any:
        parameters = {name: _attribute(module, name) for name in self.reading.names}
        results = self.reading.results(parameters, inputs, [tensor.name for tensor in pytree.tree_leaves(self.returns)])
        return pytree.tree_map(lambda tensor: tensor.of(results), self.returns)


def _autocast_is_on(values: tuple[Any, ...]) -> bool:
    devices = {value.device.type for value in values if isinstance(value, Tensor)}
    return any(torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) for device in devices)


def _is_still(value: Any, default: Any) -> bool:
    return value is default or (
        isinstance(default, (int, float, str)) and type(value) is type(default) and value == default
    )


@dataclass(frozen=True)
class Plan:
    """What the fused class of a module needs."""

    original: type[nn.Module]
    signature: Signature
    calls: tuple[Call, ...]
    watched: frozenset[str]  # attributes of which forward might make use

    def __str__(self) -> str:
        forms = dict.fromkeys(str(call.form) for call in self.calls)
        return f"{self.calls[0].reading}, called as {' or '.join(forms)}"


class FusedForeign:
    """Goes before the class of a foreign module: calls that were verified are answered by fused functions, all others
    by the module's own forward."""

    plan: Plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = self.plan.signature.values(args, kwargs)
        if values is not None:
            for call in self.plan.calls:
                inputs = call.bind(values)
                if inputs is not None:
                    return call.run(self, inputs)
        return super().forward(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Who changes what the module's own forward might look at gets that forward back: it was verified without."""
        if name in self.plan.watched:
            self.__class__ = self.plan.original
            setattr(self, name, value)
        else:
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """A class that was made here cannot be pickled by its name."""
        return _restore, (self.plan,), self.__dict__


def fused_class(plan: Plan) -> type[nn.Module]:
    attributes = {"plan": plan, "__module__": plan.original.__module__, "__doc__": plan.original.__doc__}
    return type(f"Fused{plan.original.__name__}", (FusedForeign, plan.original), attributes)


def _restore(plan: Plan) -> nn.Module:
    cls = fused_class(plan)
    return cls.__new__(cls)


def _attribute(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def randn(*shape: int, like: Tensor) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device)
