"""ConvLSTM (Shi et al. 2015, https://arxiv.org/abs/1506.04214): the plain modules and the explicit formulas.

    a_t = W_ih * x_t + W_hh * h_{t-1} + b     (* is convolution with 'same' zero padding; 4H channels a_f a_i a_g a_o)
    f = sigmoid(a_f + p_f c_{t-1})     i = sigmoid(a_i + p_i c_{t-1})     g = tanh(a_g)
    c_t = f c_{t-1} + i g              o = sigmoid(a_o + p_o c_t)         h_t = o tanh(c_t)

Symbols: B batch, T time, C input channels, H hidden channels, S* the one to three spatial sizes, K* the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.checks import (
    accumulation_dtype,
    check_bool,
    check_choice,
    check_pair,
    check_positive_int,
    check_shape,
)

GATES = "figo"
PEEPHOLES = ("channel", "spatial")
SPATIAL_NAMES = {1: ("W",), 2: ("H", "W"), 3: ("D", "H", "W")}

_CONV_MODULES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

States = tuple[Tensor, Tensor]


# ------------------------------------------------------------------------------------------------ the plain modules


class ConvLSTMCell(nn.Module):
    """One step of a ConvLSTM (equations above): one convolution over cat[x_t, h_{t-1}], then the gates.

    Args:
        input_dim, hidden_dim: channels C of the input and H of the state.
        kernel_size: odd. An int means two spatial dimensions; a tuple has one size for each of one to three.
        bias: whether the convolution has one.
        peephole: None, "channel" (one weight a channel) or "spatial" (one a channel and position).
        spatial_size: the spatial sizes S*; needed by peephole="spatial".
        gate_order: the order in which the gates' rows stand in `conv.weight` and `conv.bias`, a permutation of "figo".

    Parameters: `conv.weight` (4H, C+H, K*), `conv.bias` (4H), `peephole` (3, H) or (3, H, S*) with rows f, i, o, which
    are zeros at first.

    Shape: x_t (B, C, S*), states None (zeros) or (h, c) of (B, H, S*) each; gives (h_t, c_t) of (B, H, S*) each.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        kernel_size: int | tuple[int, ...],
        bias: bool = True,
        *,
        peephole: str | None = None,
        spatial_size: tuple[int, ...] | None = None,
        gate_order: str = GATES,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_dim = check_positive_int("input_dim", input_dim)
        self.hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        self.kernel_size = _check_kernel_size(kernel_size)
        self.spatial_dims = len(self.kernel_size)
        self.spatial_size = _check_spatial_size(spatial_size, self.spatial_dims)
        self.gate_order = _check_gate_order(gate_order)
        self.conv = _CONV_MODULES[self.spatial_dims](
            self.input_dim + self.hidden_dim,
            4 * self.hidden_dim,
            self.kernel_size,
            padding=_same_padding(self.kernel_size),
            bias=check_bool("bias", bias),
            device=device,
            dtype=dtype,
        )
        self.register_parameter("peephole", None)
        if peephole is not None:
            shape = (3, self.hidden_dim, *self._peephole_size(peephole))
            self.peephole = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    def _peephole_size(self, peephole: str) -> tuple[int, ...]:
        if check_choice("peephole", peephole, PEEPHOLES) == "channel":
            return ()
        if self.spatial_size is None:
            raise ValueError("spatial_size must be given for peephole='spatial', got None")
        return self.spatial_size

    def reset_parameters(self) -> None:
        self.conv.reset_parameters()
        if self.peephole is not None:
            nn.init.zeros_(self.peephole)

    def initial_states(self, x: Tensor) -> States:
        """Zeros (B, H, S*) for a frame (B, C, S*) or a sequence (B, T, C, S*)."""
        shape = (x.shape[0], self.hidden_dim, *x.shape[-self.spatial_dims :])
        return x.new_zeros(shape), x.new_zeros(shape)

    def canonical_weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """w_ih (4H, C, K*), w_hh (4H, H, K*), bias (4H) or None, peephole or None: rows in the order f, i, g, o."""
        weight, bias = (self._canonical_rows(stored) for stored in (self.conv.weight, self.conv.bias))
        return weight[:, : self.input_dim], weight[:, self.input_dim :], bias, self.peephole

    def _canonical_rows(self, stored: Tensor | None) -> Tensor | None:
        if stored is None or self.gate_order == GATES:
            return stored
        rows = dict(zip(self.gate_order, stored.chunk(4), strict=True))
        return torch.cat([rows[gate] for gate in GATES])

    def forward(self, x_t: Tensor, states: States | None = None) -> States:
        check_shape("x_t", x_t, ("B", self.input_dim, *self._space()))
        h_prev, c_prev = self.initial_states(x_t) if states is None else self._check_states(x_t, states)
        a = self.conv(torch.cat([x_t, h_prev.to(x_t.dtype)], dim=1))
        a = dict(zip(self.gate_order, a.chunk(4, dim=1), strict=True))
        p_f, p_i, p_o = peephole_rows(self.peephole, self.spatial_dims)

        f = torch.sigmoid(_peep(a["f"], p_f, c_prev))
        i = torch.sigmoid(_peep(a["i"], p_i, c_prev))
        g = torch.tanh(a["g"])
        c_t = f * c_prev + i * g
        o = torch.sigmoid(_peep(a["o"], p_o, c_t))
        return o * torch.tanh(c_t), c_t

    def _space(self) -> tuple[int | str, ...]:
        """The spatial sizes an input must have: a spatial peephole fixes them, nothing else does."""
        fixed = () if self.peephole is None else tuple(self.peephole.shape[2:])
        return fixed or SPATIAL_NAMES[self.spatial_dims]

    def _check_states(self, x_t: Tensor, states: States) -> States:
        check_pair("states", states)
        expected = (x_t.shape[0], self.hidden_dim, *x_t.shape[2:])
        for name, state in zip(("h of states", "c of states"), states, strict=True):
            check_shape(name, state, expected)
        return states

    def extra_repr(self) -> str:
        kind = None if self.peephole is None else PEEPHOLES[self.peephole.dim() > 2]
        return (
            f"{self.input_dim}, {self.hidden_dim}, kernel_size={self.kernel_size}, peephole={kind!r}, "
            f"gate_order={self.gate_order!r}"
        )


class ConvLSTM(nn.Module):
    """A stack of ConvLSTM layers over a sequence, called as `nn.LSTM` is.

    Args:
        input_dim: channels C of the input.
        hidden_dim: channels H of every layer's state, or a list with one for each layer.
        kernel_size: as in `ConvLSTMCell` (a TUPLE is one size for each spatial dimension), or a LIST with one a layer.
        num_layers: how many layers.
        bias, peephole, spatial_size, gate_order: as in `ConvLSTMCell`, the same in every layer.
        batch_first: x and the output are (B, T, ...) if true, else (T, B, ...). It does not concern the states.

    Parameters: those of `ConvLSTMCell`, under `cell_list.{layer}`.

    Shape: x (B, T, C, S*); hx None (zeros) or (h_0, c_0), each (num_layers, B, H, S*) or a list of (B, H, S*). A list
    of one pair (h, c) a layer is taken as such where it cannot be (h_0, c_0); for two layers of one size it could.
    Gives (output (B, T, H, S*) of the last layer, (h_n, c_n)), states stacked as hx, or lists where hidden_dim is one.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    cell_type: type[ConvLSTMCell] = ConvLSTMCell

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int | list[int],
        kernel_size: int | tuple[int, ...] | list[int | tuple[int, ...]],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
        *,
        peephole: str | None = None,
        spatial_size: tuple[int, ...] | None = None,
        gate_order: str = GATES,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_layers = check_positive_int("num_layers", num_layers)
        self.batch_first = check_bool("batch_first", batch_first)
        self.input_dim = input_dim
        self.hidden_dim = list(hidden_dim) if isinstance(hidden_dim, (list, tuple)) else hidden_dim
        hidden_dims = _per_layer("hidden_dim", self.hidden_dim, self.num_layers)
        kernel_sizes = _per_layer("kernel_size", kernel_size, self.num_layers)
        self.cell_list = nn.ModuleList(
            self.cell_type(
                *dims,
                bias,
                peephole=peephole,
                spatial_size=spatial_size,
                gate_order=gate_order,
                device=device,
                dtype=dtype,
            )
            for dims in zip([input_dim, *hidden_dims[:-1]], hidden_dims, kernel_sizes, strict=True)
        )
        if len({cell.spatial_dims for cell in self.cell_list}) > 1:
            raise ValueError(f"kernel_size must have as many dimensions in every layer, got {kernel_size!r}")

    def forward(self, x: Tensor, hx: tuple[Any, Any] | None = None) -> tuple[Tensor, tuple[Any, Any]]:
        first = self.cell_list[0]
        check_shape("x", x, (*("BT" if self.batch_first else "TB"), first.input_dim, *first._space()))
        output = x if self.batch_first else x.transpose(0, 1)
        states = []
        for cell, state in zip(self.cell_list, self._split_states(hx), strict=True):
            output, state = self._run_layer(cell, output, state)
            states.append(state)
        return (output if self.batch_first else output.transpose(0, 1)), self._join_states(states)

    def _run_layer(self, cell: ConvLSTMCell, x: Tensor, state: States | None) -> tuple[Tensor, States]:
        """One layer over the sequence: x (B, T, C, S*) -> output (B, T, H, S*), (h_n, c_n) of (B, H, S*) each."""
        state = cell.initial_states(x) if state is None else state
        hidden = []
        for x_t in x.unbind(1):
            state = cell(x_t, state)
            hidden.append(state[0])
        output = torch.stack(hidden, dim=1) if hidden else state[0][:, None][:, :0]
        return output, state

    def _split_states(self, hx: tuple[Any, Any] | list[States] | None) -> list[States | None]:
        """hx as one (h, c) a layer."""
        if hx is None:
            return [None] * self.num_layers
        if not isinstance(hx, (tuple, list)):
            raise TypeError(f"hx must be a pair (h_0, c_0), or a list of one (h, c) a layer, got {type(hx).__name__}")
        if self._is_pair_a_layer(hx):
            return [tuple(state) for state in hx]
        check_pair("hx", hx)
        for name, state in zip(("h_0 of hx", "c_0 of hx"), hx, strict=True):
            if isinstance(state, (list, tuple)) and len(state) != self.num_layers:
                raise ValueError(f"{name} must have one state for each of {self.num_layers} layers, got {len(state)}")
            if not isinstance(state, (list, tuple)):
                first = self.cell_list[0]
                check_shape(name, state, (self.num_layers, "B", first.hidden_dim, *first._space()))
        return list(zip(*hx, strict=True))

    def _is_pair_a_layer(self, hx: tuple[Any, ...] | list[Any]) -> bool:
        """Whether hx is [(h, c), ...] with one pair a layer, not (h of every layer, c of every layer).

        Raises:
            ValueError: it could be either, which is so for two layers of the same size.
        """
        if len(hx) != self.num_layers or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in hx):
            return False
        if self.num_layers != 2 or (isinstance(hx, tuple) and all(isinstance(states, list) for states in hx)):
            return self.num_layers != 2  # a tuple of two lists is what a module of many layers returns
        first, second = (cell.hidden_dim for cell in self.cell_list)
        sizes = [[state.shape[1] for state in pair if isinstance(state, Tensor) and state.dim() > 1] for pair in hx]
        if first == second:
            raise ValueError(
                "hx must say which states are h and which c: two pairs for two layers could be (h, c) of each or "
                "(h_0, c_0); give (torch.stack(h), torch.stack(c)), or a tuple of two lists"
            )
        return sizes == [[first, first], [second, second]]

    def _join_states(self, states: list[States]) -> tuple[Any, Any]:
        h_n, c_n = zip(*states, strict=True)
        return (list(h_n), list(c_n)) if isinstance(self.hidden_dim, list) else (torch.stack(h_n), torch.stack(c_n))

    def extra_repr(self) -> str:
        return f"num_layers={self.num_layers}, batch_first={self.batch_first}"


def _per_layer(name: str, value: Any, num_layers: int) -> list[Any]:
    if not isinstance(value, list):
        return [value] * num_layers
    if len(value) != num_layers:
        raise ValueError(f"{name} must have one entry for each of {num_layers} layers, got {value!r}")
    return value


def _check_kernel_size(kernel_size: int | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(kernel_size, list):
        raise TypeError(f"kernel_size must be an int or a tuple of ints, got the list {kernel_size!r}")
    sizes = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * 2
    if len(sizes) not in _CONV:
        raise ValueError(f"kernel_size must have one to three sizes, got {kernel_size!r}")
    sizes = tuple(check_positive_int("kernel_size", size) for size in sizes)
    if any(size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel_size must be odd in every dimension ('same' padding), got {kernel_size!r}")
    return sizes


def _check_spatial_size(spatial_size: tuple[int, ...] | None, spatial_dims: int) -> tuple[int, ...] | None:
    if spatial_size is None:
        return None
    if not isinstance(spatial_size, (tuple, list)):
        raise TypeError(f"spatial_size must be a tuple of {spatial_dims} ints, got {spatial_size!r}")
    if len(spatial_size) != spatial_dims:
        raise ValueError(f"spatial_size must have {spatial_dims} sizes, as kernel_size has, got {spatial_size!r}")
    return tuple(check_positive_int("spatial_size", size) for size in spatial_size)


def _check_gate_order(gate_order: str) -> str:
    if not isinstance(gate_order, str):
        raise TypeError(f"gate_order must be a permutation of {GATES!r}, got {gate_order!r}")
    if sorted(gate_order) != sorted(GATES):
        raise ValueError(f"gate_order must be a permutation of {GATES!r}, got {gate_order!r}")
    return gate_order


# -------------------------------------------------------------------------------------------- the explicit formulas


def conv_lstm_forward(
    x: Tensor,  # (B, T, C, S*)
    h0: Tensor | None,  # (B, H, S*), None = zeros
    c0: Tensor | None,  # (B, H, S*) accumulation dtype, None = zeros
    w_ih: Tensor,  # (4H, C, K*)
    w_hh: Tensor,  # (4H, H, K*)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3, H) or (3, H, S*), rows f, i, o
    save: str,  # "nothing" | "cells" | "gates"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The recurrence over a sequence, gate order f, i, g, o. Sums and the cell are in the accumulation dtype.

    Gives hs (T, B, H, S*) in x's dtype; cs (T, B, H, S*) in the accumulation dtype, for save="nothing" only the last,
    (1, B, H, S*); and for save="gates" the gates (T, B, 4H, S*) after their nonlinearity in x's dtype, else None.
    """
    acc = accumulation_dtype(x.dtype)
    batch, hidden, space = x.shape[0], w_hh.shape[1], x.shape[3:]
    h = x.new_zeros(batch, hidden, *space) if h0 is None else h0
    c = x.new_zeros(batch, hidden, *space, dtype=acc) if c0 is None else c0
    peephole = peephole_rows(peephole, w_hh.dim() - 2, acc)

    hs, cs, gates = [], [], []
    for x_t in x.unbind(1):
        f, i, g, o, c = _lstm_step(_preactivation(x_t, h, w_ih, w_hh, bias), c, peephole)
        h = (o * torch.tanh(c)).to(x.dtype)
        hs.append(h)
        if save != "nothing":
            cs.append(c)
        if save == "gates":
            gates.append(torch.cat([f, i, g, o], dim=1).to(x.dtype))

    hs = _stack_steps(hs, (batch, hidden, *space), x)
    cs = c[None] if save == "nothing" else _stack_steps(cs, (batch, hidden, *space), c)
    gates = _stack_steps(gates, (batch, 4 * hidden, *space), x) if save == "gates" else None
    return hs, cs, gates


def conv_lstm_backward(
    grad_hs: Tensor | None,  # (T, B, H, S*)
    grad_hn: Tensor | None,  # (B, H, S*)
    grad_cn: Tensor | None,  # (B, H, S*)
    gates: Tensor,  # (T, B, 4H, S*), after their nonlinearity
    cs: Tensor,  # (T, B, H, S*) accumulation dtype
    c0: Tensor | None,  # (B, H, S*) accumulation dtype, None = zeros
    w_hh: Tensor,  # (4H, H, K*)
    peephole: Tensor | None,  # (3, H) or (3, H, S*), rows f, i, o
    need_dh0: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradient of the pre-activations, from the last step to the first.

    With dh = grad_hs[t] + (dh from t+1) and dc carried:

        da_o = dh tanh(c_t) o(1-o)          dc += dh o (1 - tanh²(c_t)) + p_o da_o
        da_f = dc c_{t-1} f(1-f)            da_i = dc g i(1-i)           da_g = dc i (1-g²)
        dh_{t-1} = W_hhᵀ * da_t             dc_{t-1} = dc f + p_f da_f + p_i da_i

    Gives da (T, B, 4H, S*) in the gates' dtype; dh0 (None unless need_dh0), dc0 (B, H, S*) in the accumulation dtype.
    Nothing else of the sequence is looked at, so it may be run over a chunk: c0 is then the cell before the chunk, and
    grad_hn, grad_cn are the dh0, dc0 of the chunk behind it.
    """
    acc = cs.dtype
    zeros = cs.new_zeros(cs.shape[1:])
    dh = zeros if grad_hn is None else grad_hn.to(acc)
    dc = zeros if grad_cn is None else grad_cn.to(acc)
    p_f, p_i, p_o = peephole_rows(peephole, w_hh.dim() - 2, acc)
    cells = [zeros if c0 is None else c0, *cs.unbind(0)]

    das = []
    for t in reversed(range(len(gates))):
        f, i, g, o = gates[t].to(acc).chunk(4, dim=1)
        c_prev, tanh_c = cells[t], torch.tanh(cells[t + 1])
        if grad_hs is not None:
            dh = dh + grad_hs[t].to(acc)
        da_o = dh * tanh_c * o * (1 - o)
        dc = _peep(dc + dh * o * (1 - tanh_c * tanh_c), p_o, da_o)
        da_f = dc * c_prev * f * (1 - f)
        da_i = dc * g * i * (1 - i)
        da_g = dc * i * (1 - g * g)
        da = torch.cat([da_f, da_i, da_g, da_o], dim=1)
        das.append(da.to(gates.dtype))
        dc = _peep(_peep(dc * f, p_f, da_f), p_i, da_i)
        if t > 0 or need_dh0:
            dh = _convolve_transposed(da, w_hh.to(acc))

    return _stack_steps(das[::-1], gates.shape[1:], gates), dh if need_dh0 else None, dc


def input_gradient(
    da: Tensor,  # (T, B, 4H, S*)
    weight: Tensor,  # (4H, C, K*)
    dx: Tensor,  # (T, B, C, S*)
) -> None:
    """Writes dx = weightᵀ * da, the gradient of x in weight * x."""
    of_x, _ = _convolution_backward(da, dx, weight, (True, False, False))
    dx.copy_(of_x.unflatten(0, da.shape[:2]))


def weight_gradients(
    da: Tensor,  # (T, B, 4H, S*)
    factors: Sequence[Tensor],  # x (T, B, C, S*); one or two
    dweights: Sequence[Tensor],  # (4H, C, K*) accumulation dtype
) -> None:
    """Adds dweight[o,c,k] += Σ_{t,b,s} da[t,b,o,s] x[t,b,c,s+k], for each x: of the weight in weight * x."""
    for x, dweight in zip(factors, dweights, strict=True):
        dweight += _convolution_backward(da, x, da.new_empty(dweight.shape), (False, True, False))[1]


def _convolution_backward(
    da: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """In the accumulation dtype: that of three spatial dimensions in bfloat16 is garbage in PyTorch 2.13 on the CPU."""
    kernel, acc = weight.shape[2:], accumulation_dtype(da.dtype)
    one, zero = [1] * len(kernel), [0] * len(kernel)
    return torch.ops.aten.convolution_backward(
        da.flatten(0, 1).to(acc),
        x.flatten(0, 1).to(acc),
        weight.to(acc),
        None,
        one,
        _same_padding(kernel),
        one,
        False,
        zero,
        1,
        wanted,
    )[:2]


def conv_lstm_backward_from_states(
    grad_hs: Tensor | None,  # (T, B, H, S*)
    grad_hn: Tensor | None,  # (B, H, S*)
    grad_cn: Tensor | None,  # (B, H, S*)
    x: Tensor,  # (B, T, C, S*)
    h0: Tensor | None,  # (B, H, S*), None = zeros
    hs: Tensor,  # (T, B, H, S*)
    cs: Tensor,  # (T, B, H, S*) accumulation dtype
    c0: Tensor | None,  # (B, H, S*) accumulation dtype, None = zeros
    w_ih: Tensor,  # (4H, C, K*)
    w_hh: Tensor,  # (4H, H, K*)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3, H) or (3, H, S*), rows f, i, o
    need_dh0: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`conv_lstm_backward` where the gates were not saved."""
    gates = gates_from_states(x, h0, hs, cs, c0, w_ih, w_hh, bias, peephole)
    return conv_lstm_backward(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0)


def gates_from_states(
    x: Tensor,  # (B, T, C, S*)
    h0: Tensor | None,  # (B, H, S*), None = zeros
    hs: Tensor,  # (T, B, H, S*)
    cs: Tensor,  # (T, B, H, S*) accumulation dtype
    c0: Tensor | None,  # (B, H, S*) accumulation dtype, None = zeros
    w_ih: Tensor,  # (4H, C, K*)
    w_hh: Tensor,  # (4H, H, K*)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3, H) or (3, H, S*), rows f, i, o
) -> Tensor:
    """The gates (T, B, 4H, S*) that `conv_lstm_forward` would save. With every state known, no recurrence is left in
    them: they come back from one convolution over all T·B images.
    """
    before = (_one_step_later(first, states) for first, states in ((h0, hs), (c0, cs)))
    images, hs_prev, cs_prev, cs_now = (t.flatten(0, 1) for t in (x.transpose(0, 1), *before, cs))
    rows = peephole_rows(peephole, w_hh.dim() - 2, cs.dtype)
    f, i, g, o, _ = _lstm_step(_preactivation(images, hs_prev, w_ih, w_hh, bias), cs_prev, rows, c=cs_now)
    return torch.cat([f, i, g, o], dim=1).to(x.dtype).unflatten(0, hs.shape[:2])


def _one_step_later(first: Tensor | None, states: Tensor) -> Tensor:
    first = torch.zeros_like(states[0]) if first is None else first
    return torch.cat([first[None], states[:-1]])


def peephole_rows(
    peephole: Tensor | None, spatial_dims: int, dtype: torch.dtype | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """p_f, p_i, p_o, each to be broadcast against (B, H, S*)."""
    if peephole is None:
        return None, None, None
    if peephole.dim() == 2:
        peephole = peephole[(..., *[None] * spatial_dims)]
    return peephole.to(dtype=dtype).unbind(0)


def _preactivation(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor | None) -> Tensor:
    """W_ih * x + W_hh * h + b in the accumulation dtype.

    In bfloat16, PyTorch's own convolution of [x, h] is rounded once, as the plain module's, and takes half the time of
    one in float32; but that of three spatial dimensions has wrong gradients (see `_convolution_backward`).
    """
    acc = accumulation_dtype(x.dtype)
    if x.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        return _convolve(torch.cat([x, h], dim=1), torch.cat([w_ih, w_hh], dim=1), bias).to(acc)
    x, h, w_ih, w_hh = (tensor.to(acc) for tensor in (x, h, w_ih, w_hh))
    return _convolve(x, w_ih, None if bias is None else bias.to(acc)) + _convolve(h, w_hh)


def _lstm_step(
    a: Tensor, c_prev: Tensor, peephole: tuple[Tensor | None, ...], c: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """f, i, g, o and c_t, from the pre-activations and c_{t-1}; c is c_t where that is known already."""
    a_f, a_i, a_g, a_o = a.chunk(4, dim=1)
    p_f, p_i, p_o = peephole
    f = torch.sigmoid(_peep(a_f, p_f, c_prev))
    i = torch.sigmoid(_peep(a_i, p_i, c_prev))
    g = torch.tanh(a_g)
    c = f * c_prev + i * g if c is None else c
    o = torch.sigmoid(_peep(a_o, p_o, c))
    return f, i, g, o, c


def _peep(a: Tensor, p: Tensor | None, c: Tensor) -> Tensor:
    """a + p∘c. Without a peephole c is left alone: 0∘inf would be NaN."""
    return a if p is None else a + p * c


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = weight.shape[2:]
    return _CONV[len(kernel)](x, weight, bias, padding=_same_padding(kernel))


def _convolve_transposed(x: Tensor, weight: Tensor) -> Tensor:
    kernel = weight.shape[2:]
    return _CONV_TRANSPOSE[len(kernel)](x, weight, padding=_same_padding(kernel))


def _same_padding(kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size // 2 for size in kernel_size)


def _stack_steps(steps: list[Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The steps, each of that shape, along a new first dimension; there may be none."""
    return torch.stack(steps) if steps else like.new_empty((0, *shape))
