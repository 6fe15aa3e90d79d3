"""The plain attention decoder, as people write it: a loop over steps of additive attention and a recurrent cell.

Bahdanau et al. 2015 (https://arxiv.org/abs/1409.0473); the context gate is that of Xu et al. 2015
(https://arxiv.org/abs/1502.03044). The explicit formulas are in hybridops/formulas/attention_decoder.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hybridops.checks import (
    accumulation_dtype,
    broadcast_mask,
    check_bool,
    check_choice,
    check_lengths,
    check_pair,
    check_positive_int,
    check_shape,
)
from hybridops.reference.additive_attention import AdditiveAttention, PreparedKeys
from hybridops.reference.unbatched import is_unbatched, of_one

CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}
LOCATIONS = ("convolution", "coverage")

States = Tensor | tuple[Tensor, Tensor]  # of a GRU h, of an LSTM (h, c)


@dataclass(frozen=True, eq=False)
class DecoderState:
    """Where decoding stands: what `AttentionDecoder.start` and `.step` give, and `.step` takes.

    There are m rows for each of the B entries of the memory, next to each other, m = 1 after `start`.
    """

    keys: PreparedKeys  # of the memory, B entries
    h: Tensor  # (m·B, H)
    c: Tensor | None  # (m·B, H), None: a GRU
    context: Tensor  # (m·B, D), of the step before
    history: Tensor | None = None  # (m·B, 2, T), the weights of the step before and the sum of all; None: no location
    vocabulary: nn.Module | None = None  # what `start` was given

    def logits(self, output: Tensor) -> Tensor:
        """Of an output (m·B, H): what the vocabulary that `start` was given makes of it."""
        if self.vocabulary is None:
            raise ValueError("vocabulary must be given to start, for logits; got None")
        scores: Tensor = self.vocabulary(output)
        return scores

    def likeliest(self, output: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` largest log-probabilities of the logits, or all, (m·B, count) in float32 or float64, the largest
        first, and which words they are of, int64.
        """
        return likeliest(self.logits(output), count)

    def reorder(self, index: Tensor) -> DecoderState:
        """The rows at `index` (m'·B,): the beams of a search that go on.

        They stay with the memory of their entry, which is not copied: index // m has to be 0 ... 0, 1 ... 1, ..., each
        m' times.

        Raises:
            ValueError: the rows of an entry are not next to each other, or not as many as of the others.
        """
        batch = self.keys.key.shape[0]
        _check_index(index)
        if batch == 0 or index.shape[0] % batch:
            raise ValueError(f"index must have a multiple of the {batch} entries of the memory, got {index.shape[0]}")
        entries = torch.arange(batch, device=index.device).repeat_interleave(index.shape[0] // batch)
        if not torch.compiler.is_compiling() and not torch.equal(index // (self.h.shape[0] // batch), entries):
            raise ValueError("index must have the rows of each entry of the memory in turn, got others between them")
        return self._rows(index)

    def select(self, index: Tensor) -> DecoderState:
        """The entries at `index` of the memory, with all their rows: the sentences that are not finished."""
        _check_index(index)
        count = self.h.shape[0] // max(self.keys.key.shape[0], 1)
        rows = (index[:, None] * count + torch.arange(count, device=index.device)).flatten()
        return replace(self._rows(rows), keys=self.keys.index_select(index))

    def _rows(self, index: Tensor) -> DecoderState:
        c, history = (None if t is None else t.index_select(0, index) for t in (self.c, self.history))
        h, context = self.h.index_select(0, index), self.context.index_select(0, index)
        return replace(self, h=h, c=c, context=context, history=history)


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of logits (R, V), as `DecoderState.likeliest`."""
    check_positive_int("count", count)
    log_probabilities = logits.to(accumulation_dtype(logits.dtype)).log_softmax(1)
    values, words = log_probabilities.topk(min(count, logits.shape[1]))
    return values, words


class AttentionDecoder(nn.Module):
    """A recurrent decoder with additive attention over a memory, given its inputs (teacher forcing).

        q_s = W_q h'                                      h' = h_{s-1} (query "previous") or h_s (query "current")
        α_s = softmax_t(v · act(q_s + W_k memory_t))      c_s = Σ_t α_s,t memory_t [∘ σ(W_β h' + b_β)]
        h_s = LSTM or GRU of [x_s; c'] and h_{s-1}        c' = c_s (query "previous") or c_{s-1} (query "current")

    Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473 (query "previous"); Luong et al. 2015,
    https://arxiv.org/abs/1508.04025, with input feeding (query "current"; c_0 is zero); the context gate is that of Xu
    et al. 2015, https://arxiv.org/abs/1502.03044.

    Args:
        input_dim, hidden_dim, memory_dim, attn_dim: channels E of x, H of h, D of the memory, A of the sum in act.
        cell: "lstm" or "gru".
        query: "previous" or "current".
        num_heads: of the attention, as in `AdditiveAttention`; D and A are multiples of it, and the weights means.
        activation: "tanh", "relu" or "leaky_relu".
        context_gate: whether there is one.
        dropout: probability with which a weight α is zeroed in training, as in `AdditiveAttention`.
        location: what the scores see of the weights before, f inside act: q_s + W_k memory_t + W_f f_s,t. "convolution"
            (Shen et al. 2018, https://arxiv.org/abs/1712.05884): f_s is a convolution of α_{s-1} and Σ_{j<s} α_j;
            "coverage" (See et al. 2017, https://arxiv.org/abs/1704.04368): f_s = Σ_{j<s} α_j; None: nothing.
        location_filters, location_kernel: channels of that convolution, and its size along the memory, which is odd.

    Parameters: `attention.query_proj.weight` (A, H), `attention.key_proj.weight` (A, D), `attention.v.weight` (1, A);
    `cell.weight_ih` (4H or 3H, E+D), the columns of x first, `cell.weight_hh`, `cell.bias_ih`, `cell.bias_hh` in the
    order of `nn.LSTMCell` or `nn.GRUCell`; `context_gate.weight` (D, H), `context_gate.bias` (D) if there is one. With
    several heads `attention.v.weight` is (num_heads, A / num_heads). For "convolution" `location_conv.weight` (F, 2,
    K), the weights before first and their sum second; with a location `location_proj.weight` (A, F), F = 1 for
    "coverage".

    Shape: x (B, S, E), memory (B, T, D), hx None = zeros or (h, c) of an LSTM, h of a GRU, each (B, H); mask None or
    boolean, True = may be attended, (B, T) or broadcastable to it; lengths None or integers (B,). Gives output (B, S,
    H), the h_s; the state after the last step, like hx; context (B, S, D), the c_s; weights (B, S, T) after dropout,
    or None if not needed. All are of one dtype, floating-point. All may be without B.

    Padding may hold anything: what is behind the mask does not count, and a row that may attend nothing has zero
    weights and a zero context; at step lengths[b] and those after it row b keeps its state, gives zeros, and its x
    does not count.

    Decoding: `start` projects the memory, `step` makes a step; `DecoderState` has `reorder` and `select` for searches.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    attention_type: type[AdditiveAttention] = AdditiveAttention

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        memory_dim: int,
        attn_dim: int,
        *,
        cell: str = "lstm",
        query: str = "previous",
        num_heads: int = 1,
        activation: str = "tanh",
        context_gate: bool = False,
        dropout: float = 0.0,
        location: str | None = None,
        location_filters: int = 32,
        location_kernel: int = 31,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_dim = check_positive_int("input_dim", input_dim)
        self.hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        self.memory_dim = check_positive_int("memory_dim", memory_dim)
        self.cell_kind = check_choice("cell", cell, tuple(CELLS))
        self.query = check_choice("query", query, ("previous", "current"))
        num_heads = check_positive_int("num_heads", num_heads)
        if self.memory_dim % num_heads:
            raise ValueError(f"memory_dim must be a multiple of num_heads, {num_heads}, got {memory_dim}")
        self.attention = self.attention_type(
            self.hidden_dim, self.memory_dim, attn_dim, num_heads=num_heads, activation=activation, dropout=dropout,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.cell = CELLS[cell](self.input_dim + self.memory_dim, self.hidden_dim, device=device, dtype=dtype)
        self.context_gate: nn.Linear | None = None
        if check_bool("context_gate", context_gate):
            self.context_gate = nn.Linear(self.hidden_dim, self.memory_dim, device=device, dtype=dtype)
        self.location = location if location is None else check_choice("location", location, LOCATIONS)
        self.location_conv: nn.Conv1d | None = None
        self.location_proj: nn.Linear | None = None
        filters = check_positive_int("location_filters", location_filters)
        size = check_positive_int("location_kernel", location_kernel)
        if size % 2 == 0:
            raise ValueError(f"location_kernel must be odd, got {size}")
        if location == "convolution":
            self.location_conv = nn.Conv1d(2, filters, size, padding=size // 2, bias=False, device=device, dtype=dtype)
        if location is not None:
            filters = 1 if location == "coverage" else filters
            self.location_proj = nn.Linear(filters, attn_dim, bias=False, device=device, dtype=dtype)

    @property
    def input_size(self) -> int:
        """`input_dim`, as `nn.LSTM` calls it."""
        return self.input_dim

    @property
    def hidden_size(self) -> int:
        """`hidden_dim`, as `nn.LSTM` calls it."""
        return self.hidden_dim

    def reset_parameters(self) -> None:
        for part in (self.attention, self.cell, self.context_gate, self.location_conv, self.location_proj):
            if part is not None:
                part.reset_parameters()

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        hx: States | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, States, Tensor, Tensor | None]:
        if is_unbatched(x, 2):
            return of_one(self.forward, x, memory, hx, mask=mask, lengths=lengths, need_weights=need_weights)
        check_shape("x", x, ("B", "S", self.input_dim))
        memory, mask = self._check_memory(memory, mask, x.shape[0])
        h, c = self._check_states(hx, memory)
        if lengths is not None:
            check_lengths(lengths, x)
        return self._run(x, memory, h, c, mask, lengths, need_weights)

    def start(
        self,
        memory: Tensor,
        hx: States | None = None,
        *,
        mask: Tensor | None = None,
        vocabulary: nn.Module | None = None,
    ) -> DecoderState:
        """What decoding starts from: the memory is projected, once for all steps.

        Args:
            memory, hx, mask: as in `forward`.
            vocabulary: what makes logits of an output, as a rule an `nn.Linear`, for `DecoderState.logits`.
        """
        memory, mask = self._check_memory(memory, mask, None)
        return replace(self._start(memory, *self._check_states(hx, memory), mask), vocabulary=vocabulary)

    def step(self, x: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, Tensor, DecoderState]:
        """One step.

        Args:
            x: (m·B, E), a row for each of the state's.
            state: what `start` or the step before gave. It is not changed, and may serve again.

        Returns:
            output (m·B, H), context (m·B, D), weights (m·B, T), and the state after the step.
        """
        if not isinstance(state, DecoderState):
            raise TypeError(f"state must be what start or step gave, got {type(state).__name__}")
        check_shape("x", x, (state.h.shape[0], self.input_dim))
        context, weights, state = self._step(x, state, True)
        assert weights is not None
        return state.h, context, weights, state

    # ------------------------------------------------------------------------------------------ of checked arguments

    def _run(
        self,
        x: Tensor,  # (B, S, E)
        memory: Tensor,  # (B, T, D), zeros behind the mask
        h: Tensor,  # (B, H)
        c: Tensor | None,  # (B, H)
        mask: Tensor | None,  # (B, T)
        lengths: Tensor | None,  # (B)
        need_weights: bool,
    ) -> tuple[Tensor, States, Tensor, Tensor | None]:
        if lengths is not None:  # zeros, not NaN times a gradient of zero
            x = x.masked_fill((torch.arange(x.shape[1], device=x.device) >= lengths[:, None])[..., None], 0.0)
        state = self._start(memory, h, c, mask)
        outputs: list[Tensor] = []
        contexts: list[Tensor] = []
        all_weights: list[Tensor] = []
        for s, x_s in enumerate(x.unbind(1)):
            context, weights, new = self._step(x_s, state, need_weights)
            output = new.h
            if lengths is not None:
                alive = (lengths > s)[:, None]
                output, context = torch.where(alive, output, 0.0), torch.where(alive, context, 0.0)
                weights = None if weights is None else torch.where(alive, weights, 0.0)
                h = torch.where(alive, new.h, state.h)
                c = None if new.c is None or state.c is None else torch.where(alive, new.c, state.c)
                new = replace(new, h=h, c=c)
            state = new
            outputs.append(output)
            contexts.append(context)
            if weights is not None:
                all_weights.append(weights)
        states = state.h if state.c is None else (state.h, state.c)
        if not outputs:
            weights = x.new_empty(x.shape[0], 0, memory.shape[1]) if need_weights else None
            return x.new_empty(x.shape[0], 0, self.hidden_dim), states, memory[:, :0].clone(), weights
        weights = torch.stack(all_weights, 1) if need_weights else None
        return torch.stack(outputs, 1), states, torch.stack(contexts, 1), weights

    def _start(self, memory: Tensor, h: Tensor, c: Tensor | None, mask: Tensor | None) -> DecoderState:
        keys = self.attention.prepare(memory, mask=mask)
        history = None if self.location is None else memory.new_zeros(memory.shape[0], 2, memory.shape[1])
        return DecoderState(keys, h, c, memory.new_zeros(memory.shape[0], self.memory_dim), history)

    def _step(self, x: Tensor, state: DecoderState, need_weights: bool) -> tuple[Tensor, Tensor | None, DecoderState]:
        """context (B, D), weights (B, T) or None, the state after the step."""
        need_weights = need_weights or state.history is not None
        if self.query == "previous":
            context, weights = self._attend(state.h, state, need_weights)
            h, c = self._call_cell(x, context, state)
        else:
            h, c = self._call_cell(x, state.context, state)
            context, weights = self._attend(h, state, need_weights)
        history = state.history
        if history is not None and weights is not None:
            history = torch.stack([weights, history[:, 1] + weights], 1)
        return context, weights, replace(state, h=h, c=c, context=context, history=history)

    def _call_cell(self, x: Tensor, context: Tensor, state: DecoderState) -> tuple[Tensor, Tensor | None]:
        inputs = torch.cat([x, context], 1)
        return self.cell(inputs, (state.h, state.c)) if state.c is not None else (self.cell(inputs, state.h), None)

    def _attend(self, h: Tensor, state: DecoderState, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        if state.history is None:
            context, weights = self.attention(h, state.keys, need_weights=need_weights)
        else:
            context, weights = self._attend_by_location(h, state.keys, state.history)
        if self.context_gate is not None:
            context = torch.sigmoid(self.context_gate(h)) * context
        return context, weights

    def _attend_by_location(self, h: Tensor, keys: PreparedKeys, history: Tensor) -> tuple[Tensor, Tensor | None]:
        """context (m·B, D) and weights (m·B, T) of keys of which each row has its own."""
        batch, count = keys.key.shape[0], h.shape[0]
        if count != batch:
            keys = keys.index_select(torch.arange(batch, device=h.device).repeat_interleave(count // batch))
        assert self.location_proj is not None
        seen = history[:, 1:] if self.location_conv is None else self.location_conv(history)  # (m·B, F, T)
        moved = keys.key + self.location_proj(seen.transpose(1, 2))
        context, weights = self.attention(h, PreparedKeys(moved, keys.value, keys.mask))
        return context, weights

    # -------------------------------------------------------------------------------------------------- the arguments

    def _check_memory(self, memory: Tensor, mask: Tensor | None, batch: int | None) -> tuple[Tensor, Tensor | None]:
        """The memory with zeros behind the mask, so that not even NaN counts there; the mask, (B, T)."""
        check_shape("memory", memory, ("B" if batch is None else batch, "T", self.memory_dim))
        if mask is None:
            return memory, None
        mask = broadcast_mask(mask, memory.shape[0], 1, memory.shape[1])[:, 0].expand(memory.shape[:2])
        return memory.masked_fill(~mask[..., None], 0.0), mask

    def _check_states(self, hx: States | None, memory: Tensor) -> tuple[Tensor, Tensor | None]:
        """h, and c or None."""
        shape = (memory.shape[0], self.hidden_dim)
        if hx is None:
            return memory.new_zeros(shape), None if self.cell_kind == "gru" else memory.new_zeros(shape)
        if self.cell_kind == "gru":
            check_shape("hx", hx, shape)
            assert isinstance(hx, Tensor)
            return hx, None
        check_pair("hx", hx)
        for name, state in zip(("h of hx", "c of hx"), hx, strict=True):
            check_shape(name, state, shape)
        return hx[0], hx[1]

    def extra_repr(self) -> str:
        return f"query={self.query!r}"


def _check_index(index: Tensor) -> None:
    check_shape("index", index, ("rows",))
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"index must be a tensor of int64 or int32, got {index.dtype}")
