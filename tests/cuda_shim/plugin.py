"""A pytest plugin: for this process the native back end on the CPU is csrc/cuda, run by shim.h."""

from __future__ import annotations

import os

import torch

import hybridops  # its own ops are found first, and then replaced

torch.ops.load_library(os.environ["HYBRIDOPS_SHIM"])
torch.ops.hybridops = torch.ops.hybridops_shim
hybridops.native.attention_decoder.pack_weights = lambda *_: None
for family in (hybridops.native.additive_attention, hybridops.native.attention_decoder):
    family.prepare_keys = hybridops.formulas.additive_attention.prepare_keys
