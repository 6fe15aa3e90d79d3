"""Does every back end on this machine compute the right numbers? Forward and backward, in a few seconds.

Each is held to the plain module in float64 under autograd, from the same weights and inputs. An error is the largest
difference in a tensor by the largest number in it. Compiled ops that are not here are named, and not called right;
the status is 0 nevertheless, as plain PyTorch works, unless HYBRIDOPS_REQUIRE_NATIVE=1 insists on hybridops._C.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridops import backends, fuse, native, reference, triton, use_backend

# Rounding of sums of some hundred terms, forward and back through a few steps: about a hundred ulp. The plain modules
# have errors of 1e-7 and 1e-16 to 1e-15 here.
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-13}
# In half precision everything between the ops of the plain module is rounded too: it is its error that counts.
HALF_MARGIN = 2.0

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    family: str
    spatial_dims: int
    module: nn.Module
    inputs: Tensors
    run: Callable[..., Tensors]  # module, *inputs -> outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    wrong = 0
    print(f"{'device':8}{'back end':11}{'family':20}{'dtype':10}{'forward':>9}{'backward':>10}{'allowed':>9}")
    for case in (_conv_lstm(), _additive_attention(), _attention_decoder()):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for device, name in _places():
                row = f"{device:8}{name:11}{case.family:20}{str(dtype).removeprefix('torch.'):10}"
                refusal = _refusal(case, name, device, dtype)
                if refusal:
                    print(f"{row}{refusal}")
                    continue
                forward, backward, allowed = _errors(case, name, device, dtype)
                right = max(forward, backward) <= allowed  # false for NaN too
                wrong += not right
                print(f"{row}{forward:9.1e}{backward:10.1e}{allowed:9.1e}  {'ok' if right else 'WRONG'}")
    absent = {device: native.unavailable_reason(device) for device in _devices() if native.unavailable_reason(device)}
    for device, reason in absent.items():
        print(f"native on {device}: not built here, because {reason}")
    if wrong:
        print(f"{wrong} wrong")
    elif absent:
        print(f"nothing is wrong, but the compiled ops were not checked on {' and '.join(absent)}")
    else:
        print("all right")
    insisted = "cpu" in absent and os.environ.get("HYBRIDOPS_REQUIRE_NATIVE") == "1"
    return 1 if wrong or insisted else 0


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _places() -> Iterator[tuple[str, str]]:
    """Every device with every back end that runs on it here."""
    for device in _devices():
        yield device, "reference"
        if native.unavailable_reason(device) is None:
            yield device, "native"
        if triton.unavailable_reason() is None and (device == "cpu") == triton.INTERPRETED:
            yield device, "triton"


def _refusal(case: Case, name: str, device: str, dtype: torch.dtype) -> str | None:
    try:
        backends.choose(case.family, name, torch.empty(0, device=device, dtype=dtype), case.spatial_dims)
    except RuntimeError as error:
        return str(error)
    return None


def _errors(case: Case, name: str, device: str, dtype: torch.dtype) -> tuple[float, float, float]:
    """The errors of the outputs and of the gradients, and what either may be."""
    rounded = copy.deepcopy(case.module).to(dtype), tuple(x.to(dtype) for x in case.inputs)
    expected = _outputs_and_gradients(case, *rounded, "cpu", torch.float64)
    with use_backend(name):
        forward, backward = map(
            _error, _outputs_and_gradients(case, fuse(copy.deepcopy(rounded[0])), rounded[1], device, dtype), expected
        )
    if dtype in BOUNDS:
        return forward, backward, BOUNDS[dtype]
    plain = map(_error, _outputs_and_gradients(case, *rounded, device, dtype), expected)
    return forward, backward, HALF_MARGIN * max(plain)


def _outputs_and_gradients(
    case: Case, module: nn.Module, inputs: Tensors, device: str, dtype: torch.dtype
) -> tuple[Tensors, Tensors]:
    module = copy.deepcopy(module).to(device, dtype)
    inputs = tuple(x.to(device, dtype).requires_grad_() for x in inputs)
    outputs = case.run(module, *inputs)
    # A gradient that is a different number at every position
    gradients = [torch.linspace(-1, 1, out.numel()).sin().view_as(out).to(out) for out in outputs]
    leaves = (*inputs, *module.parameters())
    return outputs, torch.autograd.grad(outputs, leaves, gradients)


def _error(actual: Tensors, expected: Tensors) -> float:
    """NaN where anything is NaN."""
    pairs = zip(actual, expected, strict=True)
    return torch.stack([(a.cpu().double() - e).abs().max() / e.abs().max() for a, e in pairs]).max().item()


def _conv_lstm() -> Case:
    """Sizes that divide no vector or tile: two layers, a 3×5 kernel, peepholes."""
    torch.manual_seed(0)
    module = reference.ConvLSTM(3, 7, (3, 5), 2, peephole="channel")
    for name, parameter in module.named_parameters():
        if name.endswith("peephole"):
            nn.init.normal_(parameter)  # zeros at first, which would prove nothing

    def run(module: nn.Module, x: Tensor) -> Tensors:
        output, (h_n, c_n) = module(x)
        return output, h_n, c_n

    return Case("conv_lstm", 2, module, (torch.randn(2, 4, 3, 9, 11),), run)


def _additive_attention() -> Case:
    """Padded keys, and a row that may attend nothing at all."""
    torch.manual_seed(0)
    mask = torch.arange(13) < torch.tensor([13, 5, 0])[:, None]

    def run(module: nn.Module, query: Tensor, key: Tensor) -> Tensors:
        context, weights = module(query, key, mask=mask.to(query.device))
        return context, weights

    inputs = torch.randn(3, 6, 10), torch.randn(3, 13, 12)
    return Case("additive_attention", 0, reference.AdditiveAttention(10, 12, 37), inputs, run)


def _attention_decoder() -> Case:
    """A padded memory, a row that may attend nothing, sentences that end early; with the context gate."""
    torch.manual_seed(0)
    mask = torch.arange(13) < torch.tensor([13, 5, 0])[:, None]
    lengths = torch.tensor([6, 2, 4])

    def run(module: nn.Module, x: Tensor, memory: Tensor) -> Tensors:
        where = x.device
        output, states, context, weights = module(
            x, memory, mask=mask.to(where), lengths=lengths.to(where), need_weights=True
        )
        return output, *states, context, weights

    module = reference.AttentionDecoder(7, 21, 10, 37, context_gate=True)
    return Case("attention_decoder", 0, module, (torch.randn(3, 6, 7), torch.randn(3, 13, 10)), run)
