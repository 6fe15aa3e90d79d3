"""What the environment decides, and how torch.compile is called.

HYBRIDOPS_BENCH_SMOKE=1 takes tiny workloads, which show that everything runs; HYBRIDOPS_BENCH_DEVICE (default cpu)
names the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SMOKE = os.environ.get("HYBRIDOPS_BENCH_SMOKE") == "1"
DEVICE = os.environ.get("HYBRIDOPS_BENCH_DEVICE", "cpu")

Place = dict[str, torch.dtype | str]  # the dtype and device of a job

# In a smoke run everything is traced and nothing compiled, which would take half a minute.
_COMPILE = {"dynamic": False, "backend": "aot_eager" if SMOKE else "inductor"}
if DEVICE.startswith("cuda") and not SMOKE:
    # CUDA graphs would write a step's state over the one before, which the next step is still to read.
    _COMPILE["mode"] = "max-autotune-no-cudagraphs"


def compile_in_place(module: nn.Module) -> None:
    module.compile(**_COMPILE)


def compiled_function(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, **_COMPILE)
