"""Meeting models that were written without this library."""

from __future__ import annotations

from hybridops.interop.fuse import fuse

__all__ = ["fuse"]
