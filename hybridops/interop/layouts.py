"""What the tables of layouts have in common: under which keys a project keeps what, and what is said if it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridops.modules.parts import recompute_weights


class Layer(NamedTuple):
    tensors: dict[str, Tensor]  # by role
    keys: dict[str, str]  # by role, for what is said if a tensor is wrong


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a source keeps its parameters. In a key, {layer} is the number of a layer; in a pattern, * is anything."""

    keys: Mapping[str, str]  # role -> key
    within: str = ""  # what all these keys begin with
    optional: tuple[tuple[str, ...], ...] = ()  # roles that are all there or all missing
    outside: tuple[str, ...] = ()  # patterns of keys that are no part of the fused module, and not looked at
    refused: Mapping[str, str] = field(default_factory=dict)  # pattern -> why the fused module cannot stand for it
    fixed: Mapping[str, tuple[float, str]] = field(default_factory=dict)  # key -> what it must be, and why if it is not

    def take(self, state_dict: Mapping[str, Tensor], source: str, prefix: str) -> list[Layer]:
        """What there is of each layer. Nothing may be missing, or be there without a role."""
        tensors = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        for key, value in tensors.items():
            reasons = [why for pattern, why in self.refused.items() if fnmatchcase(key, pattern)]
            reasons += [why for fixed, (want, why) in self.fixed.items() if key == fixed and float(value) != want]
            if reasons:
                raise ValueError(f"{prefix + key} of state_dict: the fused module does not compute {reasons[0]}")
        layers, missing = self._find(tensors.get)
        others = tensors.keys() - {key for layer in layers for key in layer.keys.values()} - self.fixed.keys()
        unexpected = sorted(key for key in others if not any(fnmatchcase(key, pattern) for pattern in self.outside))
        if missing or unexpected:
            under = f" under {prefix!r}" if prefix else ""
            raise ValueError(
                f"state_dict must have the keys of {source!r}{under}: missing {missing}, unexpected {unexpected}"
            )
        return [Layer({role: torch.as_tensor(value) for role, value in found.items()}, keys) for found, keys in layers]

    def live(self, module: nn.Module) -> list[Layer]:
        """What there is of each layer in a module of the source: its own tensors, so that gradients reach them.

        Raises:
            ValueError: something that may not be missing is.
        """
        layers, missing = self._find(lambda key: _attribute(module, key))
        if missing:
            raise ValueError(f"there is no {missing[0]}")
        return layers

    def put(self, layers: Iterable[Mapping[str, Tensor]], prefix: str) -> dict[str, Tensor]:
        """What `take` would take apart."""
        return {
            prefix + self._keys_of(layer)[role]: tensor.contiguous()
            for layer, tensors in enumerate(layers)
            for role, tensor in tensors.items()
        }

    @property
    def has_layers(self) -> bool:
        return any("{layer}" in self.within + key for key in self.keys.values())

    def _keys_of(self, layer: int) -> dict[str, str]:
        return {role: (self.within + key).format(layer=layer) for role, key in self.keys.items()}

    def _find(self, get: Callable[[str], Any]) -> tuple[list[Layer], list[str]]:
        """Each layer of which there is anything, one at least; and the keys that are missing."""
        layers: list[Layer] = []
        for layer in count():
            keys = self._keys_of(layer)
            found = {role: value for role, key in keys.items() if (value := get(key)) is not None}
            if layer == 0 or found:
                layers.append(Layer(found, keys))
            if not found or not self.has_layers:
                break
        there = {role for layer in layers for role in layer.tensors}
        absent = {role for group in self.optional if there.isdisjoint(group) for role in group}
        missing = [
            key for found, keys in layers for role, key in keys.items() if role not in found and role not in absent
        ]
        return layers, sorted(missing)


def _attribute(module: nn.Module, key: str) -> Tensor | None:
    """The tensor of that name, as the next call would find it."""
    *path, name = key.split(".")
    owner: object = module
    for part in path:
        owner = getattr(owner, part, None)
    if isinstance(owner, nn.Module):
        recompute_weights(owner)
    return getattr(owner, name, None)
