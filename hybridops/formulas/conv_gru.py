"""The explicit formulas of the ConvGRU (Ballas et al. 2016, https://arxiv.org/abs/1511.06432), forward and backward,
with the reset gate after the convolution, as `nn.GRU` has it: one convolution of h then serves all gates.

    u_t = W_ih * x_t + b_ih        v_t = W_hh * h_{t-1} + b_hh        (* 'same' convolution; 3H channels of r, z, n)
    r = sigmoid(u_r + v_r)         z = sigmoid(u_z + v_z)             n = tanh(u_n + r v_n)
    h_t = (1 - z) n + z h_{t-1}

and backward, with dh = grad_hs[t] + (dh from t+1),

    dn = dh (1-z) (1-n²)           dz = dh (h_{t-1} - n) z(1-z)       dr = dn v_n r(1-r)
    du = (dr, dz, dn)              dv = (dr, dz, dn r)                dh_{t-1} = dh z + W_hhᵀ * dv

No back end has it yet: these are the equations that one will be held to. Images are as in layouts.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.formulas import recurrence
from hybridops.formulas.recurrence import Cell, State, stack_steps


class ConvGRUInputs(NamedTuple):
    x: Tensor  # (T,B,S*,C)
    h0: Tensor | None  # (B,S*,H), None = zeros
    w_ih: Tensor  # (3H,C,K*), rows in the gate order r, z, n
    w_hh: Tensor  # (3H,H,K*)
    b_ih: Tensor | None  # (3H)
    b_hh: Tensor | None  # (3H)


def conv_gru_forward(inputs: ConvGRUInputs) -> tuple[Tensor, Tensor]:
    """hs (T,B,S*,H), and r, z, n, v_n of every step (T,B,S*,4H) in the accumulation dtype, for the backward."""
    x, h0, w_ih, w_hh, b_ih, b_hh = inputs
    shape = (*x.shape[1:-1], w_hh.shape[1])
    h = x.new_zeros(shape) if h0 is None else h0
    steps, gates = recurrence.forward(GRU_CELL, x, (h,), (w_ih, w_hh), (b_ih, b_hh))
    saved = stack_steps(gates, (*shape[:-1], 4 * shape[-1]), x.new_empty(0, dtype=accumulation_dtype(x.dtype)))
    return stack_steps([state[0] for state in steps], shape, x), saved


def conv_gru_backward(
    grad_hs: Tensor | None,  # (T,B,S*,H)
    grad_hn: Tensor | None,  # (B,S*,H)
    inputs: ConvGRUInputs,
    hs: Tensor,  # (T,B,S*,H)
    gates: Tensor,  # (T,B,S*,4H)
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of u and v, (T,B,S*,3H) each, and of h0."""
    zeros = gates.new_zeros(hs.shape[1:])
    grad_state = (zeros if grad_hn is None else grad_hn.to(gates.dtype),)
    states = [(zeros if inputs.h0 is None else inputs.h0,), *((h,) for h in hs)]
    du, dv, (dh0,) = recurrence.backward(GRU_CELL, grad_hs, grad_state, gates, states, inputs.w_hh, True)
    shape = (*hs.shape[1:-1], 3 * hs.shape[-1])
    return stack_steps(du, shape, gates), stack_steps(dv, shape, gates), dh0


def _forward(u: Tensor, v: Tensor, before: State) -> tuple[State, Tensor]:
    (u_r, u_z, u_n), (v_r, v_z, v_n) = u.chunk(3, dim=-1), v.chunk(3, dim=-1)
    r, z = torch.sigmoid(u_r + v_r), torch.sigmoid(u_z + v_z)
    n = torch.tanh(u_n + r * v_n)
    return ((1 - z) * n + z * before[0],), torch.cat([r, z, n, v_n], dim=-1)


def _backward(grads: State, gates: Tensor, before: State, after: State) -> tuple[Tensor, Tensor, State]:
    (dh,), (r, z, n, v_n) = grads, gates.chunk(4, dim=-1)
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (before[0] - n) * z * (1 - z)
    dr = dn * v_n * r * (1 - r)
    return torch.cat([dr, dz, dn], dim=-1), torch.cat([dr, dz, dn * r], dim=-1), (dh * z,)


GRU_CELL = Cell(_forward, _backward)
