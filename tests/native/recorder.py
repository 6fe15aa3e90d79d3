"""Which ops of a back end the public functions call, and with what."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import hybridops
from hybridops import FusedAdditiveAttention
from hybridops.native import linear
from hybridops.native.attention_decoder import pack_weights
from tests.decoder_problems import CELLS, QUERIES, decoder_inputs, fused_decoder
from tests.problems import attention_inputs, cast, conv_lstm_inputs, fused_attention, fused_conv_lstm, with_gradients

NO_KERNEL = {"hybridops::cpu_isa"}  # takes no tensor

Call = tuple[Any, tuple[Any, ...]]  # the op and its arguments, none of them by keyword


class Recorder(TorchDispatchMode):
    """The calls of ops of a library, with their arguments."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self.library = library
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == self.library and func.name() not in NO_KERNEL:
            self.calls.append((func, tree_map_only(torch.Tensor, torch.Tensor.detach, args)))
        return func(*args, **(kwargs or {}))


def record(
    family: str, sizes: dict[str, Any], dtype: torch.dtype = torch.float32, backend: str = "native"
) -> list[Call]:
    """What the public functions call in training and in inference."""
    library = {"native": "hybridops", "triton": "hybridops_triton"}[backend]
    with hybridops.use_backend(backend), Recorder(library) as recorder:
        if family == "conv_lstm":
            inputs = cast(conv_lstm_inputs(**sizes), dtype)
            for save in ("gates", "recompute"):
                with_gradients(fused_conv_lstm, inputs, save=save)
            fused_conv_lstm(**inputs)
        elif family == "attention_decoder":
            for cell in CELLS:
                for query in QUERIES:
                    _run_decoder(cell, query, sizes, dtype, packs=backend == "native")
        else:
            inputs = cast(attention_inputs(**sizes), dtype)
            mask = torch.ones(inputs["key"].shape[:2], dtype=torch.bool)
            for options in ({}, {"mask": mask}, {"dropout_p": 0.5}, {"activation": "leaky_relu"}):
                with_gradients(fused_attention, inputs, **options)
            width = inputs["key"].shape[2]
            module = FusedAdditiveAttention(width, width, 5, dtype=dtype)
            module(inputs["query"], module.prepare(inputs["key"]))
            with torch.no_grad():  # a step of decoding
                module(inputs["query"], module.prepare(inputs["key"]))
    return recorder.calls


def _run_decoder(cell: str, query: str, sizes: dict[str, Any], dtype: torch.dtype, packs: bool) -> None:
    inputs = cast(decoder_inputs(cell=cell, query=query, **sizes), dtype)
    generator = torch.Generator().manual_seed(0)
    batch, steps, _ = inputs["x"].shape
    kind = {"cell": cell, "query": query}
    selected = {
        "mask": torch.rand(inputs["key"].shape[:2], generator=generator) > 0.3,
        "lengths": torch.randint(steps + 1, (batch,), generator=generator),
    }
    for options in ({}, {"activation": "relu"}, {**selected, "dropout_p": 0.5}):
        with_gradients(fused_decoder, inputs, **kind, **options)
    fused_decoder(**inputs, **kind)
    if not packs:
        return
    columns = inputs["x"].shape[2]
    weights = inputs["weight_q"], inputs["weight_ih"][:, columns:], inputs["weight_hh"], inputs["weight_gate"]
    pack_weights(*weights, cell)
    outputs = len(inputs["weight_hh"])
    packed = linear.pack(inputs["weight_hh"])
    linear.linear(inputs["weight_q"], packed, None, outputs)
    linear.likeliest(inputs["weight_q"], packed, None, outputs, 1)
