"""ConvLSTM recurrences in compiled code: conv_lstm.* in csrc/cpu and csrc/cuda. Contract: contract.ConvLSTMImpl."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.contract import ConvLSTMInputs, ConvLSTMStates, Save, StateGradients
from hybridops.native.library import call

# PyTorch's own convolution is then off 2 to 5 times as much as on AVX-512. Of other processors it is not known.
_PLAIN_SUMS_ON_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"


def conv_lstm_forward(inputs: ConvLSTMInputs, save: Save) -> ConvLSTMStates:
    hs, cs, gates = call(
        torch.ops.hybridops.conv_lstm_forward.default, *_dense(inputs), int(save), *_precision(inputs.x)
    )
    return ConvLSTMStates(hs, cs, gates if save == Save.GATES else None)


def conv_lstm_backward(
    grads: StateGradients, inputs: ConvLSTMInputs, states: ConvLSTMStates, need_dh0: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    hs, cs, gates = states
    grads = _in_their_dtypes(grads, inputs.x.dtype, cs.dtype)
    inputs = _dense(inputs)
    options = (need_dh0, *_precision(inputs.x))
    if gates is None:
        op = torch.ops.hybridops.conv_lstm_backward_from_states.default
        x, h0, c0, *weights = inputs
        da, dh0, dc0 = call(op, *grads, x, h0, hs.contiguous(), cs.contiguous(), c0, *weights, *options)
    else:
        op = torch.ops.hybridops.conv_lstm_backward.default
        kept = (gates.contiguous(), cs.contiguous(), inputs.c0, inputs.w_hh, inputs.peephole)
        da, dh0, dc0 = call(op, *grads, *kept, *options)
    return da, dh0 if need_dh0 else None, dc0


def _dense(inputs: ConvLSTMInputs) -> ConvLSTMInputs:
    """What the ops want in one piece, and what in the accumulation dtype."""
    x, h0, c0, w_ih, w_hh, bias, peephole = inputs
    acc = accumulation_dtype(x.dtype)
    h0 = None if h0 is None else h0.contiguous()
    c0, bias, peephole = (None if t is None else t.to(acc).contiguous() for t in (c0, bias, peephole))
    return ConvLSTMInputs(x, h0, c0, w_ih, w_hh, bias, peephole)


def _in_their_dtypes(grads: StateGradients, dtype: torch.dtype, acc: torch.dtype) -> StateGradients:
    grad_hs = None if grads.hs is None else grads.hs.to(dtype)
    return StateGradients(grad_hs, *(None if t is None else t.to(acc).contiguous() for t in (grads.h_n, grads.c_n)))


def input_gradient(da: Tensor, weight: Tensor, dx: Tensor) -> None:
    """PyTorch's convolution_backward would copy its channels-last arguments first."""
    call(torch.ops.hybridops.conv_input_gradient.default, da.contiguous(), weight, *_precision(da), dx)


def weight_gradients(da: Tensor, factors: Sequence[Tensor], dweights: Sequence[Tensor]) -> None:
    """Reading da once."""
    (x, h), (dw_x, dw_h) = ((*each, None)[:2] for each in (factors, dweights))
    call(torch.ops.hybridops.conv_weight_gradient.default, da.contiguous(), x, h, *_precision(da), dw_x, dw_h)


def _precision(x: Tensor) -> tuple[bool, int]:
    return precision(x.dtype, x.device.type)


def precision(dtype: torch.dtype, device_type: str = "cpu") -> tuple[bool, int]:
    """What the ops take of it: whether float32 products may lose bits, as on a GPU's tensor cores; and, on the CPU
    alone, the outputs of the largest tiles that convolutions may be cut into, 0 = none: see docs/numerics.md.

    Tiles of 4, and of 8 where PyTorch itself adds up as it does on AVX2, are about as exact as its float32 convolution.
    Those of 16 lose a bit, and wait for torch.set_float32_matmul_precision("high"); in half precision that is far below
    the last bit.
    """
    reduced = dtype != torch.float32 or _reduced_precision(device_type)
    if reduced:
        return reduced, 16
    return reduced, 8 if _PLAIN_SUMS_ON_AVX2 else 4


def _reduced_precision(device_type: str) -> bool:
    """Whether float32 products may lose bits there. torch.get_float32_matmul_precision() would be the way to ask,
    but raises where one device's precision was set on its own, and breaks a graph of torch.compile. So does what is
    asked instead; a graph asks for what torch.compile guards on, which the setting for all devices sets too.
    """
    if torch.compiler.is_compiling():
        return torch.backends.cuda.matmul.allow_tf32
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("tf32", "bf16")
