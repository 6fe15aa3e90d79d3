"""Packages of the extra `evaluation`, imported where they are used: the rest of the library does without."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str) -> ModuleType:
    """The module, or an ImportError that says where to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed here ({error}): pip install 'hybridops[evaluation]'") from error
