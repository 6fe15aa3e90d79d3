"""FusedConvLSTMCell and FusedConvLSTM: the plain modules' parameters and calls on fused functions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import hybridops.functional as HF
from hybridops.checks import check_choice, check_shape
from hybridops.modules.parts import CONVOLUTIONS, are_plain, plain_is_faster, recompute_weights
from hybridops.reference.conv_lstm import ConvLSTM, ConvLSTMCell, States


class FusedConvLSTMCell(ConvLSTMCell):
    __doc__ = f"""{ConvLSTMCell.__doc__}
    Fused: `functional.conv_lstm_cell` runs it. `backend` (keyword) names a back end, None takes the fastest. c_t has
    the dtype of c, or of x_t where no states are given. Where `conv` is more than a convolution with zero padding
    (another class, hooks, dilation, ...), the plain forward runs.
    """

    backend: str | None = None  # a class attribute too: `fuse` makes this class of modules whose __init__ knew none

    def __init__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = backend

    def canonical_weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        recompute_weights(self.conv)
        return super().canonical_weights()

    def forward(self, x_t: Tensor, states: States | None = None) -> States:
        if not are_plain(self.backend, CONVOLUTIONS, conv=self.conv):
            return super().forward(x_t, states)
        check_shape("x_t", x_t, ("B", self.input_dim, *self._space()))
        if plain_is_faster("conv_lstm", self.backend, x_t, self.spatial_dims):
            return super().forward(x_t, states)
        if states is not None:
            self._check_states(x_t, states)
        w_ih, w_hh, bias, peephole = self.canonical_weights()
        return HF.conv_lstm_cell(x_t, states, w_ih, w_hh, bias, peephole=peephole, backend=self.backend)


class FusedConvLSTM(ConvLSTM):
    __doc__ = f"""{ConvLSTM.__doc__}
    Fused: `functional.conv_lstm` runs each layer. `save` (keyword) is "gates" (fast) or "recompute" (half the memory in
    training); `backend` (keyword) names a back end, None takes the fastest. c_n has the dtype of c_0, or of x where
    none is given; within the sequence the cell is float32 at least. The output's memory is time-major and
    channels-last. A layer whose cell, or whose cell's `conv`, is more than that runs step by step, through the cell.
    """

    cell_type = FusedConvLSTMCell
    save: str = "gates"
    backend: str | None = None

    def __init__(self, *args: Any, save: str = "gates", backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save = check_choice("save", save, ("gates", "recompute"))
        self.backend = backend

    def _run_layer(self, cell: ConvLSTMCell, x: Tensor, state: States | None) -> tuple[Tensor, States]:
        cell_types = (FusedConvLSTMCell, ConvLSTMCell)
        if not (
            are_plain(self.backend, cell_types, cell=cell) and are_plain(self.backend, CONVOLUTIONS, conv=cell.conv)
        ):
            return super()._run_layer(cell, x, state)
        if self.save == "gates" and plain_is_faster("conv_lstm", self.backend, x, cell.spatial_dims):
            return super()._run_layer(cell, x, state)
        w_ih, w_hh, bias, peephole = cell.canonical_weights()
        return HF.conv_lstm(x, state, w_ih, w_hh, bias, peephole=peephole, save=self.save, backend=self.backend)
