"""The compiled libraries: loading them, and calling their ops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hybridops import flops

OPS = (
    "conv_lstm_forward", "conv_lstm_backward", "conv_lstm_backward_from_states",
    "conv_input_gradient", "conv_weight_gradient",
    "additive_prepare_keys", "additive_scores_forward", "additive_attention_forward",
    "additive_attention_step", "additive_scores_backward",
    "attention_decoder_pack", "attention_decoder_forward", "attention_decoder_backward",
    "linear_pack", "linear_packed", "linear_likeliest", "cpu_isa",
)  # fmt: skip
BUILD = "build it with `pip install .` where torch is installed, or in place with `python setup.py build_ext --inplace`"


def _load(name: str) -> str | None:
    """Load the library of that name; None, or why it could not be."""
    folder = Path(__file__).parent.parent
    found = [path for pattern in (f"{name}.*so", f"{name}.*pyd") for path in sorted(folder.glob(pattern))]
    if not found:
        left_out = folder / "left_out.txt"  # by setup.py, in an installed package
        because = f" ({left_out.read_text()})" if name == "_C" and left_out.exists() else ""
        return f"hybridops.{name} is not compiled{because}: {BUILD}"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"{found[0]} does not load ({error.__cause__ or error}): {BUILD}"
    if not all(hasattr(torch.ops.hybridops, op) for op in OPS):
        return f"{found[0]} was compiled from another version: {BUILD}"
    if name == "_C":
        for op, formula in flops.OPS.items():
            flops.register(getattr(torch.ops.hybridops, op), formula)
    return None


def _load_cuda() -> str | None:
    if torch.version.cuda is None:  # it could not load: its symbols are in libtorch_cuda
        return "this torch is built without CUDA"
    return _unavailable["cpu"] or _load("_C_cuda")  # the ops are defined in _C


# By device type: None where the compiled ops are here, else why not.
_unavailable: dict[str, str | None] = {"cpu": _load("_C")}
_unavailable["cuda"] = _load_cuda()


def unavailable_reason(device_type: str | None = None) -> str | None:
    """None where the compiled ops are here for that device (None: for any); else why not. For none are they without
    the CPU's.
    """
    return _unavailable[device_type or "cpu"]


def call(op: torch._ops.OpOverload, *args: Any) -> Any:
    """The op, for those who see to its gradients themselves. Its own derivative (autograd/raw_ops.py), in Python, is
    passed by, since that would take longer than the smallest calls; not in a graph of torch.compile, nor where one
    might be asked for.
    """
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op._op(*args)  # as op() does, a call later


def cpu_isa() -> str:
    """The instruction set the CPU kernels run on; the environment variable HYBRIDOPS_CPU_ISA can lower it."""
    return ("portable", "avx2", "avx512", "avx512_bf16", "amx_bf16")[torch.ops.hybridops.cpu_isa()]
