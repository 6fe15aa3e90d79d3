"""The Triton back end: whether it is available, and which tensors it supports. Kernels are imported only if it is.

They run on NVIDIA GPUs of compute capability 8.0 or newer. If TRITON_INTERPRET=1 is set before Python starts, they run
in Triton's interpreter on the CPU, which is for tests.
"""

from __future__ import annotations

import importlib.util
import os
from math import prod
from types import ModuleType

import torch
from torch import Tensor

from hybridops.checks import DTYPES
from hybridops.contract import BackEnd

# Of a step. Pixels are numbered in 32 bits, and up to a block (128, of the largest) past the last one.
MAX_PIXELS = 2**31 - 2**10
MIN_VERSION = (3, 6)  # what PyTorch 2.10 for CUDA requires; older ones have no matrix product in float64
INSTALL = "install it with `pip install triton` (Linux only)"
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")  # as Triton reads it


def _find_reason() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed: {INSTALL}"
    if not INTERPRETED and torch.version.cuda is None:
        return "this torch is built without CUDA, and TRITON_INTERPRET=1 is not set"
    if version() < MIN_VERSION:
        return "Triton {}.{} is too old, {}.{} or newer is needed: {}".format(*version(), *MIN_VERSION, INSTALL)
    return None


def version() -> tuple[int, ...]:
    """Triton's major and minor version."""
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])


_UNAVAILABLE = _find_reason()


def unavailable_reason(device_type: str | None = None) -> str | None:
    """None if the kernels can be imported, and run on some device; else why not."""
    return _UNAVAILABLE


def unsupported_reason(family: str, x: Tensor, spatial_dims: int) -> str | None:
    """None if the kernels support tensors like x, else what they do not support."""
    device = "cpu" if INTERPRETED else "cuda"
    if x.device.type != device:
        where = "in Triton's interpreter on the CPU" if INTERPRETED else "on CUDA"
        return f"the Triton kernels run {where} here, not on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"the Triton kernels do not take {x.dtype}"
    if not INTERPRETED and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "the Triton kernels need compute capability 8.0 or newer"
    if family == "conv_lstm" and spatial_dims > 2:
        return f"the Triton ConvLSTM takes 1 or 2 spatial dimensions, not {spatial_dims}"
    if family == "conv_lstm" and prod((x.shape[0], *x.shape[-spatial_dims:])) > MAX_PIXELS:
        return f"the Triton ConvLSTM takes up to {MAX_PIXELS} pixels a step, not {tuple(x.shape)}"
    return None


def _families() -> dict[str, ModuleType]:
    if unavailable_reason() is not None:
        return {}
    from hybridops.triton import additive_attention, attention_decoder, conv_lstm

    return {
        "conv_lstm": conv_lstm, "additive_attention": additive_attention, "attention_decoder": attention_decoder,
    }  # fmt: skip


def _description() -> str:
    return "Triton {}.{} {}".format(*version(), "in its interpreter on the CPU" if INTERPRETED else "on CUDA")


BACK_END = BackEnd(
    name="triton",
    families=_families(),
    priority={"cuda": 1},
    unavailable_reason=unavailable_reason,
    unsupported_reason=unsupported_reason,
    description=_description,
)
