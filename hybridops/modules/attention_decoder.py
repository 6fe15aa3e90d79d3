"""FusedAttentionDecoder: the plain module's parameters and calls; all steps of a sequence in one fused function."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.checks import check_positive_int
from hybridops.modules.additive_attention import (
    FusedAdditiveAttention,
    are_as_they_stand,
    exponentials_of,
    reason_not_a_row,
)
from hybridops.modules.parts import check_backend, reason_not_plain, recompute_weights, runs_plain, settings
from hybridops.reference.additive_attention import AdditiveAttention, PreparedKeys
from hybridops.reference.attention_decoder import CELLS, AttentionDecoder, DecoderState, States


@dataclass(frozen=True, eq=False)
class FusedDecoderState(DecoderState):
    """DecoderState with weights as the back end reads them, where it has a use for them."""

    packed: HF.PackedDecoder | None = None  # of a step
    packed_vocabulary: HF.PackedLinear | None = None

    def logits(self, output: Tensor) -> Tensor:
        """Of an output (m·B, H): what the vocabulary that `start` was given makes of it, with its weights as at `start`
        where they were packed. One that has a hook by now is called.
        """
        scores = None
        if self.packed_vocabulary is not None and _may_be_read(self.vocabulary):
            scores = HF.linear_packed(output, self.packed_vocabulary)
        return super().logits(output) if scores is None else scores

    def likeliest(self, output: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Where the vocabulary was packed and count² is not above its size, in one op, which rounds no logits to half
        precision; of equal ones, the first word comes first.
        """
        found = None
        if self.packed_vocabulary is not None and _may_be_read(self.vocabulary):
            check_positive_int("count", count)
            found = HF.likeliest_packed(output, self.packed_vocabulary, count)
        return super().likeliest(output, count) if found is None else found


def _may_be_read(vocabulary: nn.Module | None) -> bool:
    return isinstance(vocabulary, nn.Linear) and are_as_they_stand(vocabulary)


class FusedAttentionDecoder(AttentionDecoder):
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
        num_heads: of the attention, as in `FusedAdditiveAttention`; D and A are multiples of it, and the weights means.
        activation: "tanh", "relu" or "leaky_relu".
        context_gate: whether there is one.
        dropout: probability with which a weight α is zeroed in training, as in `FusedAdditiveAttention`.
        location: what the scores see of the weights before, f inside act: q_s + W_k memory_t + W_f f_s,t. "convolution"
            (Shen et al. 2018, https://arxiv.org/abs/1712.05884): f_s is a convolution of α_{s-1} and Σ_{j<s} α_j;
            "coverage" (See et al. 2017, https://arxiv.org/abs/1704.04368): f_s = Σ_{j<s} α_j; None: nothing.
        location_filters, location_kernel: channels of that convolution, and its size along the memory, which is odd.
        backend: "reference", "native", "triton", or None for the fastest that takes the inputs.

    Parameters: those of `reference.AttentionDecoder`, and the same state dict: `attention.query_proj.weight` (A, H),
    `attention.key_proj.weight` (A, D), `attention.v.weight` (1, A); `cell.weight_ih` (4H or 3H, E+D), the columns of x
    first, `cell.weight_hh`, `cell.bias_ih`, `cell.bias_hh` in the order of `nn.LSTMCell` or `nn.GRUCell`;
    `context_gate.weight` (D, H), `context_gate.bias` (D) if there is one. With several heads `attention.v.weight` is
    (num_heads, A / num_heads). For "convolution" `location_conv.weight` (F, 2, K), the weights before first and their
    sum second; with a location `location_proj.weight` (A, F), F = 1 for "coverage".

    Shape: x (B, S, E), memory (B, T, D), hx None = zeros or (h, c) of an LSTM, h of a GRU, each (B, H); mask None or
    boolean, True = may be attended, (B, T) or broadcastable to it; lengths None or integers (B,). Gives output (B, S,
    H), the h_s; the state after the last step, like hx; context (B, S, D), the c_s; weights (B, S, T) after dropout,
    or None if not needed. All are of one dtype: float32, float64, bfloat16 or float16; sums and the cell are kept in
    float32 at least. All may be without B.

    Padding may hold anything: what is behind the mask does not count, and a row that may attend nothing has zero
    weights and a zero context; at step lengths[b] and those after it row b keeps its state, gives zeros, and its x
    does not count.

    Fused: `functional.attention_decoder` runs it, on the weights of its parts; `attention.key_proj` is called. Where
    another part is more than its weights (another class, hooks, a forward of its own), the plain forward runs, through
    the parts; a back end that was named then raises. So it is with several heads: a loop over the steps of the fused
    attention and the cell. With a location, the loop over the steps is one of PyTorch's operations on the back end's
    scores.

    Decoding: `start` projects the memory and takes the exponentials of its keys, once, and without gradients it may
    pack the weights, those of a vocabulary too: they count as they are then. `step` is one op on those, for all rows of
    an entry of the memory, or a step of the plain loop on the fused attention (in training, with several heads or a
    location: there weights count as they are at the step). `DecoderState` has `logits`, and `reorder` and `select` for
    searches.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
        RuntimeError: a back end was named that is not here, or does not take the inputs.
    """

    attention: FusedAdditiveAttention
    attention_type = FusedAdditiveAttention
    backend: str | None = None  # a class attribute too: `fuse` makes this class of modules whose __init__ knew none

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
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_dim, hidden_dim, memory_dim, attn_dim, cell=cell, query=query, num_heads=num_heads,
            activation=activation, context_gate=context_gate, dropout=dropout, location=location,
            location_filters=location_filters, location_kernel=location_kernel, device=device, dtype=dtype,
        )  # fmt: skip
        self.backend = self.attention.backend = check_backend(backend)

    def extra_repr(self) -> str:
        return settings(super().extra_repr(), backend=self.backend)

    def _run(
        self,
        x: Tensor,
        memory: Tensor,
        h: Tensor,
        c: Tensor | None,
        mask: Tensor | None,
        lengths: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, States, Tensor, Tensor | None]:
        attention, cell, gate = self.attention, self.cell, self.context_gate
        if runs_plain("attention_decoder", self.backend, x, self._reasons()):
            return super()._run(x, memory, h, c, mask, lengths, need_weights)
        projection, v = attention.query_proj, attention.v
        recompute_weights(*(part for part in (projection, v, cell, gate) if part is not None))
        return HF.attention_decoder(
            x, attention.key_proj(memory), memory, v.weight[0], h if c is None else (h, c), projection.weight,
            cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, bias_q=projection.bias,
            weight_gate=None if gate is None else gate.weight, bias_gate=None if gate is None else gate.bias,
            mask=mask, lengths=lengths, location=self._location_weight(), cell=self.cell_kind, query=self.query,
            scale=attention.scale,
            activation=attention.activation, negative_slope=attention.negative_slope,
            dropout_p=attention.dropout if attention.training else 0.0, return_weights=need_weights,
            backend=self.backend,
        )  # fmt: skip

    def start(
        self,
        memory: Tensor,
        hx: States | None = None,
        *,
        mask: Tensor | None = None,
        vocabulary: nn.Module | None = None,
    ) -> DecoderState:
        """What decoding starts from: the memory is projected, and the weights of a step packed, once for all steps.

        Args:
            memory, hx, mask: as in `forward`.
            vocabulary: what makes logits of an output, as a rule an `nn.Linear`, for `DecoderState.logits`.
        """
        state = super().start(memory, hx, mask=mask, vocabulary=vocabulary)
        packed = packed_vocabulary = None
        if isinstance(vocabulary, nn.Linear) and _may_be_read(vocabulary):
            packed_vocabulary = HF.pack_linear(vocabulary.weight, vocabulary.bias, backend=self.backend)
        if self._step_reads_weights():
            attention, cell, gate = self.attention, self.cell, self.context_gate
            packed = HF.pack_decoder_weights(
                memory, attention.v.weight[0], attention.query_proj.weight, attention.query_proj.bias, cell.weight_ih,
                cell.weight_hh, cell.bias_ih, cell.bias_hh, None if gate is None else gate.weight,
                None if gate is None else gate.bias, cell=self.cell_kind, backend=self.backend,
            )  # fmt: skip
        kept = (state.keys, state.h, state.c, state.context, state.history, vocabulary)
        return FusedDecoderState(*kept, packed, packed_vocabulary)

    def _step(self, x: Tensor, state: DecoderState, need_weights: bool) -> tuple[Tensor, Tensor | None, DecoderState]:
        packed = getattr(state, "packed", None)
        if packed is None or not self._step_reads_weights():
            return super()._step(x, state, need_weights)
        attention, keys = self.attention, state.keys
        out = HF.attention_decoder_step(
            x, state.h, state.c, state.context, keys.key, keys.value, packed,
            mask=None if keys.mask is None else keys.mask[:, 0], prepared=exponentials_of(keys, 1)[0],
            query=self.query, scale=attention.scale, activation=attention.activation,
            negative_slope=attention.negative_slope, backend=self.backend,
        )  # fmt: skip
        if out is None:
            return super()._step(x, state, need_weights)
        h, c, context, weights = out
        return context, weights, replace(state, h=h, c=c, context=context)

    def _attend_by_location(self, h: Tensor, keys: PreparedKeys, history: Tensor) -> tuple[Tensor, Tensor | None]:
        attention, weight = self.attention, self._location_weight()
        reasons = self._reasons()
        del reasons["cell"]  # which is called
        dropped = attention.training and attention.dropout
        if weight is None or any(reasons.values()) or dropped or h.shape[0] != keys.key.shape[0]:
            return super()._attend_by_location(h, keys, history)
        recompute_weights(attention.v)
        context, alpha = HF.location_attention(
            attention.query_proj(h)[:, None], keys.key, keys.value, attention.v.weight[0],
            history[:, 2 - weight.shape[1] :], weight, mask=keys.mask, scale=attention.scale,
            activation=attention.activation, negative_slope=attention.negative_slope, backend=self.backend,
        )  # fmt: skip
        return context[:, 0], alpha[:, 0]

    def _location_weight(self) -> Tensor | None:
        """(A, C, K): filters and projection as one convolution, C = 1 for the sum alone; None: no location."""
        conv, proj = self.location_conv, self.location_proj
        if proj is None:
            return None
        recompute_weights(proj)
        if conv is None:
            return proj.weight[..., None]
        recompute_weights(conv)
        return torch.einsum("af,fck->ack", proj.weight, conv.weight)

    def _step_reads_weights(self) -> bool:
        """Whether the parts may be read, not called, and no hook computes a weight, nor dropout drops any."""
        attention = self.attention
        if self.location is not None or any(self._reasons().values()) or (attention.training and attention.dropout):
            return False
        parts = (attention.query_proj, attention.v, self.cell, self.context_gate)
        return not any(part._forward_pre_hooks for part in parts if part is not None)

    def _reasons(self) -> dict[str, str | None]:
        """Of each part that would not be called: why it has to be, or None."""
        attention = self.attention
        reasons = {
            "attention": reason_not_plain(attention, (FusedAdditiveAttention, AdditiveAttention)),
            "cell": reason_not_plain(self.cell, (CELLS[self.cell_kind],)),
        }
        if reasons["attention"] is None and attention.num_heads > 1:
            reasons["attention"] = f"has {attention.num_heads} heads"
        if self.location_conv is not None:
            reasons["location_conv"] = reason_not_plain(self.location_conv, (nn.Conv1d,))
        if self.location_proj is not None:
            reasons["location_proj"] = reason_not_plain(self.location_proj, (nn.Linear,))
        if self.context_gate is not None:
            reasons["context_gate"] = reason_not_plain(self.context_gate, (nn.Linear,))
        if reasons["attention"] is None:
            reasons["query_proj"] = reason_not_plain(attention.query_proj, (nn.Linear,))
            reasons["v"] = reason_not_a_row(attention.v)
        return reasons
