"""The compiled back end: C++ on the CPU, CUDA C++ on a GPU. csrc/library.cpp has its ops on one screen."""

from __future__ import annotations

from torch import Tensor

from hybridops.checks import DTYPES
from hybridops.contract import BackEnd
from hybridops.native import additive_attention, attention_decoder, conv_lstm, fakes, linear  # noqa: F401
from hybridops.native.library import OPS, call, cpu_isa, unavailable_reason

__all__ = ["BACK_END", "OPS", "call", "cpu_isa", "unavailable_reason", "unsupported_reason"]

DEVICES = ("cpu", "cuda")


def unsupported_reason(family: str, x: Tensor, spatial_dims: int) -> str | None:
    """None if the compiled ops take tensors like x, else what they do not take."""
    if x.device.type not in DEVICES:
        return f"the compiled ops run on the CPU and on CUDA, not on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"the compiled ops do not take {x.dtype}"
    if family == "conv_lstm" and spatial_dims > 2:
        return f"the compiled ConvLSTM takes 1 or 2 spatial dimensions, not {spatial_dims}"
    return unavailable_reason(x.device.type)  # last: only who would have the compiled ops hears that they are missing


def _description() -> str:
    cuda = unavailable_reason("cuda")
    gpu = "CUDA C++ on a GPU" if cuda is None else f"not on a GPU: {cuda}"
    return f"compiled C++ on the CPU ({cpu_isa()}); {gpu}"


BACK_END = BackEnd(
    name="native",
    families={
        "conv_lstm": conv_lstm,
        "additive_attention": additive_attention,
        "attention_decoder": attention_decoder,
    },
    priority=dict.fromkeys(DEVICES, 2),
    unavailable_reason=unavailable_reason,
    unsupported_reason=unsupported_reason,
    description=_description,
)
