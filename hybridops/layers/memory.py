"""A recurrent network with a memory it reads and writes: the Neural Turing Machine."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.checks import accumulation_dtype, check_bool, check_lengths, check_positive_int, check_shape
from hybridops.layers.encoders import Memory, length_mask
from hybridops.layers.masks import mask_padding
from hybridops.layers.pooling import LastState

INITIAL = 1e-6  # of a constant memory
FOCUS = 6.0  # the score of the first row at the start, where the others have 0: nearly all of the weight
TINY = 1e-8  # the least norm of what is divided by its norm


class NTMState(NamedTuple):
    """Of an `NTMCell`, after a step. K heads: those that read, then those that write."""

    memory: Tensor  # (B, N, M)
    weights: Tensor  # (B, K, N), which sum to 1: where each head is
    read: Tensor  # (B, R, M), what each of the R read heads found
    hidden: Tensor  # (B, H), of the controller
    cell: Tensor  # (B, H)


def content_weights(memory: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """softmax_i(β cos(k, M_i)), (B, K, N), of memory (B, N, M), keys (B, K, M), strengths β (B, K).

    In float32 at least, as half precision cannot square a memory of 1e-6. A row of zeros has cos = 0.
    """
    dtype = accumulation_dtype(memory.dtype)
    rows, directions = memory.to(dtype), F.normalize(keys.to(dtype), dim=2, eps=TINY)
    cos = directions @ rows.transpose(1, 2) / rows.norm(dim=2).clamp(min=TINY)[:, None]
    return torch.softmax(strengths[..., None] * cos, 2).to(keys.dtype)


def circular_convolution(weights: Tensor, kernel: Tensor) -> Tensor:
    """Σ_d s(d) w(i − d mod N), of weights (..., N), kernel (..., 2D + 1), s(−D) ... s(D): s(1) = 1 moves all from
    i to i + 1.
    """
    reach = kernel.shape[-1] // 2
    moved = [weights.roll(d, -1) * kernel[..., reach + d, None] for d in range(-reach, reach + 1)]
    return torch.stack(moved).sum(0)


def sharpen(weights: Tensor, power: Tensor) -> Tensor:
    """w^γ / Σ w^γ over the last dimension, of weights (..., N) >= 0, power γ (...) >= 1.

    As a softmax of γ log w, so that no sum underflows; a weight of 0 counts as the least normal number, and has a
    gradient of 0.
    """
    dtype = accumulation_dtype(weights.dtype)
    least = torch.finfo(dtype).tiny
    log = weights.to(dtype).clamp(min=least).log()
    return torch.softmax(power[..., None] * log, -1).to(weights.dtype)


class NTMCell(nn.Module):
    """A step of the Neural Turing Machine, Graves et al. 2014, https://arxiv.org/abs/1410.5401, with an LSTM as its
    controller and a memory of N rows, of which each head is at some (`w`, N weights that sum to 1).

        h, c = LSTM([x; r], h, c)
        k, β, g, s, γ = W h + b                         of each head; β >= 0, 0 <= g <= 1, Σ s = 1, γ >= 1
        w_c = softmax_i(β cos(k, M_i))                  content
        w_g = g w_c + (1 − g) w                         or where the head was
        w_s(i) = Σ_d s(d) w_g(i − d mod N)              moved by d = −D ... D: s(1) = 1 takes it from i to i + 1
        w = w_s^γ / Σ_i w_s(i)^γ                        sharpened
        r = Σ_i w(i) M_i                                what a read head reads
        M_i = M_i ∘ (1 − w(i) e) + w(i) a               what a write head erases (0 <= e <= 1) and adds (−1 <= a <= 1)

    All heads look at the memory as it was before the step; of several write heads all erase, then all add.

    Args:
        input_dim, hidden_dim: channels E of x, H of the controller.
        memory_size, memory_dim: N rows of M channels.
        num_read_heads, num_write_heads: R and W.
        max_shift: D, at most (N − 1) / 2.
        learned_memory: whether the memory starts as a parameter; else all of it is 1e-6 (Collier & Beel 2018,
            https://arxiv.org/abs/1807.08518, who found that to learn fastest).

    Where heads start is a parameter. Untrained they are all at the first row: there the copy task was learned in a
    thousand steps, and from anywhere not in four thousand.

    Shape: x (B, E), state None or an NTMState: gives an NTMState.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 100,
        memory_size: int = 128,
        memory_dim: int = 20,
        *,
        num_read_heads: int = 1,
        num_write_heads: int = 1,
        max_shift: int = 1,
        learned_memory: bool = False,
    ) -> None:
        super().__init__()
        self.input_dim = check_positive_int("input_dim", input_dim)
        self.hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        size, dim = check_positive_int("memory_size", memory_size), check_positive_int("memory_dim", memory_dim)
        reads = check_positive_int("num_read_heads", num_read_heads)
        writes = check_positive_int("num_write_heads", num_write_heads)
        if 2 * check_positive_int("max_shift", max_shift) + 1 > size:
            raise ValueError(f"max_shift must be at most (memory_size - 1) / 2, got {max_shift} and {memory_size}")
        self.reads, self.writes, self.max_shift, heads = reads, writes, max_shift, reads + writes
        self.input_proj = nn.Linear(input_dim, 4 * hidden_dim)  # gates i, f, g, o
        self.state_proj = nn.Linear(reads * dim + hidden_dim, 4 * hidden_dim, bias=False)
        self.sizes = [heads * dim, heads, heads, heads, heads * (2 * max_shift + 1), writes * dim, writes * dim]
        self.head_proj = nn.Linear(hidden_dim, sum(self.sizes))  # k, β, γ, g, s, e, a
        start = torch.zeros(heads, size)
        start[:, 0] = FOCUS
        self.weights = nn.Parameter(start)  # at the start, before a softmax
        if check_bool("learned_memory", learned_memory):
            self.memory = nn.Parameter(torch.randn(size, dim) * dim**-0.5)
        else:
            self.register_buffer("memory", torch.full((size, dim), INITIAL))

    def start(self, batch: int, state: NTMState | None = None) -> NTMState:
        """The state before the first step: the one that is given, or the cell's own."""
        if state is not None:
            check_shape("memory of state", state.memory, (batch, *self.memory.shape))
            check_shape("weights of state", state.weights, (batch, *self.weights.shape))
            return state
        memory = self.memory.expand(batch, -1, -1)
        weights = torch.softmax(self.weights, 1).expand(batch, -1, -1)
        zeros = memory.new_zeros(batch, self.hidden_dim)
        return NTMState(memory, weights, weights[:, : self.reads] @ memory, zeros, zeros)

    def forward(self, x: Tensor, state: NTMState | None = None) -> NTMState:
        check_shape("x", x, ("B", self.input_dim))
        return self.step(self.input_proj(x), self.start(x.shape[0], state))

    def step(self, x_gates: Tensor, state: NTMState) -> NTMState:
        """x_gates (B, 4H): `input_proj` of x, which for all steps is one product."""
        gates = x_gates + self.state_proj(torch.cat([state.read.flatten(1), state.hidden], 1))
        i, f, g, o = gates.chunk(4, 1)
        cell = torch.sigmoid(f) * state.cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        params = self.head_proj(hidden).to(state.memory.dtype)  # under autocast it is another
        key, strength, sharpness, gate, shift, erase, add = params.split(self.sizes, 1)

        weights = content_weights(state.memory, key.unflatten(1, (-1, state.memory.shape[2])), F.softplus(strength))
        weights = torch.lerp(state.weights, weights, torch.sigmoid(gate)[..., None])
        weights = circular_convolution(weights, torch.softmax(shift.unflatten(1, (-1, 2 * self.max_shift + 1)), 2))
        weights = sharpen(weights, 1.0 + F.softplus(sharpness))

        reading, writing = weights.split([self.reads, self.writes], 1)
        memory = state.memory
        for w, e in zip(writing.unbind(1), torch.sigmoid(erase).chunk(self.writes, 1), strict=True):
            memory = torch.addcmul(memory, memory, w[:, :, None] @ e[:, None], value=-1)
        memory = memory + writing.transpose(1, 2) @ torch.tanh(add).unflatten(1, (self.writes, -1))
        return NTMState(memory, weights, reading @ state.memory, hidden, cell)


class NTMEncoder(nn.Module):
    """A Neural Turing Machine over a sequence, as an encoder: an `NTMCell` at every step.

    Args: those of `NTMCell`.

    Shape: x (B, T, E), lengths None or integers (B,), where more than T is T. Gives a Memory: values (B, T, D),
    D = R·M + H, what was read and the controller's state, [r_t; h_t], zeros behind the end; mask, of the lengths;
    pooled (B, D), that after the true last step. Padding may hold anything. A row without a step has zeros.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 100,
        memory_size: int = 128,
        memory_dim: int = 20,
        *,
        num_read_heads: int = 1,
        num_write_heads: int = 1,
        max_shift: int = 1,
        learned_memory: bool = False,
    ) -> None:
        super().__init__()
        self.cell = NTMCell(
            input_dim, hidden_dim, memory_size, memory_dim, num_read_heads=num_read_heads,
            num_write_heads=num_write_heads, max_shift=max_shift, learned_memory=learned_memory,
        )  # fmt: skip
        self.dim = num_read_heads * memory_dim + hidden_dim
        self.pooling = LastState()

    def states(self, x: Tensor, state: NTMState | None = None) -> list[NTMState]:
        """After each step, T of them: what stood in the memory, and where the heads were."""
        check_shape("x", x, ("B", "T", self.cell.input_dim))
        state, states = self.cell.start(x.shape[0], state), []
        for x_gates in self.cell.input_proj(x).unbind(1):
            state = self.cell.step(x_gates, state)
            states.append(state)
        return states

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Memory:
        check_shape("x", x, ("B", "T", self.cell.input_dim))
        mask = None
        if lengths is not None:
            check_lengths(lengths, x)
            mask = length_mask(lengths, x.shape[1])
        x = mask_padding("x", x, mask, self.cell.input_dim)
        found = [torch.cat([state.read.flatten(1), state.hidden], 1) for state in self.states(x)]
        values = torch.stack(found, 1) if found else x.new_zeros(*x.shape[:2], self.dim)
        values = mask_padding("values", values, mask, self.dim)
        return Memory(values, mask, self.pooling(values, mask))
