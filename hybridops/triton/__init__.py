"""The Triton back end: whether it is here, and what it takes. The kernels are imported where it is, and only there.

They run on NVIDIA GPUs from compute capability 8.0 on; or, if TRITON_INTERPRET=1 is set before Python starts, in
Triton's interpreter on the CPU, which is for testing them.
"""

from __future__ import annotations

import importlib.util
import os
from math import prod

import torch
from torch import Tensor

MAX_PIXELS = 2**31 - 2**10  # of a step, and a block more: they are counted through in 32 bits
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MIN_VERSION = (3, 6)  # of PyTorch 2.10 on CUDA; older ones multiply no float64
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


def unavailable_reason() -> str | None:
    """None where the kernels can be imported and run, at least on some device; else why not."""
    return _UNAVAILABLE


def unsupported_reason(family: str, x: Tensor, spatial_dims: int) -> str | None:
    """None if the kernels take tensors like x, else what they do not take."""
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
