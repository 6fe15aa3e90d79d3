"""A convolutional recurrence over time, forward and backward, written once; a cell is its pointwise half.

    of_x = W_ih * x_t + b_ih        of_h = W_hh * h_{t-1} + b_hh        state_t, gates_t = cell(of_x, of_h, state_{t-1})

The state is (h,), or (h, c) with a cell state in the accumulation dtype. Images stand channels-last (layouts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridops.checks import accumulation_dtype

_CONV = {2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}

State = tuple[Tensor, ...]


class Cell(NamedTuple):
    forward: Callable[[Tensor, Tensor, State], tuple[State, Tensor]]  # of_x, of_h, state -> state, gates
    # gradient of the state, gates, state before, state after
    # -> gradients of of_x and of of_h, and of the state before but for what goes by W_hh
    backward: Callable[[State, Tensor, State, State], tuple[Tensor, Tensor, State]]


def forward(
    cell: Cell,
    x: Tensor,  # (T,B,S*,C)
    state: State,  # (B,S*,H)
    weights: tuple[Tensor, Tensor],  # (GH,C,K*), (GH,H,K*)
    biases: tuple[Tensor | None, Tensor | None],  # (GH)
) -> tuple[list[State], list[Tensor]]:
    """The state after each step, h in x's dtype, and the gates in the accumulation dtype."""
    states, gates = [], []
    for x_t in x.unbind(0):
        state, gates_t = cell.forward(*preactivations(x_t, state[0], weights, biases), state)
        state = (state[0].to(x.dtype), *state[1:])
        states.append(state)
        gates.append(gates_t)
    return states, gates


def backward(
    cell: Cell,
    grad_hs: Tensor | None,  # (T,B,S*,H)
    grad_state: State,  # of the last state
    gates: Tensor,  # (T,B,S*,GH)
    states: Sequence[State],  # before the first step, and after each
    w_hh: Tensor,  # (GH,H,K*)
    need_dh0: bool,
) -> tuple[list[Tensor], list[Tensor], State]:
    """Gradients of of_x and of_h for each step, in the gates' dtype, and of the state before the first."""
    da_x, da_h = [], []
    acc = accumulation_dtype(gates.dtype)
    for t in reversed(range(len(gates))):
        if grad_hs is not None:
            grad_state = (grad_state[0] + grad_hs[t].to(acc), *grad_state[1:])
        of_x, of_h, grad_state = cell.backward(grad_state, gates[t].to(acc), states[t], states[t + 1])
        da_x.append(of_x.to(gates.dtype))
        da_h.append(of_h.to(gates.dtype))
        if t > 0 or need_dh0:
            grad_state = (grad_state[0] + convolve_transposed(of_h, w_hh.to(acc)), *grad_state[1:])
    return da_x[::-1], da_h[::-1], grad_state


def preactivations(
    x: Tensor,  # (B,S*,C)
    h: Tensor,  # (B,S*,H)
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """of_x and of_h in the accumulation dtype.

    In bfloat16, PyTorch's own convolution takes half the time of one in float32, and is rounded as the plain module's;
    but that of three spatial dimensions has wrong gradients (see `_convolution_backward`).
    """
    acc = accumulation_dtype(x.dtype)
    inner = x.dtype if x.dtype == torch.bfloat16 and not torch.is_grad_enabled() else acc
    of_x, of_h = (
        convolve(image.to(inner), weight.to(inner), None if bias is None else bias.to(inner)).to(acc)
        for image, weight, bias in zip((x, h), weights, biases, strict=True)
    )
    return of_x, of_h


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B,S*,C) -> (B,S*,outputs)"""
    kernel = weight.shape[2:]
    return _CONV[len(kernel)](x.movedim(-1, 1), weight, bias, padding=same_padding(kernel)).movedim(1, -1)


def convolve_transposed(x: Tensor, weight: Tensor) -> Tensor:
    kernel = weight.shape[2:]
    return _CONV_TRANSPOSE[len(kernel)](x.movedim(-1, 1), weight, padding=same_padding(kernel)).movedim(1, -1)


def same_padding(kernel_size: Sequence[int]) -> tuple[int, ...]:
    return tuple(size // 2 for size in kernel_size)


def input_gradient(
    da: Tensor,  # (T,B,S*,GH)
    weight: Tensor,  # (GH,C,K*)
    dx: Tensor,  # (T,B,S*,C)
) -> None:
    """Writes dx = weightᵀ * da, the gradient of x in weight * x."""
    of_x = _convolution_backward(da, dx, weight, 0)
    dx.copy_(of_x.movedim(1, -1).unflatten(0, da.shape[:2]))


def weight_gradients(
    da: Tensor,  # (T,B,S*,GH)
    factors: Sequence[Tensor],  # x (T,B,S*,C); one or two
    dweights: Sequence[Tensor],  # (GH,C,K*) acc
) -> None:
    """Adds dweight[o,c,k] += Σ_{t,b,s} da[t,b,s,o] x[t,b,s+k,c], for each x: of the weight in weight * x."""
    for x, dweight in zip(factors, dweights, strict=True):
        dweight += _convolution_backward(da, x, da.new_empty(dweight.shape), 1)


def _convolution_backward(da: Tensor, x: Tensor, weight: Tensor, factor: int) -> Tensor:
    """The gradient of x (factor 0) or of the weight (1), in the accumulation dtype: that of three spatial dimensions in
    bfloat16 is garbage in PyTorch 2.13 on the CPU.
    """
    kernel, acc = weight.shape[2:], accumulation_dtype(da.dtype)
    one, zero = [1] * len(kernel), [0] * len(kernel)
    da, x = (image.flatten(0, 1).movedim(-1, 1).to(acc) for image in (da, x))
    wanted = [n == factor for n in range(3)]
    return torch.ops.aten.convolution_backward(
        da, x, weight.to(acc), None, one, same_padding(kernel), one, False, zero, 1, wanted
    )[factor]


def stack_steps(steps: Sequence[Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
    """The steps, each of that shape, along a new first dimension; there may be none."""
    return torch.stack(list(steps)) if steps else like.new_empty((0, *shape))
