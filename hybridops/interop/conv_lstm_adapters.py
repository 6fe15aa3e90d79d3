"""How the ConvLSTMs of other projects are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.interop.adapters import register
from hybridops.interop.conv_lstm import LAYOUTS, ConvLSTMLayout, live_weights

Layers = list[tuple[Tensor | None, ...]]


class Form(NamedTuple):
    """A way of calling a ConvLSTM. `take` may give NotImplemented."""

    take: Callable[..., Any]  # (module, *arguments) -> x (B, T, C, S*), and one (h, c) a layer or None
    give: Callable[
        [nn.Module, list[tuple[Tensor, Tensor, Tensor]]], Any
    ]  # (output, h, c) of each layer -> what returns
    make: Callable[[nn.Module, Tensor, list[Any]], list[Any]]  # x, states -> tuples of arguments


def _call(form: Form, module: nn.Module, layers: Layers, *arguments: Any) -> Any:
    if not isinstance(arguments[0], Tensor) or arguments[0].dim() < layers[0][0].dim():
        return NotImplemented
    taken = form.take(module, *arguments)
    results = taken if taken is NotImplemented else _run(layers, *taken)
    return results if results is NotImplemented else form.give(module, results)


def _run(layers: Layers, x: Tensor, states: Sequence[Any] | None) -> Any:
    """Output, h and c of each layer, in the dtypes of plain PyTorch; NotImplemented where the shapes do not fit."""
    w_ih, _, _, peephole = layers[0]
    space = x.shape[3:] if peephole is None or peephole.dim() == 2 else peephole.shape[2:]
    if x.dim() != w_ih.dim() + 1 or x.shape[1] == 0 or x.shape[2:] != (w_ih.shape[1], *space):
        return NotImplemented
    if states is not None and len(states) != len(layers):
        return NotImplemented
    results = []
    for state, (w_ih, w_hh, bias, peephole) in zip(states or [None] * len(layers), layers, strict=True):
        if states is not None and not _is_state(state, (x.shape[0], w_hh.shape[1], *space)):
            return NotImplemented
        output, (h, c) = HF.conv_lstm(x, state and tuple(state), w_ih, w_hh, bias, peephole=peephole)
        # all but the gates is in the dtype of the cell before, and zeros are in that of x
        dtype = torch.promote_types(h.dtype, x.dtype if state is None else state[1].dtype)
        results.append(tuple(tensor.to(dtype).contiguous() for tensor in (output, h, c)))
        x = results[-1][0]
    return results


def _is_state(state: Any, shape: tuple[int, ...]) -> bool:
    if not isinstance(state, (list, tuple)) or len(state) != 2:
        return False
    return all(isinstance(tensor, Tensor) and tensor.shape == shape for tensor in state)


def _examples(form: Form, module: nn.Module, layers: Layers, batch: int, steps: int) -> Iterable[tuple[Any, ...]]:
    w_ih, _, _, peephole = layers[0]
    space = (4, 5, 3)[: w_ih.dim() - 2] if peephole is None or peephole.dim() == 2 else peephole.shape[2:]
    states = [torch.randn(2, batch, w_hh.shape[1], *space).unbind() for _, w_hh, *_ in layers]
    return form.make(module, torch.randn(batch, steps, w_ih.shape[1], *space), states)


def _turned(module: nn.Module, x: Tensor) -> Tensor:
    return x if module.batch_first else x.transpose(0, 1)


def _lists(pair: type, stateful: bool) -> Form:
    """Outputs and states of all layers, or of the last one, in lists."""

    def give(module: nn.Module, results: list[Any]) -> Any:
        results = results if module.return_all_layers else results[-1:]
        return [output for output, *_ in results], [pair(state) for _, *state in results]

    return Form(
        lambda module, x, states=None: (_turned(module, x), states) if states is None or stateful else NotImplemented,
        give,
        lambda module, x, states: [(_turned(module, x), given) for given in (None, states)[: 1 + stateful]],
    )


CELL = Form(
    lambda _, x, state: (x[:, None], [state]),
    lambda _, results: results[0][1:],
    lambda _, x, states: [(x[:, 0], states[0])],
)
APART = Form(
    lambda _, x, h, c: (x[:, None], [(h, c)]),
    CELL.give,
    lambda _, x, states: [(x[:, 0], *states[0])],
)
STACK = Form(  # where no states are given, zeros are made on a device of their own
    lambda module, x, states: (_turned(module, x), states) if states else NotImplemented,
    lambda module, results: (_turned(module, results[-1][0]).contiguous(), [(h, c) for _, h, c in results]),
    lambda module, x, states: [(_turned(module, x), states)],
)
TOLD = Form(  # time first, and so many steps as are told
    lambda _, x, state, n: (
        (x[:n].transpose(0, 1), state and [state]) if type(n) is int and 0 < n <= len(x) else NotImplemented
    ),
    lambda _, results: (results[0][0].transpose(0, 1).contiguous(), results[0][1:]),
    lambda _, x, states: [(x.transpose(0, 1), states[0], x.shape[1])],
)
CHANNELS_FIRST = Form(  # time behind them; only the output comes back
    lambda _, x: (x.transpose(1, 2), None),
    lambda _, results: results[0][0].transpose(1, 2).contiguous(),
    lambda _, x, states: [(x.transpose(1, 2),)],
)
STACKED = Form(  # as nn.LSTM is called
    lambda module, x, states=None: (_turned(module, x), states and list(zip(*states, strict=True))),
    lambda m, r: (_turned(m, r[-1][0]).contiguous(), tuple(map(torch.stack, list(zip(*r, strict=True))[1:]))),
    lambda module, x, states: [
        (_turned(module, x), given) for given in (None, tuple(map(torch.stack, zip(*states, strict=True))))
    ],
)

FORMS = {
    "documents.ConvLSTMCell": CELL,
    "ndrplz": _lists(list, False),
    "torchgeo": _lists(tuple, True),
    "metnet": STACK,
    "aserdega": STACK,
    "sladewinter": CHANNELS_FIRST,
    "sladewinter_notebook": CHANNELS_FIRST,
    "jhhuang96": TOLD,
    "hzzone": TOLD,
    "kamo_naoyuki": STACKED,
}
CELLS = dict.fromkeys(("ndrplz", "torchgeo", "metnet", "aserdega"), CELL)
CELLS |= dict.fromkeys(("openstl", "sladewinter", "sladewinter_notebook"), APART)


def _cell_layout(layout: ConvLSTMLayout) -> ConvLSTMLayout:
    """That of one cell out of a stack."""

    def own(key: str) -> str:
        return re.sub(r"^(cell_list\.(\{layer\}|\*)|convLSTMcell)\.", "", key)

    keys = {role: own(key) for role, key in layout.keys.items()}
    refused = {own(pattern): why for pattern, why in layout.refused.items()}
    return replace(layout, keys=keys, refused=refused, outside=tuple(map(own, layout.outside)))


_ROWS = [(source, LAYOUTS[source], form) for source, form in FORMS.items()]
_ROWS += [(f"{source}.ConvLSTMCell", _cell_layout(LAYOUTS[source]), form) for source, form in CELLS.items()]
for _name, _layout, _form in _ROWS:
    _varies = ("Wci", "Wcf", "Wco") if _name == "hzzone" else ()  # they may be tensors that are no parameters
    register(_name, partial(live_weights, _layout), partial(_call, _form), partial(_examples, _form), varies=_varies)
