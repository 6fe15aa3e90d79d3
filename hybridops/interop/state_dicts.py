"""from_state_dict and to_state_dict: checkpoints of other projects."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from hybridops import reference
from hybridops.interop import additive_attention, conv_lstm
from hybridops.interop.layouts import Layout

FAMILIES = {
    conv_lstm: (reference.ConvLSTM, reference.ConvLSTMCell),
    additive_attention: (reference.AdditiveAttention, reference.ConcatAttention),
}
SOURCES = tuple(source for family in FAMILIES for source in family.LAYOUTS)


def from_state_dict(state_dict: Mapping[str, Tensor], source: str, *, prefix: str = "", **options: Any) -> nn.Module:
    """The fused module that computes what a module of another project does, with a copy of its weights.

    Args:
        state_dict: the source's, with its keys; values may be anything `torch.as_tensor` takes.
        source: one of `hybridops.interop.SOURCES`.
        prefix: only the keys that begin with it are looked at, without it.
        options: of the module's constructor, which the state dict does not tell: `batch_first`, `save`, `scale`,
            `dropout`, `backend`, `dtype`, `device`.

    Returns:
        A `FusedConvLSTM`, `FusedConvLSTMCell`, `FusedAdditiveAttention` or `FusedConcatAttention`, as docs/interop.md
        says of each source. Rows stay in the source's gate order. A parameter that the source does not have does
        nothing and is not trained; a normalised v is a parametrization (`torch.nn.utils.parametrizations.weight_norm`).

    Raises:
        TypeError: the state dict is not a mapping.
        ValueError: the source is not known; keys are missing or unexpected (both are named); a shape is wrong; or the
            source computes what the fused module does not.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping of names to tensors, got {type(state_dict).__name__}")
    family, layout = _find(source)
    module: nn.Module = family.build(layout, layout.take(state_dict, source, prefix), **options)
    return module


def to_state_dict(module: nn.Module, source: str, *, prefix: str = "") -> dict[str, Tensor]:
    """The state dict that makes a module of another project compute what `module` does.

    What `from_state_dict` read comes back bit by bit, but for two biases that are added up (all is in the first then)
    and a bias of v, which no softmax sees (zero then). What lies outside of the fused module is not in it.

    Args:
        module: a ConvLSTM or an additive attention, fused or of `hybridops.reference`.
        source, prefix: as in `from_state_dict`.

    Raises:
        TypeError: the module is not of the source's kind.
        ValueError: the source is not known, or has no place for something that the module computes.
    """
    family, layout = _find(source)
    kinds = FAMILIES[family]
    if not isinstance(module, kinds):
        raise TypeError(f"module must be {' or '.join(kind.__name__ for kind in kinds)}, got {type(module).__name__}")
    layers = family.take_apart(layout, module, source)
    return layout.put([{role: tensor.detach() for role, tensor in tensors.items()} for tensors in layers], prefix)


def _find(source: str) -> tuple[ModuleType, Layout]:
    for family in FAMILIES:
        if source in family.LAYOUTS:
            return family, family.LAYOUTS[source]
    raise ValueError(f"source must be one of {', '.join(map(repr, SOURCES))}, got {source!r}")
