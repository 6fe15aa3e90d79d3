"""The explicit formulas of the ConvLSTM (Shi et al. 2015, https://arxiv.org/abs/1506.04214), forward and backward.

    a_t = W_ih * x_t + W_hh * h_{t-1} + b     (* is convolution with 'same' zero padding; 4H channels a_f a_i a_g a_o)
    f = sigmoid(a_f + p_f c_{t-1})     i = sigmoid(a_i + p_i c_{t-1})     g = tanh(a_g)
    c_t = f c_{t-1} + i g              o = sigmoid(a_o + p_o c_t)         h_t = o tanh(c_t)

and backward, with dh = grad_hs[t] + (dh from t+1) and dc carried,

    da_o = dh tanh(c_t) o(1-o)          dc += dh o (1 - tanh²(c_t)) + p_o da_o
    da_f = dc c_{t-1} f(1-f)            da_i = dc g i(1-i)           da_g = dc i (1-g²)
    dh_{t-1} = W_hhᵀ * da_t             dc_{t-1} = dc f + p_f da_f + p_i da_i

Symbols: B batch, T time, C input channels, H hidden channels, S* the spatial sizes, K* the kernel. The contract of the
functions is that of contract.ConvLSTMImpl.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.contract import ConvLSTMInputs, ConvLSTMStates, Save, StateGradients
from hybridops.formulas import recurrence
from hybridops.formulas.recurrence import Cell, State, input_gradient, preactivations, stack_steps, weight_gradients

__all__ = ["conv_lstm_backward", "conv_lstm_forward", "gates_from_states", "input_gradient", "weight_gradients"]


def conv_lstm_forward(inputs: ConvLSTMInputs, save: Save) -> ConvLSTMStates:
    x, h0, c0, w_ih, w_hh, bias, peephole = inputs
    acc, shape = accumulation_dtype(x.dtype), (*x.shape[1:-1], w_hh.shape[1])
    h = x.new_zeros(shape) if h0 is None else h0
    c = x.new_zeros(shape, dtype=acc) if c0 is None else c0
    steps, gates = recurrence.forward(lstm_cell(peephole, acc), x, (h, c), (w_ih, w_hh), (bias, None))

    hs, cs = ([state[n] for state in steps] for n in (0, 1))
    return ConvLSTMStates(
        stack_steps(hs, shape, x),
        stack_steps(cs, shape, c) if save != Save.NOTHING else (cs or [c])[-1][None],
        stack_steps(gates, (*shape[:-1], 4 * shape[-1]), c).to(x.dtype) if save == Save.GATES else None,
    )


def conv_lstm_backward(
    grads: StateGradients, inputs: ConvLSTMInputs, states: ConvLSTMStates, need_dh0: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    cs, gates = states.cs, gates_from_states(inputs, states) if states.gates is None else states.gates
    zeros, acc = cs.new_zeros(cs.shape[1:]), cs.dtype
    grad_state = tuple(zeros if grad is None else grad.to(acc) for grad in (grads.h_n, grads.c_n))
    first = tuple(zeros if state is None else state for state in (inputs.h0, inputs.c0))
    da, _, (dh0, dc0) = recurrence.backward(
        lstm_cell(inputs.peephole, acc), grads.hs, grad_state, gates, [first, *zip(states.hs, cs, strict=True)],
        inputs.w_hh, need_dh0,
    )  # fmt: skip
    return stack_steps(da, gates.shape[1:], gates), dh0 if need_dh0 else None, dc0


def lstm_cell(peephole: Tensor | None, acc: torch.dtype) -> Cell:
    p_f, p_i, p_o = (None,) * 3 if peephole is None else peephole.to(acc).unbind(0)

    def forward(of_x: Tensor, of_h: Tensor, before: State) -> tuple[State, Tensor]:
        a_f, a_i, a_g, a_o = (of_x + of_h).chunk(4, dim=-1)
        f = torch.sigmoid(add_peephole(a_f, p_f, before[1]))
        i = torch.sigmoid(add_peephole(a_i, p_i, before[1]))
        g = torch.tanh(a_g)
        c = f * before[1] + i * g
        o = torch.sigmoid(add_peephole(a_o, p_o, c))
        return (o * torch.tanh(c), c), torch.cat([f, i, g, o], dim=-1)

    def backward(grads: State, gates: Tensor, before: State, after: State) -> tuple[Tensor, Tensor, State]:
        (dh, dc), (f, i, g, o) = grads, gates.chunk(4, dim=-1)
        c_before, tanh_c = before[1], torch.tanh(after[1])
        da_o = dh * tanh_c * o * (1 - o)
        dc = add_peephole(dc + dh * o * (1 - tanh_c * tanh_c), p_o, da_o)
        da_f = dc * c_before * f * (1 - f)
        da_i = dc * g * i * (1 - i)
        da_g = dc * i * (1 - g * g)
        da = torch.cat([da_f, da_i, da_g, da_o], dim=-1)
        dc = add_peephole(add_peephole(dc * f, p_f, da_f), p_i, da_i)
        return da, da, (torch.zeros_like(dh), dc)

    return Cell(forward, backward)


def gates_from_states(inputs: ConvLSTMInputs, states: ConvLSTMStates) -> Tensor:
    """The gates (T,B,S*,4H) that `conv_lstm_forward` would save. With every state known, no recurrence is left in
    them: they come back from one convolution over all T·B images.
    """
    x, h0, c0, w_ih, w_hh, bias, peephole = inputs
    before = (one_step_later(first, steps) for first, steps in ((h0, states.hs), (c0, states.cs)))
    x_t, h, c = (t.flatten(0, 1) for t in (x, *before))
    a = preactivations(x_t, h, (w_ih, w_hh), (bias, None))
    _, gates = lstm_cell(peephole, states.cs.dtype).forward(*a, (h, c))
    return gates.to(x.dtype).unflatten(0, states.hs.shape[:2])


def one_step_later(first: Tensor | None, states: Tensor) -> Tensor:
    """The state before each step."""
    first = torch.zeros_like(states[0]) if first is None else first
    return torch.cat([first[None], states[:-1]])


def add_peephole(a: Tensor, p: Tensor | None, c: Tensor) -> Tensor:
    """a + p∘c. Without a peephole c is left alone: 0∘inf would be NaN."""
    return a if p is None else a + p * c
