"""ConvLSTM checkpoints of other projects: where their weights stand, and how a fused module takes them.

Sources, each read from its files: ndrplz/ConvLSTM_pytorch, torchgeo, sladewinter/ConvLSTM (and the notebook it is
copied from), jhhuang96/ConvLSTM-PyTorch, OpenSTL, Hzzone/Precipitation-Nowcasting, aserdega/convlstmgru,
openclimatefix/metnet, snntorch, Keras 3, kamo-naoyuki/pytorch_convolutional_rnn. "textbook" is the cell of text books.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridops import reference
from hybridops.checks import SPATIAL_NAMES, check_shape
from hybridops.interop.layouts import Layer, Layout
from hybridops.modules import FusedConvLSTM, FusedConvLSTMCell
from hybridops.reference.conv_lstm import GATES

BIASES = ("bias", "bias_ih", "bias_hh")
PEEPHOLES = ("peephole_f", "peephole_i", "peephole_o")
WEIGHTS = {"weight": "(4H, C+H, K*)", "weight_ih": "(4H, C, K*)", "weight_hh": "(4H, H, K*)"}


@dataclass(frozen=True, kw_only=True)
class ConvLSTMLayout(Layout):
    """Roles: weight (4H, C+H, K*), or weight_ih (4H, C, K*) and weight_hh (4H, H, K*); bias (4H), or bias_ih and
    bias_hh, which are added up; peephole_f, peephole_i, peephole_o (H, S*), or (1, H, 1, ...) with one a channel.
    """

    gate_order: str
    channels_last: bool = False  # weights are (K*, channels, 4H)
    peephole_batch: bool = False  # peepholes are (1, H, S*)
    one_step: bool = False  # the source is a cell


class Weights(NamedTuple):
    """Of one layer, rows in some order of the gates."""

    weight: Tensor  # (4H, C+H, K*)
    bias: Tensor | None  # (4H)
    peephole: Tensor | None  # (3, H) or (3, H, S*), rows f, i, o


# w_ih, w_hh, bias and peephole of one layer, as `functional.conv_lstm` takes them
LiveWeights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _peepholes(pattern: str) -> dict[str, str]:
    return {f"peephole_{gate}": pattern.format(gate) for gate in "fio"}


_CONV = {"weight": "conv.weight", "bias": "conv.bias"}
_CELLS = "cell_list.{layer}."
_BIAS, _NO_NORM = ("bias",), "a norm between convolution and gates"

LAYOUTS: dict[str, ConvLSTMLayout] = {
    "textbook.ConvLSTMCell": ConvLSTMLayout(keys=_CONV, optional=(_BIAS,), gate_order="figo", one_step=True),
    "ndrplz": ConvLSTMLayout(within=_CELLS, keys=_CONV, optional=(_BIAS,), gate_order="ifog"),
    "torchgeo": ConvLSTMLayout(within=_CELLS, keys=_CONV, optional=(_BIAS,), gate_order="ifog"),
    "metnet": ConvLSTMLayout(within=_CELLS, keys=_CONV, optional=(_BIAS,), gate_order="ifog"),
    "aserdega": ConvLSTMLayout(
        within=_CELLS, keys=_CONV | _peepholes("Wc{}"), optional=(_BIAS, PEEPHOLES), gate_order="ifog"
    ),
    "sladewinter": ConvLSTMLayout(within="convLSTMcell.", keys=_CONV | _peepholes("W_c{}.weight"), gate_order="ifgo"),
    "sladewinter_notebook": ConvLSTMLayout(within="convLSTMcell.", keys=_CONV | _peepholes("W_c{}"), gate_order="ifgo"),
    "jhhuang96": ConvLSTMLayout(
        keys={"weight": "conv.0.weight", "bias": "conv.0.bias"}, refused={"conv.1.*": _NO_NORM}, gate_order="ifgo"
    ),
    "openstl": ConvLSTMLayout(
        within=_CELLS,
        keys={"weight_ih": "conv_x.0.weight", "weight_hh": "conv_h.0.weight"},
        # in every cell two convolutions that forward does not use; the last one of all is the model's head
        outside=("*conv_o.0.weight", "*conv_last.weight"),
        refused={"*conv_[xho].1.*": _NO_NORM},
        gate_order="ifgo",
    ),
    "hzzone": ConvLSTMLayout(
        keys={"weight": "_conv.weight", "bias": "_conv.bias"} | _peepholes("Wc{}"),
        optional=(PEEPHOLES,),  # zeros that are in no state dict, but where they were made parameters
        peephole_batch=True,
        gate_order="ifgo",
    ),
    "snntorch": ConvLSTMLayout(
        keys=_CONV,
        optional=(_BIAS,),
        outside=("threshold", "graded_spikes_factor"),  # make spikes of the hidden state
        fixed={"reset_mechanism_val": (2, "a reset of the hidden state (only reset_mechanism='none')")},
        gate_order="ifog",
        one_step=True,
    ),
    "kamo_naoyuki": ConvLSTMLayout(
        keys={name: f"{name}_l{{layer}}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
        optional=(("bias_ih", "bias_hh"),),
        refused={"*_reverse": "a second direction", "*_p[ifo]_l*": "peepholes that are convolutions"},
        gate_order="ifgo",
    ),
    "keras.ConvLSTM": ConvLSTMLayout(
        keys={"weight_ih": "kernel", "weight_hh": "recurrent_kernel", "bias": "bias"},
        optional=(_BIAS,),
        channels_last=True,
        gate_order="ifgo",
    ),
}


def build(layout: ConvLSTMLayout, layers: list[Layer], **options: Any) -> FusedConvLSTM | FusedConvLSTMCell:
    """The fused module with these weights, whose rows stay in the order in which they are."""
    weights = [_read(layout, *layer) for layer in layers]
    hidden = [len(layer.weight) // 4 for layer in weights]
    inputs = [layer.weight.shape[1] - size for layer, size in zip(weights, hidden, strict=True)]
    if inputs[1:] != hidden[:-1]:
        raise ValueError(f"layers of state_dict do not fit: they take {inputs} channels and give {hidden}")
    first = weights[0]
    space = () if first.peephole is None else tuple(first.peephole.shape[2:])
    options = {
        "bias": first.bias is not None,
        "peephole": None if first.peephole is None else "spatial" if space else "channel",
        "spatial_size": space or None,
        "gate_order": layout.gate_order,
        "device": first.weight.device,
        "dtype": first.weight.dtype,
    } | options
    kernels: list[int | tuple[int, ...]] = [tuple(layer.weight.shape[2:]) for layer in weights]
    module: FusedConvLSTM | FusedConvLSTMCell
    if layout.one_step:
        module = FusedConvLSTMCell(inputs[0], hidden[0], kernels[0], **options)
    else:
        same = len(set(hidden)) == 1
        module = FusedConvLSTM(inputs[0], hidden[0] if same else hidden, kernels, len(weights), **options)
    for cell, layer in zip(_cells(module), weights, strict=True):
        state = {"conv.weight": layer.weight, "conv.bias": layer.bias, "peephole": layer.peephole}
        cell.load_state_dict({name: tensor for name, tensor in state.items() if tensor is not None}, strict=True)
    return module


def _cells(module: reference.ConvLSTM | reference.ConvLSTMCell) -> list[reference.ConvLSTMCell]:
    return [module] if isinstance(module, reference.ConvLSTMCell) else module._cells()


def take_apart(
    layout: ConvLSTMLayout, module: reference.ConvLSTM | reference.ConvLSTMCell, source: str
) -> list[dict[str, Tensor]]:
    """The tensors of each layer by their roles, rows in the layout's order."""
    cells = _cells(module)
    if len(cells) > 1 and not layout.has_layers:
        raise ValueError(f"module must have one layer, as {source!r} has, got {len(cells)}")
    return [_write(layout, cell, source) for cell in cells]


def live_weights(layout: ConvLSTMLayout, module: nn.Module) -> list[LiveWeights]:
    """Of each layer, views of the module's own."""
    layers = []
    for layer in layout.live(module):
        weight, bias, peephole = _read(layout, *layer)
        weight = _reorder(weight, layout.gate_order, GATES)
        bias = None if bias is None else _reorder(bias, layout.gate_order, GATES)
        hidden = len(weight) // 4
        peephole = None if peephole is None else peephole.to(weight.dtype)  # of tensors that the module does not cast
        layers.append((weight[:, :-hidden], weight[:, -hidden:], bias, peephole))
    return layers


def _read(layout: ConvLSTMLayout, tensors: dict[str, Tensor], keys: dict[str, str]) -> Weights:
    """One layer, checked."""
    weights = {role: tensors[role] for role in WEIGHTS if role in tensors}
    for role, weight in weights.items():
        if weight.dim() - 2 not in SPATIAL_NAMES:
            wanted = "(K*, channels, 4H)" if layout.channels_last else WEIGHTS[role]
            got = tuple(weight.shape)
            raise ValueError(f"{keys[role]} must have shape {wanted}, with one to three kernel sizes, got {got}")
        if layout.channels_last:
            weights[role] = weight.movedim((-1, -2), (0, 1))
    key, (weight, *of_hidden) = keys[next(iter(weights))], weights.values()
    rows, _, *kernel = weight.shape
    if of_hidden:
        check_shape(keys["weight_hh"], of_hidden[0], (rows, rows // 4, *kernel))
        weight = torch.cat([weight, *of_hidden], dim=1)
    if rows % 4 or weight.shape[1] <= rows // 4:
        raise ValueError(f"{key} must have 4H rows over C+H channels, got {rows} over {weight.shape[1]}")
    biases = {role: tensors[role] for role in BIASES if role in tensors}
    for role, bias in biases.items():
        check_shape(keys[role], bias, (rows,))
    summed = reduce(torch.add, biases.values()) if biases else None
    return Weights(weight, summed, _read_peepholes(layout, tensors, keys, rows // 4, len(kernel)))


def _read_peepholes(
    layout: ConvLSTMLayout, tensors: dict[str, Tensor], keys: dict[str, str], hidden: int, dims: int
) -> Tensor | None:
    """(3, H), where there is one a channel, or (3, H, S*)."""
    peepholes = {role: tensors[role] for role in PEEPHOLES if role in tensors}
    if not peepholes:
        return None
    channel = (1, hidden, *[1] * dims)
    first = tensors[PEEPHOLES[0]].shape
    shape: Sequence[int | str] = (*[1] * layout.peephole_batch, hidden, *SPATIAL_NAMES[dims])
    if first == channel:
        shape = channel
    for role, peephole in peepholes.items():
        check_shape(keys[role], peephole, shape)
        shape = first  # the others are like the first
    return torch.stack(list(peepholes.values())).reshape(3, hidden, *(() if first == channel else first[-dims:]))


def _write(layout: ConvLSTMLayout, cell: reference.ConvLSTMCell, source: str) -> dict[str, Tensor]:
    """One layer."""
    weight = _reorder(cell.conv.weight, cell.gate_order, layout.gate_order)
    bias = None if cell.conv.bias is None else _reorder(cell.conv.bias, cell.gate_order, layout.gate_order)
    peephole: Tensor | None = cell.peephole
    tensors: dict[str, Tensor] = {"weight": weight}
    if "weight" not in layout.keys:
        tensors = {"weight_ih": weight[:, : cell.input_dim], "weight_hh": weight[:, cell.input_dim :]}
    if layout.channels_last:
        tensors = {role: tensor.movedim((0, 1), (-1, -2)) for role, tensor in tensors.items()}

    places = [role for role in BIASES if role in layout.keys]
    optional = {role for group in layout.optional for role in group}
    if bias is not None and not places:
        raise ValueError(f"module must have no bias: there is none in {source!r}")
    if bias is not None or not optional.issuperset(places):
        zeros = weight.new_zeros(len(weight))
        tensors |= dict(zip(places, [zeros if bias is None else bias, zeros], strict=False))

    if peephole is not None:
        if PEEPHOLES[0] not in layout.keys:
            raise ValueError(f"module must not have peepholes: there are none in {source!r}")
        if peephole.dim() == 2:  # one a channel
            peephole = peephole.reshape(3, 1, -1, *[1] * cell.spatial_dims)
        elif layout.peephole_batch:
            peephole = peephole[:, None]
        tensors |= zip(PEEPHOLES, peephole, strict=True)
    elif not optional.issuperset(role for role in PEEPHOLES if role in layout.keys):
        raise ValueError(f"module must have peepholes, as {source!r} has")
    return tensors


def _reorder(rows: Tensor, order: str, wanted: str) -> Tensor:
    """The gates' rows, moved from one order to another."""
    if order == wanted:
        return rows
    gates = dict(zip(order, rows.chunk(len(GATES)), strict=True))
    return torch.cat([gates[gate] for gate in wanted])
