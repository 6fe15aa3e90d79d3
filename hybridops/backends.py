"""The back ends: which are here, and which one runs a call.

    reference   plain PyTorch, any device, any dtype: the formulas that the others are held to
    native      compiled C++ on the CPU (hybridops._C), CUDA C++ on a GPU (hybridops._C_cuda)
    triton      Triton kernels (hybridops.triton), on a GPU; in Triton's interpreter on the CPU

A back end is a folder with one module a family (conv_lstm.py, additive_attention.py, attention_decoder.py; one may be
missing), whose functions are those of contract.py, and one `BackEnd` that says what it takes; `register` adds another.
It is named by an argument, by `use_backend`, or by the environment variable HYBRIDOPS_BACKEND, in this order of
precedence; a back end that is named runs or raises. Otherwise `choose` takes the fastest one that is here and takes
these inputs; the first call that only lacks compiled kernels to be fast warns, once in a process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from hybridops import formulas, native, triton
from hybridops.contract import BackEnd

_log = logging.getLogger(__name__)
_back_ends: dict[str, BackEnd] = {}
_by_priority: dict[str, list[BackEnd]] = {}  # by device type, those that may be chosen unasked, the fastest first
_named: str | None = os.environ.get("HYBRIDOPS_BACKEND") or None
_warned = False


def register(back_end: BackEnd) -> None:
    """Add a back end, or put another one in the place of that of its name."""
    _back_ends[back_end.name] = back_end
    for device_type in {device for each in _back_ends.values() for device in each.priority}:
        eligible = [each for each in _back_ends.values() if device_type in each.priority]
        _by_priority[device_type] = sorted(eligible, key=lambda each: -each.priority[device_type])


for _back_end in (formulas.BACK_END, native.BACK_END, triton.BACK_END):
    register(_back_end)


def get(name: str) -> BackEnd:
    """The back end of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in _back_ends:
        raise ValueError(f"backend must be one of {', '.join(map(repr, _back_ends))}, got {name!r}")
    return _back_ends[name]


def names() -> tuple[str, ...]:
    return tuple(_back_ends)


def available() -> dict[str, str]:
    """Each back end's name and, in words, what it runs on here, or why it is not here."""
    return {name: each.unavailable_reason(None) or each.description() for name, each in _back_ends.items()}


def is_available(name: str) -> bool:
    return get(name).unavailable_reason(None) is None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Name the back end of every call inside; None lets `choose` decide. Like torch's own switches it is one setting
    for the process, not one a thread.
    """
    global _named
    before, _named = _named, None if name is None else get(name).name
    try:
        yield
    finally:
        _named = before


def named(name: str | None = None) -> str | None:
    """The back end that a call has to run on, by its argument or the setting for the process; None: any."""
    return _named if name is None else name


def choose(family: str, name: str | None, x: Tensor, spatial_dims: int = 0) -> ModuleType:
    """The module that runs a call of this family on tensors like x: contract.ConvLSTMImpl, AdditiveAttentionImpl. While
    exporting to ONNX it is the reference, whatever was named: ONNX has no other's ops.

    Raises:
        ValueError: the name is not that of a back end.
        RuntimeError: a back end was named that is not here, or does not take these inputs.
    """
    name = named(name)
    if torch.onnx.is_in_onnx_export():
        return formulas.BACK_END.families[family]
    if name is not None:
        back_end = get(name)
        reason = back_end.unavailable_reason(None) or _refusal(back_end, family, x, spatial_dims)
        if reason:
            raise RuntimeError(f"backend {name!r} was asked for, but {reason}")
    else:
        back_end, reason = _fastest(family, x, spatial_dims)
        _tell(back_end.name, family, reason, x)
    return back_end.families[family]


def fallback(family: str, name: str | None, x: Tensor, spatial_dims: int = 0) -> bool:
    """Whether `choose` would give "reference" though nobody named it, as nothing faster takes tensors like x. The plain
    module's own forward then does the same in less time than the explicit formulas.
    """
    if torch.onnx.is_in_onnx_export():
        return True
    if named(name) is not None:
        return False
    chosen, reason = _fastest(family, x, spatial_dims)
    if chosen is not formulas.BACK_END:
        return False
    _tell(chosen.name, family, reason, x)
    return True


def _fastest(family: str, x: Tensor, spatial_dims: int) -> tuple[BackEnd, str]:
    """A back end, and why it is that one: why not those that would come first."""
    refusals: list[str] = []
    candidates = _by_priority.get(x.device.type) or [each for each in _back_ends.values() if each.priority]
    for back_end in candidates:
        reason = _refusal(back_end, family, x, spatial_dims)
        if reason is None:
            return back_end, "; ".join(refusals) or "it is the first choice for this device"
        refusals.append(f"{back_end.name}: {reason}")
    return formulas.BACK_END, "; ".join(refusals)


def _tell(name: str, family: str, reason: str, x: Tensor) -> None:
    """Log what was chosen, and warn the first time that it is plain PyTorch where compiled ops would do:
    unsupported_reason says that they are not here only of tensors they would take.
    """
    global _warned
    if torch.compiler.is_compiling():  # either would break the graph
        return
    _log.debug("%s: %s (%s)", family, name, reason)
    if name != "reference" or _warned or x.device.type not in native.BACK_END.priority:
        return
    unavailable = native.unavailable_reason(x.device.type)
    if unavailable is not None and reason.startswith(f"native: {unavailable}"):
        _warned = True
        # as a rule the level of who called a function of hybridops.functional
        warnings.warn(f"hybridops runs on plain PyTorch, which is slower: {reason}", UserWarning, stacklevel=4)


def _refusal(back_end: BackEnd, family: str, x: Tensor, spatial_dims: int) -> str | None:
    reason = back_end.unsupported_reason(family, x, spatial_dims)
    if reason is None and family not in back_end.families:
        return back_end.unavailable_reason(x.device.type) or f"it has no {family}"
    return reason
