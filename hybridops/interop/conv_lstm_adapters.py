"""How the ConvLSTMs of other projects are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.interop.adapters import register
from hybridops.interop.conv_lstm import LAYOUTS, ConvLSTMLayout, live_weights

Layers = list[tuple[Tensor | None, ...]]


def run_layers(layers: Layers, x: Any, states: Sequence[Any] | None = None) -> list[tuple[Tensor, ...]] | Any:
    """Output (B, T, H, S*), h and c (B, H, S*) of each layer for x (B, T, C, S*), of dtypes as plain PyTorch has them.

    NotImplemented where the shapes do not fit, so that the module's own forward says so.
    """
    if not isinstance(x, Tensor) or (states is not None and len(states) != len(layers)) or not _fits(layers[0], x):
        return NotImplemented
    results = []
    for number, weights in enumerate(layers):
        state = None if states is None else states[number]
        if state is not None and not _is_state(state, weights, x):
            return NotImplemented
        *matrices, peephole = weights
        output, (h, c) = HF.conv_lstm(x, None if state is None else tuple(state), *matrices, peephole=peephole)
        # all but the gates is in the dtype of the cell before, and zeros are in that of x
        dtype = torch.promote_types(h.dtype, x.dtype if state is None else state[1].dtype)
        x = output.to(dtype).contiguous()
        results.append((x, h.to(dtype).contiguous(), c.to(dtype).contiguous()))
    return results


def _fits(weights: tuple[Tensor | None, ...], x: Tensor) -> bool:
    w_ih, _, _, peephole = weights
    if x.dim() != w_ih.dim() + 1 or x.shape[1] == 0 or x.shape[2] != w_ih.shape[1]:
        return False
    return peephole is None or peephole.dim() == 2 or peephole.shape[2:] == x.shape[3:]


def _is_state(state: Any, weights: tuple[Tensor | None, ...], x: Tensor) -> bool:
    shape = (x.shape[0], weights[1].shape[1], *x.shape[3:])
    return (
        isinstance(state, (list, tuple))
        and len(state) == 2
        and all(isinstance(tensor, Tensor) and tensor.shape == shape for tensor in state)
    )


def random_frames(layers: Layers, batch: int, steps: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """x (B, T, C, S*), and states (h, c) of (B, H, S*) each for every layer."""
    w_ih, _, _, peephole = layers[0]
    space = (4, 5, 3)[: w_ih.dim() - 2] if peephole is None or peephole.dim() == 2 else peephole.shape[2:]
    states = [torch.randn(2, batch, w_hh.shape[1], *space).unbind() for _, w_hh, *_ in layers]
    return torch.randn(batch, steps, w_ih.shape[1], *space), states


def _step(layers: Layers, x: Any, states: Any) -> tuple[Tensor, Tensor] | Any:
    if not isinstance(x, Tensor) or states is None:
        return NotImplemented
    results = run_layers(layers, x.unsqueeze(1), [states])
    return results if results is NotImplemented else results[0][1:]


# ------------------------------------------------------------------------------------------------------------ calls


def call_cell(module: nn.Module, layers: Layers, x: Any, states: Any) -> Any:
    return _step(layers, x, states)


def cell_examples(module: nn.Module, layers: Layers, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    x, (states,) = random_frames(layers, batch, steps)
    yield x[:, 0], states


def call_cell_apart(module: nn.Module, layers: Layers, x: Any, h: Any, c: Any) -> Any:
    return _step(layers, x, (h, c))


def cell_apart_examples(module: nn.Module, layers: Layers, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    x, ((h, c),) = random_frames(layers, batch, steps)
    yield x[:, 0], h, c


def call_lists(pair: type, with_states: bool, module: nn.Module, layers: Layers, x: Any, states: Any = None) -> Any:
    """Outputs and states of all layers, or of the last one, in lists."""
    if not isinstance(x, Tensor) or x.dim() < 4 or (states is not None and not with_states):
        return NotImplemented
    results = run_layers(layers, x if module.batch_first else x.transpose(0, 1), states)
    if results is NotImplemented:
        return results
    results = results if module.return_all_layers else results[-1:]
    return [output for output, *_ in results], [pair(state) for _, *state in results]


def lists_examples(
    with_states: bool, module: nn.Module, layers: Layers, batch: int, steps: int
) -> Iterator[tuple[Any, ...]]:
    x, states = random_frames(layers, batch, steps)
    x = x if module.batch_first else x.transpose(0, 1)
    yield x, None
    if with_states:
        yield x, states


def call_stack(module: nn.Module, layers: Layers, x: Any, states: Any) -> Any:
    """The last layer's output, and the states of all; without states there are zeros."""
    if not isinstance(x, Tensor) or x.dim() < 4 or not states:
        return NotImplemented  # their zeros are of a device of their own
    results = run_layers(layers, x if module.batch_first else x.transpose(0, 1), states)
    if results is NotImplemented:
        return results
    output = results[-1][0] if module.batch_first else results[-1][0].transpose(0, 1).contiguous()
    return output, [(h, c) for _, h, c in results]


def stack_examples(module: nn.Module, layers: Layers, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    x, states = random_frames(layers, batch, steps)
    yield x if module.batch_first else x.transpose(0, 1), states


def call_steps_told(module: nn.Module, layers: Layers, inputs: Any, states: Any, steps: Any) -> Any:
    """Time first; so many steps as are told."""
    if not isinstance(inputs, Tensor) or type(steps) is not int or not 0 < steps <= len(inputs) or inputs.dim() < 4:
        return NotImplemented
    results = run_layers(layers, inputs[:steps].transpose(0, 1), None if states is None else [states])
    if results is NotImplemented:
        return results
    ((output, h, c),) = results
    return output.transpose(0, 1).contiguous(), (h, c)


def steps_told_examples(module: nn.Module, layers: Layers, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    x, (states,) = random_frames(layers, batch, steps)
    yield x.transpose(0, 1), states, steps


def call_channels_first(module: nn.Module, layers: Layers, x: Any) -> Any:
    """Time behind the channels; only the output comes back."""
    results = run_layers(layers, x.transpose(1, 2)) if isinstance(x, Tensor) and x.dim() > 3 else NotImplemented
    return results if results is NotImplemented else results[-1][0].transpose(1, 2).contiguous()


def channels_first_examples(module: nn.Module, layers: Layers, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    yield (random_frames(layers, batch, steps)[0].transpose(1, 2),)


# ---------------------------------------------------------------------------------------------------------- sources


def cell_layout(layout: ConvLSTMLayout) -> ConvLSTMLayout:
    """That of one cell out of a stack."""

    def own(key: str) -> str:
        return re.sub(r"^(cell_list\.(\{layer\}|\*)|convLSTMcell)\.", "", key)

    keys = {role: own(key) for role, key in layout.keys.items()}
    refused = {own(pattern): why for pattern, why in layout.refused.items()}
    return replace(layout, keys=keys, refused=refused, outside=tuple(map(own, layout.outside)))


_PEEPHOLES = ("Wci", "Wcf", "Wco")
_CELL, _APART = (call_cell, cell_examples), (call_cell_apart, cell_apart_examples)
_TOLD, _STACK = (call_steps_told, steps_told_examples), (call_stack, stack_examples)

_CALLS = {
    "documents.ConvLSTMCell": _CELL,
    "ndrplz": (partial(call_lists, list, False), partial(lists_examples, False)),
    "torchgeo": (partial(call_lists, tuple, True), partial(lists_examples, True)),
    "metnet": _STACK,
    "aserdega": _STACK,
    "sladewinter": (call_channels_first, channels_first_examples),
    "sladewinter_notebook": (call_channels_first, channels_first_examples),
    "jhhuang96": _TOLD,
    "hzzone": _TOLD,
}
_CELLS = {
    "ndrplz": _CELL,
    "torchgeo": _CELL,
    "metnet": _CELL,
    "aserdega": _CELL,
    "openstl": _APART,
    "sladewinter": _APART,
    "sladewinter_notebook": _APART,
}

for _source, _call in _CALLS.items():
    register(_source, partial(live_weights, LAYOUTS[_source]), *_call, varies=_PEEPHOLES if _source == "hzzone" else ())
for _source, _call in _CELLS.items():
    register(f"{_source}.ConvLSTMCell", partial(live_weights, cell_layout(LAYOUTS[_source])), *_call)
