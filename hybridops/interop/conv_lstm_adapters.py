"""How the ConvLSTMs of other projects are called.

A form takes x (B, T, C, S*), and one (h, c) a layer or None; it gives of (output, h, c) of each layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.interop.adapters import Form, register, turned
from hybridops.interop.conv_lstm import LAYOUTS, LiveWeights, live_weights

Layers = list[LiveWeights]


def _call(form: Form, module: nn.Module, layers: Layers, *arguments: Any) -> Any:
    """In the dtypes of plain PyTorch; NotImplemented where the shapes do not fit."""
    w_ih, _, _, peephole = layers[0]
    if not isinstance(arguments[0], Tensor) or arguments[0].dim() < w_ih.dim():
        return NotImplemented
    taken = form.take(module, *arguments)
    if taken is NotImplemented:
        return NotImplemented
    x, states = taken
    space = x.shape[3:] if peephole is None or peephole.dim() == 2 else peephole.shape[2:]
    if x.dim() != w_ih.dim() + 1 or x.shape[1] == 0 or x.shape[2:] != (w_ih.shape[1], *space):
        return NotImplemented
    if states is not None and len(states) != len(layers):
        return NotImplemented
    results = []  # output, h and c of each layer
    for state, (w_ih, w_hh, bias, peephole) in zip(states or [None] * len(layers), layers, strict=True):
        if states is not None and not _is_state(state, (x.shape[0], w_hh.shape[1], *space)):
            return NotImplemented
        output, (h, c) = HF.conv_lstm(x, state and tuple(state), w_ih, w_hh, bias, peephole=peephole)
        # all but the gates is in the dtype of the cell before, and zeros are in that of x
        dtype = torch.promote_types(h.dtype, x.dtype if state is None else state[1].dtype)
        results.append(tuple(tensor.to(dtype).contiguous() for tensor in (output, h, c)))
        x = results[-1][0]
    return form.give(module, results, *arguments)


def _is_state(state: Any, shape: tuple[int, ...]) -> bool:
    if not isinstance(state, (list, tuple)) or len(state) != 2:
        return False
    return all(isinstance(tensor, Tensor) and tensor.shape == shape for tensor in state)


def _examples(form: Form, module: nn.Module, layers: Layers, batch: int, steps: int) -> Iterable[tuple[Any, ...]]:
    w_ih, _, _, peephole = layers[0]
    space = (4, 5, 3)[: w_ih.dim() - 2] if peephole is None or peephole.dim() == 2 else peephole.shape[2:]
    states = [torch.randn(2, batch, w_hh.shape[1], *space).unbind() for _, w_hh, *_ in layers]
    return form.make(module, torch.randn(batch, steps, w_ih.shape[1], *space), states)


def _lists(pair: type, stateful: bool) -> Form:
    """Outputs and states of all layers, or of the last one, in lists."""

    def give(module: nn.Module, results: list[Any], *_: Any) -> Any:
        results = results if module.return_all_layers else results[-1:]
        return [output for output, *_ in results], [pair(state) for _, *state in results]

    return Form(
        lambda module, x, states=None: (turned(module, x), states) if states is None or stateful else NotImplemented,
        give,
        lambda module, x, states: [(turned(module, x), given) for given in (None, states)[: 1 + stateful]],
    )


CELL = Form(
    lambda _, x, state: (x[:, None], [state]),
    lambda _, results, *__: results[0][1:],
    lambda _, x, states: [(x[:, 0], states[0])],
)
APART = Form(
    lambda _, x, h, c: (x[:, None], [(h, c)]),
    CELL.give,
    lambda _, x, states: [(x[:, 0], *states[0])],
)
STACK = Form(  # where no states are given, zeros are made on a device of their own
    lambda module, x, states: (turned(module, x), states) if states else NotImplemented,
    lambda module, results, *_: (turned(module, results[-1][0]).contiguous(), [(h, c) for _, h, c in results]),
    lambda module, x, states: [(turned(module, x), states)],
)
TOLD = Form(  # time first, and so many steps as are told
    lambda _, x, state, n: (
        (x[:n].transpose(0, 1), state and [state]) if type(n) is int and 0 < n <= len(x) else NotImplemented
    ),
    lambda _, results, *__: (results[0][0].transpose(0, 1).contiguous(), results[0][1:]),
    lambda _, x, states: [(x.transpose(0, 1), states[0], x.shape[1])],
)
CHANNELS_FIRST = Form(  # time behind them; only the output comes back
    lambda _, x: (x.transpose(1, 2), None),
    lambda _, results, *__: results[0][0].transpose(1, 2).contiguous(),
    lambda _, x, states: [(x.transpose(1, 2),)],
)
STACKED = Form(  # as nn.LSTM is called
    lambda module, x, states=None: (turned(module, x), states and list(zip(*states, strict=True))),
    lambda module, results, *_: (
        turned(module, results[-1][0]).contiguous(),
        tuple(map(torch.stack, list(zip(*results, strict=True))[1:])),
    ),
    lambda module, x, states: [
        (turned(module, x), given) for given in (None, tuple(map(torch.stack, zip(*states, strict=True))))
    ],
)

FORMS = {
    "textbook.ConvLSTMCell": CELL,
    "ndrplz": _lists(list, False),
    "torchgeo": _lists(tuple, True),
    "metnet": STACK,
    "aserdega": STACK,
    "sladewinter": CHANNELS_FIRST,
    "sladewinter_notebook": CHANNELS_FIRST,
    "jhhuang96": TOLD,
    "hzzone": TOLD._replace(varies=("Wci", "Wcf", "Wco")),  # they may be tensors that are no parameters
    "kamo_naoyuki": STACKED,
}
CELLS = dict.fromkeys(("ndrplz", "torchgeo", "metnet", "aserdega"), CELL)
CELLS |= dict.fromkeys(("openstl", "sladewinter", "sladewinter_notebook"), APART)

_ROWS = [(source, form, LAYOUTS[source]) for source, form in FORMS.items()]
_ROWS += [(f"{source}.ConvLSTMCell", form, replace(LAYOUTS[source], within="")) for source, form in CELLS.items()]
for _name, _form, _layout in _ROWS:
    register(_name, _form, partial(live_weights, _layout), _call, _examples)
