"""Meeting models that were written without this library."""

from __future__ import annotations

from hybridops.interop import additive_attention_adapters, conv_lstm_adapters  # noqa: F401  they name their sources
from hybridops.interop.adapters import NAMED, Adapter, adapter
from hybridops.interop.fuse import FuseReport, fuse
from hybridops.interop.state_dicts import SOURCES, from_state_dict, to_state_dict
from hybridops.interop.suggest import Suggestions, suggest

ADAPTERS = tuple(NAMED)

__all__ = [
    "ADAPTERS",
    "SOURCES",
    "Adapter",
    "FuseReport",
    "Suggestions",
    "adapter",
    "from_state_dict",
    "fuse",
    "suggest",
    "to_state_dict",
]
