"""A pytest plugin: the native back end's ops are those of csrc/cuda, run on the CPU by shim.h, for the whole process."""

from __future__ import annotations

import os

import torch

import hybridops  # noqa: F401 (first its own ops, whose place is then taken)

torch.ops.load_library(os.environ["HYBRIDOPS_SHIM"])
torch.ops.hybridops = torch.ops.hybridops_shim
