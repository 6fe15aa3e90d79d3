"""How kernels are launched, and how functions that launch them become ops with fakes for torch.compile."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridops import flops
from hybridops.native.library import call

_library = torch.library.Library("hybridops_triton", "DEF")
OPS: list[torch._ops.OpOverloadPacket] = []


class Config(NamedTuple):
    """The sizes of a program's blocks, by name, and Triton's options."""

    blocks: dict[str, int]
    num_warps: int
    num_stages: int = 2
    # A thread has at most 255. To be given where ptxas would spill in order to fit more programs on a multiprocessor.
    max_registers: int | None = None


def launch(kernel: Any, grid: tuple[int, ...], config: Config, *arguments: Any, **constants: Any) -> None:
    """Launches on the current stream of the current device, which `op` has made that of the tensors.

    The grid is flattened to one axis, since the others of CUDA's three may not be longer than 65535 (CUDA C++
    Programming Guide, technical specifications).
    """
    kernel[(math.prod(grid),)](*arguments, **constants, **config.blocks, **options(config))


@triton.jit
def grid_position(rows, columns):
    """The program's indices in its grid (batch, rows, columns), which `launch` has flattened"""
    program = tl.program_id(0)
    return (program // (rows * columns)).to(tl.int64), program // columns % rows, program % columns


def options(config: Config) -> dict[str, Any]:
    """Triton's options. A product and a sum become one fused multiply-add, which is the default up to Triton 3.9."""
    chosen = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    return chosen if config.max_registers is None else chosen | {"maxnreg": config.max_registers}


def op(
    schema: str, fake: Callable[..., Any], flop_formula: Callable[..., int] | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Registers a function of plain tensors as torch.ops.hybridops_triton.<name>, and returns that op.

    A Library costs a third of what `torch.library.custom_op` does a call (3.5 µs and 8.3 measured on a CPU).
    """

    def register(function: Callable[..., Any]) -> Any:
        name = schema.split("(")[0]

        @functools.wraps(function)
        def on_its_device(*arguments: Any) -> Any:
            with _device_of(next(argument for argument in arguments if isinstance(argument, Tensor))):
                return function(*arguments)

        _library.define(schema)
        _library.impl(name, on_its_device, "CompositeExplicitAutograd")
        torch.library.register_fake(f"hybridops_triton::{name}", fake, lib=_library)
        OPS.append(getattr(torch.ops.hybridops_triton, name))
        if flop_formula is not None:
            flops.register(OPS[-1], flop_formula)
        return functools.partial(call, OPS[-1].default)

    return register


def _device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
