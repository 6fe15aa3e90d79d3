"""FusedConvLSTMCell and FusedConvLSTM: the plain modules' parameters and calls on fused functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hybridops.functional as HF
from hybridops.checks import check_choice, check_shape
from hybridops.modules.parts import (
    CONVOLUTIONS,
    check_backend,
    reason_not_numbers,
    reason_not_plain,
    recompute_weights,
    runs_plain,
    settings,
)
from hybridops.reference.conv_lstm import GATES, ConvLSTM, ConvLSTMCell, States, run_steps
from hybridops.reference.unbatched import is_unbatched, of_one


class FusedConvLSTMCell(ConvLSTMCell):
    """One step of a ConvLSTM (Shi et al. 2015, https://arxiv.org/abs/1506.04214), fused.

        a = W * [x_t; h] + b     (* 'same' convolution)     f = σ(a_f + p_f∘c)     i = σ(a_i + p_i∘c)     g = tanh(a_g)
        c_t = f∘c + i∘g          o = σ(a_o + p_o∘c_t)       h_t = o∘tanh(c_t)

    Args:
        input_dim, hidden_dim: channels C of the input and H of the state.
        kernel_size: odd. An int means two spatial dimensions; a tuple has one size for each of one to three.
        bias: whether the convolution has one.
        peephole: None, "channel" (one weight a channel) or "spatial" (one a channel and position).
        spatial_size: the spatial sizes S*; needed by peephole="spatial".
        gate_order: the order in which the gates' rows stand in `conv.weight` and `conv.bias`, a permutation of "figo".
        backend: "reference", "native", "triton", or None for the fastest that takes the inputs.

    Parameters: those of `reference.ConvLSTMCell`, and the same state dict: `conv.weight` (4H, C+H, K*), `conv.bias`
    (4H), `peephole` (3, H) or (3, H, S*) with rows f, i, o, which are zeros at first.

    Shape: x_t (B, C, S*), states None (zeros) or (h, c) of (B, H, S*) each; gives (h_t, c_t) of (B, H, S*) each, h_t in
    the dtype of x_t, c_t in that of c, or of x_t where no states are given. All may be without B.

    Fused: `functional.conv_lstm_cell` runs it. Where `conv` is more than a convolution with zero padding (another
    class, hooks, dilation, ...), the plain forward runs; a back end that was named then raises.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
        RuntimeError: a back end was named that is not here, or does not take the inputs.
    """

    backend: str | None = None  # a class attribute too: `fuse` makes this class of modules whose __init__ knew none

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
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_dim, hidden_dim, kernel_size, bias, peephole=peephole, spatial_size=spatial_size,
            gate_order=gate_order, device=device, dtype=dtype,
        )  # fmt: skip
        self.backend = check_backend(backend)

    def extra_repr(self) -> str:
        return settings(super().extra_repr(), backend=self.backend)

    def canonical_weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        recompute_weights(self.conv)
        return super().canonical_weights()

    def forward(self, x_t: Tensor, states: States | None = None) -> States:
        if is_unbatched(x_t, 1 + self.spatial_dims):
            return of_one(self.forward, x_t, states)
        check_shape("x_t", x_t, ("B", self.input_dim, *self._space()))
        reasons = {"cell": reason_not_numbers(self), "conv": reason_not_plain(self.conv, CONVOLUTIONS)}
        if runs_plain("conv_lstm", self.backend, x_t, reasons, self.spatial_dims):
            return super().forward(x_t, states)
        if states is not None:
            self._check_states(x_t, states)
        w_ih, w_hh, bias, peephole = self.canonical_weights()
        return HF.conv_lstm_cell(x_t, states, w_ih, w_hh, bias, peephole=peephole, backend=self.backend)


class FusedConvLSTM(ConvLSTM):
    """A stack of ConvLSTM layers over a sequence, called as `nn.LSTM` is; the equations are `FusedConvLSTMCell`'s.

    Args:
        input_dim: channels C of the input.
        hidden_dim: channels H of every layer's state, or a list with one for each layer.
        kernel_size: as in `FusedConvLSTMCell` (a TUPLE is one size for each spatial dimension), or a LIST with one a
            layer.
        num_layers: how many layers.
        bias, peephole, spatial_size, gate_order: as in `FusedConvLSTMCell`, the same in every layer.
        batch_first: x and the output are (B, T, ...) if true, else (T, B, ...). It does not concern the states.
        save: what the backward finds: "gates" (fast), or "recompute" (half the memory in training).
        backend: "reference", "native", "triton", or None for the fastest that takes the inputs.

    Parameters: those of `FusedConvLSTMCell`, under `cell_list.{layer}`.

    Shape: x (B, T, C, S*); hx None (zeros) or (h_0, c_0), each (num_layers, B, H, S*) or a list of (B, H, S*). A list
    of one pair (h, c) a layer is taken as such where it cannot be (h_0, c_0); for two layers of one size it could.
    Gives (output (B, T, H, S*) of the last layer, (h_n, c_n)), states stacked as hx, or lists where hidden_dim is one.
    c_n has the dtype of c_0, or of x where none is given; within the sequence the cell is float32 at least. The
    output's memory is time-major and channels-last. All may be without B, as for `nn.LSTM`.

    Fused: `functional.conv_lstm` runs each layer. A layer whose cell, or whose cell's `conv`, is more than that runs
    step by step, through the cell; a back end that was named then raises.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
        RuntimeError: a back end was named that is not here, or does not take the inputs.
    """

    cell_type = FusedConvLSTMCell
    save: str = "gates"
    backend: str | None = None

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
        save: str = "gates",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_dim, hidden_dim, kernel_size, num_layers, bias, batch_first, peephole=peephole,
            spatial_size=spatial_size, gate_order=gate_order, device=device, dtype=dtype,
        )  # fmt: skip
        self.save = check_choice("save", save, ("gates", "recompute"))
        self.backend = check_backend(backend)

    def forward(self, x: Tensor, hx: tuple[Any, Any] | None = None) -> tuple[Tensor, tuple[Any, Any]]:
        if is_unbatched(x, 2 + self._cells()[0].spatial_dims):
            return self._of_one(x, hx)
        output, first_states = self._layer_inputs(x, hx)
        last_states = []
        for cell, state in zip(self._cells(), first_states, strict=True):
            output, state = self._run_layer(cell, output, state)
            last_states.append(state)
        return self._results(output, last_states)

    def extra_repr(self) -> str:
        return settings(super().extra_repr(), save=self.save, backend=self.backend)

    def _run_layer(self, cell: ConvLSTMCell, x: Tensor, state: States | None) -> tuple[Tensor, States]:
        """x (B, T, C, S*) -> output (B, T, H, S*), (h_n, c_n) of (B, H, S*) each."""
        reasons = {"cell": reason_not_plain(cell, (FusedConvLSTMCell, ConvLSTMCell))}
        if reasons["cell"] is None:
            reasons["conv"] = reason_not_plain(cell.conv, CONVOLUTIONS)
        if runs_plain("conv_lstm", self.backend, x, reasons, x.dim() - 3) and (
            self.save == "gates" or any(reasons.values())
        ):
            return run_steps(cell, x, state)
        w_ih, w_hh, bias, peephole = cell.canonical_weights()
        return HF.conv_lstm(x, state, w_ih, w_hh, bias, peephole=peephole, save=self.save, backend=self.backend)
