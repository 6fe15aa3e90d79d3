"""fuse(model): modules of a model that compute a ConvLSTM or an additive attention become fused ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

from torch import nn

from hybridops import modules, reference
from hybridops.checks import check_bool
from hybridops.interop.calls import FusedForeign, fused_class
from hybridops.interop.foreign import NotRecognised, recognise, refuse_hooks_within
from hybridops.modules.parts import RECOMPUTING_HOOKS

FUSED: dict[type[nn.Module], type[nn.Module]] = {
    reference.ConvLSTMCell: modules.FusedConvLSTMCell,
    reference.ConvLSTM: modules.FusedConvLSTM,
    reference.ConcatAttention: modules.FusedConcatAttention,
    reference.AdditiveAttention: modules.FusedAdditiveAttention,
}


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` did, by the names of `model.named_modules()`; the model itself is "".

    PyTorch's own modules are not in it, nor what is within a swapped module that was written elsewhere.
    """

    swapped: dict[str, str]  # what it was, and what it is now
    left_alone: dict[str, str]  # why

    def __str__(self) -> str:
        lines = [f"swapped     {name or 'the model'}: {what}" for name, what in self.swapped.items()]
        lines += [f"left alone  {name or 'the model'}: {why}" for name, why in self.left_alone.items()]
        return "\n".join(lines)


@overload
def fuse(model: nn.Module, *, strict: bool = False, report: Literal[False] = False) -> nn.Module: ...


@overload
def fuse(model: nn.Module, *, strict: bool = False, report: Literal[True]) -> tuple[nn.Module, FuseReport]: ...


def fuse(model: nn.Module, *, strict: bool = False, report: bool = False) -> nn.Module | tuple[nn.Module, FuseReport]:
    """Turn the modules of `model` that compute a ConvLSTM or an additive attention into fused ones; return `model`.

    It happens in place: the module objects stay the same ones with another class, so parameters, hooks, training mode,
    state dict and whatever else refers to them are kept.

    - A module that is exactly one of `hybridops.reference`'s gets its fused class. A subclass is left alone, and so is
      one with hooks on what is within, but for those that compute a weight (`torch.nn.utils.weight_norm`, `prune`).
    - A module of another class, whose parameters have the shapes of a ConvLSTM or an additive attention, is tried: what
      it computes, on a copy with random parameters and random inputs, has to be what the fused functions compute, in
      evaluation and in training, outputs and gradients. It then gets a subclass of its own class, which answers the
      calls that were tried so, and passes any other call on to the module's own forward. It takes and returns what it
      did. The module itself is not called for that, and an error in its forward is reported, not raised. Where one of
      its attributes is set afterwards, it gets its own class back.

    Args:
        strict: raise if nothing was swapped.
        report: return (model, FuseReport): what was swapped, and what was left alone and why.

    Raises:
        TypeError: `model` is not an `nn.Module`.
        ValueError: `strict`, and nothing was swapped; the message is the report.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    check_bool("strict", strict)
    check_bool("report", report)
    outcome = FuseReport({}, {})
    _fuse(model, "", outcome, seen=set())
    if strict and not outcome.swapped:
        raise ValueError(f"model must have a module that can be fused, got\n{outcome}")
    return (model, outcome) if report else model


def _fuse(module: nn.Module, name: str, outcome: FuseReport, seen: set[nn.Module]) -> None:
    """The module, or if it is left alone, those within."""
    if module in seen:
        return
    seen.add(module)
    before = type(module)
    try:
        _swap(module)
    except NotRecognised as reason:
        if before.__module__.partition(".")[0] != "torch":
            outcome.left_alone[name] = str(reason)
    else:
        how = f": {module.plan}" if isinstance(module, FusedForeign) else ""
        outcome.swapped[name] = f"{before.__name__} -> {type(module).__name__}{how}"
    if isinstance(module, FusedForeign):
        return  # what is within is called by the module's own forward only
    for child_name, child in module.named_children():
        _fuse(child, f"{name}.{child_name}" if name else child_name, outcome, seen)


def _swap(module: nn.Module) -> None:
    kind = type(module)
    if kind in FUSED:
        refuse_hooks_within(module, besides=RECOMPUTING_HOOKS)
        module.__class__ = FUSED[kind]
        return
    if kind in FUSED.values() or isinstance(module, FusedForeign):
        raise NotRecognised("it is fused already")
    if isinstance(module, tuple(FUSED)):
        raise NotRecognised(f"a subclass of {kind.__mro__[1].__name__} may compute something else")
    if kind.__module__.partition(".")[0] == "torch":
        raise NotRecognised("it is PyTorch's own")
    plan = recognise(module)
    try:
        module.__class__ = fused_class(plan)
    except TypeError as error:
        raise NotRecognised(f"its class cannot be extended: {error}") from error
