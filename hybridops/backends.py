"""The back ends: which are here, and which one runs a call.

    reference   plain PyTorch, any device, any dtype: the oracle
    native      compiled C++ on the CPU (hybridops._C), CUDA C++ on a GPU (hybridops._C_cuda)
    triton      Triton kernels (hybridops.triton), on a GPU; in Triton's interpreter on the CPU

A back end is a folder with one module a family (conv_lstm.py, additive_attention.py, attention_decoder.py), of which it
may lack one; the reference's decoder is in hybridops/formulas. A back end is named by an argument, by `use_backend`, or
by the environment variable HYBRIDOPS_BACKEND, in this order of precedence, and then runs or raises. Otherwise `choose`
takes the fastest one that is here and takes these inputs; the first call that only lacks compiled kernels to be fast
warns, once in a process.
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

from hybridops import native, triton
from hybridops.formulas import attention_decoder as attention_decoder_formulas
from hybridops.native import additive_attention as native_additive_attention
from hybridops.native import attention_decoder as native_attention_decoder
from hybridops.native import conv_lstm as native_conv_lstm
from hybridops.reference import additive_attention as reference_additive_attention
from hybridops.reference import conv_lstm as reference_conv_lstm

NAMES = ("reference", "native", "triton")

_MODULES: dict[tuple[str, str], ModuleType] = {
    ("reference", "conv_lstm"): reference_conv_lstm,
    ("reference", "additive_attention"): reference_additive_attention,
    ("reference", "attention_decoder"): attention_decoder_formulas,
    ("native", "conv_lstm"): native_conv_lstm,
    ("native", "additive_attention"): native_additive_attention,
    ("native", "attention_decoder"): native_attention_decoder,
}

if triton.unavailable_reason() is None:
    from hybridops.triton import additive_attention as triton_additive_attention
    from hybridops.triton import conv_lstm as triton_conv_lstm

    _MODULES["triton", "conv_lstm"] = triton_conv_lstm
    _MODULES["triton", "additive_attention"] = triton_additive_attention

_log = logging.getLogger(__name__)
_named: str | None = os.environ.get("HYBRIDOPS_BACKEND") or None
_warned = False


def available() -> dict[str, str]:
    """Each back end's name and, in words, what it runs on here, or why it is not here."""
    return {name: _unavailable_reason(name) or _description(name) for name in NAMES}


def is_available(name: str) -> bool:
    return _unavailable_reason(_check_name(name)) is None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Name the back end of every call inside; None lets `choose` decide. Like torch's own switches it is one setting
    for the process, not one a thread.
    """
    global _named
    before, _named = _named, None if name is None else _check_name(name)
    try:
        yield
    finally:
        _named = before


def named(name: str | None = None) -> str | None:
    """The back end that a call has to run on, by its argument or the setting for the process; None: any."""
    return _named if name is None else name


def choose(family: str, name: str | None, x: Tensor, spatial_dims: int = 0) -> ModuleType:
    """The module that runs a call of this family on tensors like x.

    Raises:
        ValueError: the name is not that of a back end.
        RuntimeError: a back end was named that is not here, or does not take these inputs.
    """
    name = named(name)
    if name is not None:
        reason = _unavailable_reason(_check_name(name)) or _refusal(name, family, x, spatial_dims)
        if reason:
            raise RuntimeError(f"backend {name!r} was asked for, but {reason}")
        return _MODULES[name, family]

    chosen, reason = _fastest(family, x, spatial_dims)
    _tell(chosen, family, reason, x)
    return _MODULES[chosen, family]


def fallback(family: str, name: str | None, x: Tensor, spatial_dims: int = 0) -> bool:
    """Whether `choose` would give "reference" though nobody named it, as nothing faster takes tensors like x. The plain
    module's own forward then does the same in less time than the explicit formulas.
    """
    if name is not None or _named is not None:
        return False
    chosen, reason = _fastest(family, x, spatial_dims)
    if chosen != "reference":
        return False
    _tell(chosen, family, reason, x)
    return True


def _fastest(family: str, x: Tensor, spatial_dims: int) -> tuple[str, str]:
    """The name of a back end, and why it is that one."""
    native_reason = _refusal("native", family, x, spatial_dims)
    if native_reason is None:
        return "native", "it is compiled for this device"
    if x.device.type == "cpu":  # where Triton runs only in its interpreter, to be tested
        return "reference", f"native: {native_reason}"
    triton_reason = _unavailable_reason("triton") or _refusal("triton", family, x, spatial_dims)
    if triton_reason is None:
        return "triton", f"native: {native_reason}"
    return "reference", f"native: {native_reason}; triton: {triton_reason}"


def _tell(name: str, family: str, reason: str, x: Tensor) -> None:
    """Log what was chosen, and warn the first time that it is plain PyTorch where compiled ops would do:
    unsupported_reason says that they are not here only of tensors they would take.
    """
    global _warned
    if torch.compiler.is_compiling():  # either would break the graph
        return
    _log.debug("%s: %s (%s)", family, name, reason)
    if name != "reference" or _warned or x.device.type not in ("cpu", "cuda"):
        return
    unavailable = native.unavailable_reason(x.device.type)
    if unavailable is not None and reason.startswith(f"native: {unavailable}"):
        _warned = True
        # as a rule the level of who called a function of hybridops.functional
        warnings.warn(f"hybridops runs on plain PyTorch, which is slower: {reason}", UserWarning, stacklevel=4)


def _refusal(name: str, family: str, x: Tensor, spatial_dims: int) -> str | None:
    if (name, family) not in _MODULES:
        return _unavailable_reason(name) or f"it has no {family}"
    if name == "native":
        return native.unsupported_reason(family, x, spatial_dims)
    if name == "triton":
        return triton.unsupported_reason(family, x, spatial_dims)
    return None


def _unavailable_reason(name: str) -> str | None:
    if name == "native":
        return native.unavailable_reason()
    if name == "triton":
        return triton.unavailable_reason()
    return None


def _description(name: str) -> str:
    if name == "native":
        cuda = native.unavailable_reason("cuda")
        gpu = "CUDA C++ on a GPU" if cuda is None else f"not on a GPU: {cuda}"
        return f"compiled C++ on the CPU ({native.cpu_isa()}); {gpu}"
    if name == "triton":
        where = "in its interpreter on the CPU" if triton.INTERPRETED else "on CUDA"
        return "Triton {}.{} {}".format(*triton.version(), where)
    return "plain PyTorch on any device"


def _check_name(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    return name
