"""Meeting models that were written without this library."""

from __future__ import annotations

from hybridops.interop.fuse import FuseReport, fuse
from hybridops.interop.state_dicts import SOURCES, from_state_dict, to_state_dict

__all__ = ["SOURCES", "FuseReport", "from_state_dict", "fuse", "to_state_dict"]
