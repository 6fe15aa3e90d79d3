"""fuse(model): this library's own plain modules, and what adapters say of others, become fused ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, overload

from torch import Tensor, nn

from hybridops import modules, reference
from hybridops.checks import check_bool
from hybridops.interop.adapters import Adapter, Plan, find, fused_class, plan_for
from hybridops.interop.verify import verified
from hybridops.modules.parts import CONVOLUTIONS, has_hooks, reason_not_plain

FUSED: dict[type[nn.Module], type[nn.Module]] = {
    reference.ConvLSTMCell: modules.FusedConvLSTMCell,
    reference.ConvLSTM: modules.FusedConvLSTM,
    reference.ConcatAttention: modules.FusedConcatAttention,
    reference.AdditiveAttention: modules.FusedAdditiveAttention,
    reference.AttentionDecoder: modules.FusedAttentionDecoder,
}
Adapters = Mapping[type[nn.Module], "str | Adapter"]


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` did, by the names of `model.named_modules()`; the model itself is "".

    PyTorch's own modules are not in it, nor what is within a module that an adapter swapped.
    """

    swapped: dict[str, str]  # what it was, and what it is now
    left_alone: dict[str, str]  # why

    def __str__(self) -> str:
        lines = [f"swapped     {name or 'the model'}: {what}" for name, what in self.swapped.items()]
        lines += [f"left alone  {name or 'the model'}: {why}" for name, why in self.left_alone.items()]
        return "\n".join(lines)


@overload
def fuse(
    model: nn.Module, *, adapters: Adapters | None = None, strict: bool = False, report: Literal[False] = False
) -> nn.Module: ...


@overload
def fuse(
    model: nn.Module, *, adapters: Adapters | None = None, strict: bool = False, report: Literal[True]
) -> tuple[nn.Module, FuseReport]: ...


def fuse(
    model: nn.Module, *, adapters: Adapters | None = None, strict: bool = False, report: bool = False
) -> nn.Module | tuple[nn.Module, FuseReport]:
    """Turn this library's plain modules in `model`, and those that `adapters` speaks for, into fused ones.

    It happens in place: the module objects stay the same ones with another class, so parameters, hooks, training mode,
    state dict and whatever else refers to them are kept.

    - A module that is exactly one of `hybridops.reference`'s gets its fused class, if its parts are plain: exactly
      PyTorch's layers, without hooks but those that compute a weight (`torch.nn.utils.weight_norm`, `prune`).
    - A module whose class is in `adapters` gets a subclass of it, whose forward has the same signature. Calls that the
      adapter knows run on the fused functions, every other one on its own forward; so does every call once the module
      is no longer as it was: another layer in it, a hook within, another value of an attribute. Before that, what the
      adapter says is verified on a copy with random parameters. The module itself is not called.

    Nothing else is touched: no module is swapped for what it seems to be.

    Args:
        adapters: class -> name of a source, or what `interop.adapter` made. A subclass of the class is left alone.
        strict: raise if nothing was swapped.
        report: return (model, FuseReport): what was swapped, and what was left alone and why.

    Returns:
        `model`, or (`model`, FuseReport).

    Raises:
        TypeError: `model` is not an `nn.Module`, or `adapters` no dictionary from classes to adapters.
        ValueError: the name of a source is unknown; a module does not compute what its adapter says (its class, the
            case and the largest difference are named, and what was swapped before it stays); or `strict`, and nothing
            was swapped, where the message is the report.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    check_bool("strict", strict)
    check_bool("report", report)
    checked, outcome = _check_adapters(adapters), FuseReport({}, {})
    for name, module in _walk(model, "", set()):
        before = type(module)
        reason = _swap(module, checked)
        if reason is None:
            outcome.swapped[name] = f"{before.__name__} -> {type(module).__name__}"
        elif before.__module__.partition(".")[0] != "torch":
            outcome.left_alone[name] = reason
    if strict and not outcome.swapped:
        raise ValueError(f"model must have a module that can be fused, got\n{outcome}")
    return (model, outcome) if report else model


def _check_adapters(adapters: Adapters | None) -> dict[type[nn.Module], Adapter]:
    if adapters is None:
        return {}
    if not isinstance(adapters, Mapping):
        raise TypeError(f"adapters must be a dictionary from classes to adapters, got {type(adapters).__name__}")
    checked = {}
    for kind, value in adapters.items():
        if not isinstance(kind, type) or not issubclass(kind, nn.Module):
            raise TypeError(f"a key of adapters must be a class of modules, got {kind!r}")
        checked[kind] = find(value) if isinstance(value, str) else value
        if not isinstance(checked[kind], Adapter):
            raise TypeError(f"the adapter of {kind.__name__} must be a name or an Adapter, got {type(value).__name__}")
    return checked


def _walk(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The module, and those within but for what an adapter speaks for as a whole; each once."""
    if module in seen:
        return
    seen.add(module)
    yield name, module
    if "plan" not in vars(type(module)):  # by now: it may have been swapped
        for child_name, child in module.named_children():
            yield from _walk(child, f"{name}.{child_name}" if name else child_name, seen)


def _swap(module: nn.Module, adapters: dict[type[nn.Module], Adapter]) -> str | None:
    """Why it is left alone; None if it is swapped."""
    kind = type(module)
    if kind in FUSED.values() or "plan" in vars(kind):
        return "It is fused already."
    if kind in FUSED:
        reason = _reason_against_parts(module, (nn.ModuleList, nn.LSTMCell, nn.GRUCell, *FUSED, *FUSED.values()))
        if reason is None:
            module.__class__ = FUSED[kind]
        return reason
    if kind not in adapters:
        known = next((base for base in kind.__mro__ if base in FUSED or base in adapters), None)
        if known is not None:
            return f"It is a subclass of {known.__name__}, and may compute something else."
        return "It is none of this library's modules, and no adapter speaks for its class."
    plan = plan_for(module, adapters[kind])
    reason = _reason_against_tensors(module, plan) or _reason_against_parts(module)
    if reason is not None:
        return reason
    plan = verified(plan, module)
    try:
        module.__class__ = fused_class(plan)
    except TypeError as error:
        return f"Its class cannot be extended: {error}."
    return None


def _reason_against_tensors(module: nn.Module, plan: Plan) -> str | None:
    """Why its forward may compute with something else than its parameters."""
    if next(module.buffers(), None) is not None:
        return "It has buffers, on which its forward may depend."
    devices = {parameter.device.type for parameter in module.parameters()}
    if len(devices) != 1 or devices == {"meta"} or not all(p.is_floating_point() for p in module.parameters()):
        return "Its parameters are not numbers on one device."
    for name, (_, attributes) in plan.parts.items():
        tensors = [key for key, value in attributes.items() if isinstance(value, Tensor)]
        if tensors and not module.get_submodule(name)._forward_pre_hooks:
            return f"It keeps what is neither a parameter nor a buffer: {', '.join(tensors)}."
    return None


def _reason_against_parts(module: nn.Module, kinds: Collection[type[nn.Module]] | None = None) -> str | None:
    """Why it may compute something else than its weights say: a forward of its own, or a part that is not plain.

    `kinds` are the classes that a part may have beside PyTorch's layers; None for any.
    """
    if "forward" in vars(module):
        return "It has a forward of its own."
    for name, part in module.named_modules():
        if part is module or "parametrizations" in name.split("."):  # these make weights
            continue
        reason = None
        if isinstance(part, (*CONVOLUTIONS, nn.Linear)) or (kinds is not None and type(part) not in kinds):
            reason = reason_not_plain(part)
        elif "forward" in vars(part):
            reason = "has a forward of its own"
        elif has_hooks(part):
            reason = "has hooks"
        if reason is not None:
            return f"Its part {name} {reason}."
    return None
