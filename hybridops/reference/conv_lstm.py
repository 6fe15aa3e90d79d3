"""ConvLSTM (Shi et al. 2015, https://arxiv.org/abs/1506.04214): the plain modules, as people write them.

    a_t = W_ih * x_t + W_hh * h_{t-1} + b     (* is convolution with 'same' zero padding; 4H channels a_f a_i a_g a_o)
    f = sigmoid(a_f + p_f c_{t-1})     i = sigmoid(a_i + p_i c_{t-1})     g = tanh(a_g)
    c_t = f c_{t-1} + i g              o = sigmoid(a_o + p_o c_t)         h_t = o tanh(c_t)

Symbols: B batch, T time, C input channels, H hidden channels, S* the one to three spatial sizes, K* the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybridops.checks import (
    SPATIAL_NAMES,
    check_bool,
    check_choice,
    check_pair,
    check_positive_int,
    check_shape,
)
from hybridops.formulas.conv_lstm import add_peephole
from hybridops.formulas.recurrence import same_padding
from hybridops.reference.unbatched import is_unbatched, map_tensors, of_one

GATES = "figo"
PEEPHOLES = ("channel", "spatial")

_CONV_MODULES: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

States = tuple[Tensor, Tensor]


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

    Shape: x_t (B, C, S*), states None (zeros) or (h, c) of (B, H, S*) each; gives (h_t, c_t) of (B, H, S*) each. All
    may be without B.

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
            padding=same_padding(self.kernel_size),
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

    @property
    def input_size(self) -> int:
        """`input_dim`, as `nn.LSTM` calls it."""
        return self.input_dim

    @property
    def hidden_size(self) -> int:
        """`hidden_dim`, as `nn.LSTM` calls it."""
        return self.hidden_dim

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
        weight, bias = self._canonical_rows(self.conv.weight), self.conv.bias
        bias = None if bias is None else self._canonical_rows(bias)
        return weight[:, : self.input_dim], weight[:, self.input_dim :], bias, self.peephole

    def _canonical_rows(self, stored: Tensor) -> Tensor:
        if self.gate_order == GATES:
            return stored
        rows = dict(zip(self.gate_order, stored.chunk(4), strict=True))
        return torch.cat([rows[gate] for gate in GATES])

    def forward(self, x_t: Tensor, states: States | None = None) -> States:
        if is_unbatched(x_t, 1 + self.spatial_dims):
            return of_one(self.forward, x_t, states)
        check_shape("x_t", x_t, ("B", self.input_dim, *self._space()))
        h_prev, c_prev = self.initial_states(x_t) if states is None else self._check_states(x_t, states)
        a = self.conv(torch.cat([x_t, h_prev.to(x_t.dtype)], dim=1))
        a = dict(zip(self.gate_order, a.chunk(4, dim=1), strict=True))
        p_f, p_i, p_o = self._peephole_rows()

        f = torch.sigmoid(add_peephole(a["f"], p_f, c_prev))
        i = torch.sigmoid(add_peephole(a["i"], p_i, c_prev))
        g = torch.tanh(a["g"])
        c_t = f * c_prev + i * g
        o = torch.sigmoid(add_peephole(a["o"], p_o, c_t))
        return o * torch.tanh(c_t), c_t

    def _peephole_rows(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """p_f, p_i, p_o, each to be broadcast against (B, H, S*)."""
        if self.peephole is None:
            return None, None, None
        p_f, p_i, p_o = self.peephole
        if self.peephole.dim() > 2:
            return p_f, p_i, p_o
        per_channel = (..., *[None] * self.spatial_dims)
        return p_f[per_channel], p_i[per_channel], p_o[per_channel]

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
    All may be without B, as for `nn.LSTM`.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    cell_type: type[ConvLSTMCell] = ConvLSTMCell
    cell_list: nn.ModuleList  # of cells

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

    @property
    def input_size(self) -> int:
        """`input_dim`, as `nn.LSTM` calls it."""
        return self.input_dim

    @property
    def hidden_size(self) -> int | list[int]:
        """`hidden_dim`, as `nn.LSTM` calls it."""
        return self.hidden_dim

    def reset_parameters(self) -> None:
        for cell in self._cells():
            cell.reset_parameters()

    def forward(self, x: Tensor, hx: tuple[Any, Any] | None = None) -> tuple[Tensor, tuple[Any, Any]]:
        if is_unbatched(x, 2 + self._cells()[0].spatial_dims):
            return self._of_one(x, hx)
        output, first_states = self._layer_inputs(x, hx)
        last_states = []
        for cell, state in zip(self._cells(), first_states, strict=True):
            output, state = run_steps(cell, output, state)
            last_states.append(state)
        return self._results(output, last_states)

    def _of_one(self, x: Tensor, hx: Any) -> tuple[Tensor, tuple[Any, Any]]:
        """`forward` of a sequence without a batch, whose dimension states have behind that of layers."""
        dim, stacked = 0 if self.batch_first else 1, x.dim()
        batched = map_tensors(lambda state: state.unsqueeze(1 if state.dim() == stacked else 0), hx)
        output, states = self.forward(x.unsqueeze(dim), batched)
        return output.squeeze(dim), map_tensors(lambda state: state.squeeze(1 if state.dim() > stacked else 0), states)

    def _layer_inputs(self, x: Tensor, hx: tuple[Any, Any] | None) -> tuple[Tensor, list[States | None]]:
        """The arguments of `forward`, checked: x (B, T, C, S*), and one (h, c) a layer."""
        first = self._cells()[0]
        check_shape("x", x, (*("BT" if self.batch_first else "TB"), first.input_dim, *first._space()))
        return (x if self.batch_first else x.transpose(0, 1)), self._split_states(hx)

    def _results(self, output: Tensor, states: list[States]) -> tuple[Tensor, tuple[Any, Any]]:
        """What `forward` returns, of the last layer's output (B, T, H, S*) and one (h_n, c_n) a layer."""
        h_n, c_n = zip(*states, strict=True)
        stacked = (list(h_n), list(c_n)) if isinstance(self.hidden_dim, list) else (torch.stack(h_n), torch.stack(c_n))
        return (output if self.batch_first else output.transpose(0, 1)), stacked

    def _cells(self) -> list[ConvLSTMCell]:
        return list(self.cell_list)  # type: ignore[arg-type]  # a ModuleList is of modules of any kind

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
                first = self._cells()[0]
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

    def extra_repr(self) -> str:
        return f"num_layers={self.num_layers}, batch_first={self.batch_first}"


def run_steps(cell: ConvLSTMCell, x: Tensor, state: States | None) -> tuple[Tensor, States]:
    """The cell, step by step: x (B, T, C, S*) -> output (B, T, H, S*), (h_n, c_n) of (B, H, S*) each."""
    state = cell.initial_states(x) if state is None else state
    hidden = []
    for x_t in x.unbind(1):
        state = cell(x_t, state)
        hidden.append(state[0])
    output = torch.stack(hidden, dim=1) if hidden else state[0][:, None][:, :0]
    return output, state


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
    if len(sizes) not in _CONV_MODULES:
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
