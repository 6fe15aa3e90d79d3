"""Sequences by a network with a memory beside it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hybridops.checks import check_positive_int
from hybridops.layers.encoders import Memory
from hybridops.layers.memory import NTMEncoder, NTMState


class NeuralTuringMachine(nn.Module):
    """A Neural Turing Machine, Graves et al. 2014, https://arxiv.org/abs/1410.5401: an output at every step.

        x_t = CNN(frame_t), or what is given        r_t, h_t = NTM(x_t)        logits_t = W_o [r_t; h_t] + b_o

    The controller is an LSTM, the equations are those of `layers.NTMCell`.

    Args:
        input_dim: channels E of an input, or of what `encoder` gives.
        output_dim: of the logits.
        hidden_dim: of the controller.
        memory_size, memory_dim: N rows of M channels.
        num_read_heads, num_write_heads, max_shift, learned_memory: as in `layers.NTMCell`.
        encoder: None, or what makes a Memory of the input, whose values (B, T, E) are then read step by step: a
            `FrameEncoder` of videos, say.

    Shape: x (B, T, E), or what `encoder` takes, lengths None or integers (B,); gives logits (B, T, output_dim). What
    stands behind the end of a row changes nothing.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_dim: int = 100,
        memory_size: int = 128,
        memory_dim: int = 20,
        *,
        num_read_heads: int = 1,
        num_write_heads: int = 1,
        max_shift: int = 1,
        learned_memory: bool = False,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.ntm = NTMEncoder(
            input_dim, hidden_dim, memory_size, memory_dim, num_read_heads=num_read_heads,
            num_write_heads=num_write_heads, max_shift=max_shift, learned_memory=learned_memory,
        )  # fmt: skip
        self.output = nn.Linear(self.ntm.dim, check_positive_int("output_dim", output_dim))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        memory: Memory = self.ntm(self._encoded(x, lengths), lengths)
        logits: Tensor = self.output(memory.values)
        return logits

    def states(self, x: Tensor) -> list[NTMState]:
        """After each step: what stood in the memory, and where the heads were."""
        return self.ntm.states(self._encoded(x, None))

    def _encoded(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if self.encoder is None:
            return x
        memory: Memory = self.encoder(x) if lengths is None else self.encoder(x, lengths)
        return memory.values
