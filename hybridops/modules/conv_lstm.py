"""FusedConvLSTMCell and FusedConvLSTM: the plain modules' parameters and calls on fused functions."""

from __future__ import annotations

import torch
from torch import Tensor

import hybridops.functional as HF
from hybridops.checks import check_choice, check_shape
from hybridops.modules.parts import CONVOLUTIONS, reason_not_plain, recompute_weights, runs_plain
from hybridops.reference.conv_lstm import GATES, ConvLSTM, ConvLSTMCell, States


class FusedConvLSTMCell(ConvLSTMCell):
    __doc__ = f"""{ConvLSTMCell.__doc__}
    Fused: `functional.conv_lstm_cell` runs it. `backend` (keyword) names a back end, None takes the fastest. c_t has
    the dtype of c, or of x_t where no states are given. Where `conv` is more than a convolution with zero padding
    (another class, hooks, dilation, ...), the plain forward runs.
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
        self.backend = backend

    def canonical_weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        recompute_weights(self.conv)
        return super().canonical_weights()

    def forward(self, x_t: Tensor, states: States | None = None) -> States:
        check_shape("x_t", x_t, ("B", self.input_dim, *self._space()))
        reasons = {"conv": reason_not_plain(self.conv, CONVOLUTIONS)}
        if runs_plain("conv_lstm", self.backend, x_t, reasons, self.spatial_dims):
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
        self.backend = backend

    def _run_layer(self, cell: ConvLSTMCell, x: Tensor, state: States | None) -> tuple[Tensor, States]:
        reasons = {"cell": reason_not_plain(cell, (FusedConvLSTMCell, ConvLSTMCell))}
        if reasons["cell"] is None:
            reasons["conv"] = reason_not_plain(cell.conv, CONVOLUTIONS)
        if runs_plain("conv_lstm", self.backend, x, reasons, x.dim() - 3) and (
            self.save == "gates" or any(reasons.values())
        ):
            return super()._run_layer(cell, x, state)
        w_ih, w_hh, bias, peephole = cell.canonical_weights()
        return HF.conv_lstm(x, state, w_ih, w_hh, bias, peephole=peephole, save=self.save, backend=self.backend)
