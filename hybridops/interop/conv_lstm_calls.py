"""ConvLSTMs that were written elsewhere: which of their parameters is what, and how they are called."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice, permutations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hybridops.functional as HF
from hybridops.interop.calls import Tensors, randn
from hybridops.interop.conv_lstm import LAYOUTS
from hybridops.reference.conv_lstm import GATES, SPATIAL_NAMES

Shapes = Mapping[str, torch.Size]

STEP = [("x", "(h, c)"), ("x", "h", "c"), ("x",), ("x", "None")]
SEQUENCE = [("x",), ("x", "None"), ("x", "None", "T"), ("x", "(h, c)"), ("x", "(h, c)", "T"), ("x", "[(h, c)]")]
# Those of other projects first.
GATE_ORDERS = tuple(
    dict.fromkeys([*(layout.gate_order for layout in LAYOUTS.values()), *map("".join, permutations(GATES))])
)
TIME = {"BTC": 1, "TBC": 0, "BCT": 2}  # where it stands in x


class Inputs(NamedTuple):
    x: Tensor  # (B, C, S*) of a step, (B, T, C, S*) of a sequence
    states: list[tuple[Tensor, Tensor]] | None  # of each layer
    step: bool


@dataclass(frozen=True)
class Sizes:
    input_dim: int
    hidden_dims: tuple[int, ...]  # of each layer
    spatial_dims: int
    spatial_size: tuple[int, ...] | None  # where peepholes fix it


class LayerNames(NamedTuple):
    weights: tuple[str, ...]  # one, over x and h, or two
    biases: tuple[str, ...]
    peepholes: tuple[str, ...]  # of f, i, o, or none


@dataclass(frozen=True)
class ConvLSTMReading:
    family = "ConvLSTM"

    layers: tuple[LayerNames, ...]
    gate_order: str
    sizes: Sizes

    def __str__(self) -> str:
        return f"ConvLSTM with gates in the order {', '.join(self.gate_order)}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for layer in self.layers for group in layer for name in group)

    def uses(self) -> Iterator[tuple[ConvLSTMForm, ConvLSTMReading]]:
        one_layer = len(self.layers) == 1
        for layout, arguments in (*product(["BC"], STEP if one_layer else ()), *product(TIME, SEQUENCE)):
            yield ConvLSTMForm(arguments, layout, self.sizes), self

    def results(self, parameters: Tensors, inputs: Inputs, wanted: Collection[str] | None = None) -> Tensors:
        results: Tensors = {}
        output = inputs.x
        for number, layer in enumerate(self.layers):
            state = None if inputs.states is None else inputs.states[number]
            w_ih, w_hh, bias, peephole = self._weights(parameters, layer)
            if inputs.step:
                h, c = HF.conv_lstm_cell(output, state, w_ih, w_hh, bias, peephole=peephole)
            else:
                output, (h, c) = HF.conv_lstm(output, state, w_ih, w_hh, bias, peephole=peephole)
            # in plain PyTorch all but the gates is in the dtype of the cell before, and zeros in that of x
            dtype = torch.promote_types(h.dtype, inputs.x.dtype if state is None else state[1].dtype)
            results |= {f"h {number}": h.to(dtype), f"c {number}": c.to(dtype)}
            if not inputs.step:
                output = output.to(dtype)
                results |= {f"output {number} {layout}": output.movedim(1, TIME[layout]) for layout in TIME}
        for name in ("h", "c"):
            layers = [results[f"{name} {number}"] for number in range(len(self.layers))]
            if len({layer.shape for layer in layers}) == 1 and (wanted is None or name in wanted):
                results[name] = torch.stack(layers)  # as nn.LSTM returns them
        return results

    def _weights(self, parameters: Tensors, layer: LayerNames) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """w_ih, w_hh, bias, peephole as the functions take them."""
        weights = [self._canonical(parameters[name]) for name in layer.weights]
        hidden = len(weights[0]) // 4
        w_ih, w_hh = weights if len(weights) == 2 else (weights[0][:, :-hidden], weights[0][:, -hidden:])
        biases = [self._canonical(parameters[name]) for name in layer.biases]
        peepholes = [parameters[name].reshape(hidden, *self.sizes.spatial_size) for name in layer.peepholes]
        return w_ih, w_hh, sum(biases) if biases else None, torch.stack(peepholes) if peepholes else None

    def _canonical(self, rows: Tensor) -> Tensor:
        if self.gate_order == GATES:
            return rows
        gates = rows.chunk(4)
        return torch.cat([gates[self.gate_order.index(gate)] for gate in GATES])


@dataclass(frozen=True)
class ConvLSTMForm:
    arguments: tuple[str, ...]
    layout: str  # "BC" of a step, or a key of TIME
    sizes: Sizes

    def __str__(self) -> str:
        return f"({', '.join(self.arguments)}) with x ({', '.join(self.layout)}, ...)"

    @property
    def step(self) -> bool:
        return self.layout == "BC"

    def example(self, size: int, like: Tensor) -> tuple[Any, ...]:
        sizes = self.sizes
        taken = {sizes.input_dim, *sizes.hidden_dims}
        batch, steps = islice((n for n in count(2) if n not in taken), 2 * size, 2 * size + 2)
        space = sizes.spatial_size or ((5, 6, 4), (6, 7, 5))[size][: sizes.spatial_dims]
        x = randn(batch, steps, sizes.input_dim, *space, like=like)
        states = [tuple(randn(batch, hidden, *space, like=like) for _ in range(2)) for hidden in sizes.hidden_dims]
        values = {
            "x": x[:, 0] if self.step else x.movedim(1, TIME[self.layout]),
            "h": states[0][0],
            "c": states[0][1],
            "(h, c)": states[0],
            "[(h, c)]": states,
            "None": None,
            "T": steps,
        }
        return tuple(values[argument] for argument in self.arguments)

    def bind(self, values: tuple[Any, ...]) -> Inputs | None:
        given = dict(zip(self.arguments, values, strict=True))
        x = given["x"]
        if not isinstance(x, Tensor) or x.dim() != self.sizes.spatial_dims + (2 if self.step else 3):
            return None
        x = x if self.step else x.movedim(TIME[self.layout], 1)
        if x.shape[-self.sizes.spatial_dims - 1] != self.sizes.input_dim or given.get("None") is not None:
            return None
        if "T" in given and (type(given["T"]) is not int or given["T"] != x.shape[1]):
            return None
        space = x.shape[-self.sizes.spatial_dims :]
        if self.sizes.spatial_size is not None and tuple(space) != self.sizes.spatial_size:
            return None
        states = self._states(given)
        if states is None:
            return Inputs(x, None, self.step)
        if not isinstance(states, (list, tuple)) or len(states) != len(self.sizes.hidden_dims):
            return None
        for state, hidden in zip(states, self.sizes.hidden_dims, strict=True):
            if not _is_state(state, (x.shape[0], hidden, *space)):
                return None
        return Inputs(x, [(h, c) for h, c in states], self.step)

    def _states(self, given: Mapping[str, Any]) -> Any:
        """One pair a layer; None if there is no such argument."""
        if "[(h, c)]" in given:
            return given["[(h, c)]"] or ()
        if "(h, c)" in given:
            return (given["(h, c)"],)
        return ((given["h"], given["c"]),) if "h" in given else None

    def excludes(self, other: ConvLSTMForm) -> bool:
        return self.layout != other.layout


def _is_state(state: Any, shape: tuple[int, ...]) -> bool:
    if not isinstance(state, (list, tuple)) or len(state) != 2:
        return False
    return all(isinstance(tensor, Tensor) and tensor.shape == shape for tensor in state)


# ------------------------------------------------------------------------------------------------------- parameters


def readings(shapes: Shapes) -> list[ConvLSTMReading]:
    """All that parameters of these shapes may mean, in every order of the gates; their names do not matter.

    A layer has the convolutions with the most rows, 4H of them: one over x and h, or two; biases of 4H, which are added
    up; three peepholes, or none. Other convolutions may be there, if they are without a use.
    """
    layers = _layers(shapes)
    found = []
    for roles in _roles({key: shapes[name] for key, name in layers[0].items()}) if layers else ():
        names = tuple(LayerNames(*(tuple(layer[key] for key in group) for group in roles)) for layer in layers)
        sizes = _sizes(names, shapes)
        if sizes is not None:
            found += [ConvLSTMReading(names, order, sizes) for order in GATE_ORDERS]
    return found


def _layers(shapes: Shapes) -> list[dict[str, str]]:
    """The names of each layer, by what they are without its number, which is the first in them; none if they differ."""
    layers: dict[int, dict[str, str]] = {}
    for name in shapes:
        parts = name.split(".")
        number = next((part for part in parts if part.isdigit()), None)
        if number is not None:
            parts[parts.index(number)] = "*"
        layers.setdefault(int(number or 0), {})[".".join(parts)] = name
    ordered = [layers[number] for number in sorted(layers)]
    return ordered if all(layer.keys() == ordered[0].keys() for layer in ordered) else []


def _roles(shapes: Shapes) -> Iterator[LayerNames]:
    """What the parameters of a layer may be."""
    convolutions = {name: shape for name, shape in shapes.items() if len(shape) - 2 in SPATIAL_NAMES}
    rows = max((shape[0] for shape in convolutions.values()), default=0)
    weights = [name for name, shape in convolutions.items() if shape[0] == rows]
    if rows == 0 or rows % 4 or len(weights) > 2:
        return
    hidden, spatial_dims = rows // 4, len(shapes[weights[0]]) - 2
    biases = tuple(name for name, shape in shapes.items() if tuple(shape) == (rows,))
    others = [name for name in shapes if name not in weights and name not in biases]
    peepholes = [name for name in others if _is_peephole(shapes[name], hidden, spatial_dims)]
    peepholes = peepholes if len(peepholes) == 3 else []
    if len(biases) > 2 or any(len(shapes[name]) != spatial_dims + 2 for name in others if name not in peepholes):
        return
    for ordered in permutations(weights):
        of_x, of_h = shapes[ordered[0]], shapes[ordered[-1]]
        if len(ordered) == 1 or (of_h[1] == hidden and of_h[2:] == of_x[2:]):
            for gates in permutations(peepholes):
                yield LayerNames(ordered, biases, gates)


def _is_peephole(shape: torch.Size, hidden: int, spatial_dims: int) -> bool:
    return len(shape) - spatial_dims in (1, 2) and tuple(shape[: len(shape) - spatial_dims]) in ((hidden,), (1, hidden))


def _sizes(layers: tuple[LayerNames, ...], shapes: Shapes) -> Sizes | None:
    """None if the layers do not fit together."""
    dims = {len(shapes[name]) for layer in layers for name in layer.weights}
    if len(dims) > 1:
        return None
    spatial_dims = dims.pop() - 2
    hidden_dims = tuple(shapes[layer.weights[0]][0] // 4 for layer in layers)
    over = [sum(shapes[name][1] for name in layer.weights) for layer in layers]
    input_dims = [channels - hidden for channels, hidden in zip(over, hidden_dims, strict=True)]
    odd = all(size % 2 for layer in layers for name in layer.weights for size in shapes[name][2:])
    if not odd or input_dims[0] < 1 or tuple(input_dims[1:]) != hidden_dims[:-1]:
        return None
    spaces = {tuple(shapes[name][-spatial_dims:]) for layer in layers for name in layer.peepholes}
    if len(spaces) > 1:
        return None
    return Sizes(input_dims[0], hidden_dims, spatial_dims, spaces.pop() if spaces else None)
