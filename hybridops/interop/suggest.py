"""suggest(model): which adapters might speak for the modules of a model. Whether they do, its author has to know."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hybridops.interop.adapters import NAMED, Adapter
from hybridops.interop.layouts import Layout


@dataclass(frozen=True)
class Suggestions:
    """Of each class that looks like a known source: the names of its modules, and those of the sources."""

    classes: dict[type[nn.Module], tuple[list[str], list[str]]]

    def __str__(self) -> str:
        lines = []
        for kind, (names, sources) in self.classes.items():
            places = ", ".join(name or "the model" for name in names)
            have = "module of class {} ({}) has" if len(names) == 1 else "modules of class {} ({}) have"
            spelled = " or ".join(filter(None, [", ".join(map(repr, sources[:-1])), repr(sources[-1])]))
            lines.append(f"{len(names)} {have.format(kind.__name__, places)} the parameters of {spelled}.")
            lines.append(f"    hybridops.fuse(model, adapters={{{kind.__name__}: {sources[0]!r}}})")
            if len(sources) > 1:
                lines.append("    The parameters do not tell them apart: take the one that the class is written like.")
        return "\n".join(lines) or "No module has the parameters of a source that has an adapter."


def suggest(model: nn.Module) -> Suggestions:
    """The modules that have the parameters of a known source, by names and shapes. Nothing is called, or swapped.

    Raises:
        TypeError: `model` is not an `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    classes: dict[type[nn.Module], tuple[list[str], list[str]]] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__module__.partition(".")[0] in ("torch", "hybridops") or "plan" in vars(kind):
            continue
        if any(name.startswith(f"{other}.") or not other for names, _ in classes.values() for other in names):
            continue  # it is part of one that is swapped as a whole
        sources = [source for source, adapter in NAMED.items() if _looks_like(module, source, adapter)]
        if sources:
            classes.setdefault(kind, ([], sources))[0].append(name)
    return Suggestions(classes)


def _looks_like(module: nn.Module, source: str, adapter: Adapter) -> bool:
    layout: Layout = adapter.weights.args[0]  # type: ignore[attr-defined]  # a partial, of all that have a name
    try:
        layout.take(dict(module.named_parameters()), source, "")
        adapter.weights(module)
    except ValueError:
        return False
    return True
