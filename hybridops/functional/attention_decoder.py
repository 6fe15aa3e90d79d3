"""The attention decoder's public function, and its step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridops import autograd, backends
from hybridops.autograd.attention_decoder import Selection, StepwiseDecoder, Weights, bias_of_x
from hybridops.checks import (
    ACTIVATIONS,
    accumulation_dtype,
    broadcast_mask,
    check_broadcastable,
    check_choice,
    check_dtypes,
    check_lengths,
    check_like,
    check_number,
    check_pair,
    check_shape,
)
from hybridops.contract import Activation, AttentionDecoderImpl, DecoderOptions
from hybridops.formulas.attention_decoder import CELLS, GATES, QUERIES
from hybridops.functional.additive_attention import PreparedExponentials, check_prepared
from hybridops.functional.attended_keys import attended_keys
from hybridops.functional.autocast import cast_by_autocast, without_autocast
from hybridops.functional.linear import PackedLinear, linear_packed, may_be_packed, pack_linear, step_map

States = Tensor | tuple[Tensor, Tensor]  # of a GRU h, of an LSTM (h, c)


def attention_decoder(
    x: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    hx: States | None,
    weight_q: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    bias_q: Tensor | None = None,
    weight_gate: Tensor | None = None,
    bias_gate: Tensor | None = None,
    context0: Tensor | None = None,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    lengths: Tensor | None = None,
    location: Tensor | None = None,
    cell: str = "lstm",
    query: str = "previous",
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, States, Tensor, Tensor | None]:
    """All steps of a recurrent decoder with additive attention, given its inputs (teacher forcing).

    Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473; the context gate is that of Xu et al. 2015,
    https://arxiv.org/abs/1502.03044.

        q_s   = W_q h' + b_q                             h' = h_{s-1} (query "previous") or h_s (query "current")
        α_s,t = softmax_t(scale Σ_a v_a act(q_s,a + key_t,a) + score_bias_s,t) where mask is True, 0 elsewhere
        c_s   = Σ_t α_s,t value_t [∘ σ(W_β h' + b_β)]    c' = c_s (query "previous") or c_{s-1} (query "current")
        h_s   = LSTM or GRU of [x_s; c'] and h_{s-1}     as `torch.nn.LSTMCell` and `torch.nn.GRUCell` compute it

    Args:
        x: (B, S, E).
        key: (B, T, A), projected.
        value: (B, T, D). Behind a mask it has to be finite, as key.
        v: (A,).
        hx: before the first step, (h, c) of an LSTM, h of a GRU, each (B, H) in any floating-point dtype; None = zeros.
        weight_q, bias_q: (A, H), (A,): the projection of the query.
        weight_ih: (GH, E+D), the columns of x first; G = 4 gates i, f, g, o of an LSTM, or 3 gates r, z, n of a GRU.
        weight_hh, bias_ih, bias_hh: (GH, H), (GH,), (GH,).
        weight_gate, bias_gate: (D, H), (D,): W_β and b_β of the context gate; None: there is none.
        context0: (B, D), the context before the first step, of query "current" alone; None = zeros.
        mask: boolean, True = may be attended, (B, T) or broadcastable to it. A row that may attend nothing has zero
            weights, a zero context, and zero gradients from there.
        score_bias: broadcastable to (B, S, T).
        lengths: (B,), integers: at step lengths[b] and those after it row b keeps its state, and gives zeros, whatever
            its x.
        location: (A, C, K), K odd, for attention that sees its weights before, by a convolution over t: at step s it
            adds to key that of α_{s-1} and Σ_{j<s} α_j for C = 2 (Shen et al. 2018, https://arxiv.org/abs/1712.05884,
            whose filters and projection are one here), or of the sum for C = 1 (with K = 1 the coverage of See et al.
            2017, https://arxiv.org/abs/1704.04368). No back end has that in its op: the loop is of PyTorch's
            operations, on the scores of the back end.
        cell: "lstm" or "gru".
        query: "previous" or "current".
        scale, activation, negative_slope: as in `additive_attention`.
        dropout_p: probability with which a weight is zeroed, the others being scaled up; 0 in evaluation. It is drawn
            step by step, by PyTorch's generator.
        return_weights: whether to return α too: after dropout, the weights that made the contexts.
        backend: "reference", "native", "triton", or None for the fastest that takes these arguments.

    Returns:
        output (B, S, H), the h_s; the state after the last step, (h_n, c_n) of an LSTM, h_n of a GRU, each (B, H), c_n
        in the dtype of the c given, else of x; context (B, S, D), the c_s; and α (B, S, T) or None.
    """
    check_choice("cell", cell, CELLS)
    check_choice("query", query, QUERIES)
    if hx is not None and cell == "lstm":
        check_pair("hx", hx)
    pairs, hidden, width = _check_decoder(x, key, value, v, hx, weight_q, weight_ih, weight_hh, cell)
    h0, c0 = _split_states(hx)
    _check_optional(bias_ih=(bias_ih, weight_ih.shape[:1]), bias_hh=(bias_hh, weight_ih.shape[:1]))
    _check_optional(bias_q=(bias_q, v.shape), weight_gate=(weight_gate, (width, hidden)))
    _check_optional(bias_gate=(bias_gate, (width,)), context0=(context0, (pairs[0], width)))
    if location is not None:
        check_shape("location", location, (*v.shape, "C", "K"))
        if location.shape[1] not in (1, 2) or location.shape[2] % 2 == 0:
            raise ValueError(f"location must have 1 or 2 channels and an odd kernel, got {tuple(location.shape[1:])}")
        if pairs[2] == 0:
            raise ValueError("key must have a position at least where there is a location, got none")
    if weight_gate is None and bias_gate is not None:
        raise ValueError("bias_gate must be None where weight_gate is None, got a tensor")
    if query == "previous" and context0 is not None:
        raise ValueError("context0 must be None where query is 'previous', got a tensor")
    check_choice("activation", activation, ACTIVATIONS)
    check_number("scale", scale)
    check_number("negative_slope", negative_slope)
    check_number("dropout_p", dropout_p, 0.0, 1.0)
    dtype_of_c = x.dtype if c0 is None else c0.dtype
    (
        x, key, value, v, context0, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh, weight_gate, bias_gate,
        location,
    ) = cast_by_autocast(
        x, key, value, v, context0, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh, weight_gate, bias_gate,
        location,
    )  # fmt: skip
    check_dtypes(
        x=x, key=key, value=value, v=v, context0=context0, weight_q=weight_q, bias_q=bias_q, weight_ih=weight_ih,
        weight_hh=weight_hh, bias_ih=bias_ih, bias_hh=bias_hh, weight_gate=weight_gate, bias_gate=bias_gate,
        location=location,
    )  # fmt: skip
    mask = _decoder_mask(mask, x, pairs)
    if score_bias is not None:
        check_broadcastable("score_bias", score_bias, x, pairs, like_name="x")
    if lengths is not None:
        check_lengths(lengths, x)
        lengths = lengths.to(torch.int64)
        # zeros, not NaN times a gradient of zero
        x = x.masked_fill((torch.arange(pairs[1], device=x.device) >= lengths[:, None])[..., None], 0.0)
    acc = accumulation_dtype(x.dtype)
    score_bias = None if score_bias is None else score_bias.to(acc).expand(pairs)
    h0 = x.new_zeros(pairs[0], hidden) if h0 is None else h0.to(x.dtype)
    if cell == "lstm":
        c0 = x.new_zeros(pairs[0], hidden, dtype=acc) if c0 is None else c0.to(acc)
    impl: AttentionDecoderImpl
    if location is None:
        impl = backends.choose("attention_decoder", backend, x)
    else:
        impl = StepwiseDecoder(backends.choose("additive_attention", backend, x), step_map(backend))

    if pairs[1] == 0:
        states = h0.clone() if c0 is None else (h0.clone(), c0.to(dtype_of_c, copy=True))
        weights = x.new_empty(pairs) if return_weights else None
        return x.new_empty(pairs[0], 0, hidden), states, x.new_empty(pairs[0], 0, width), weights
    keep = _kept_weights(dropout_p, value, pairs)
    attended = None
    if location is None and mask is not None:
        attended = attended_keys(impl, mask[:, None], x, key, value, v, h0)
    if attended is not None:
        key, value, mask = attended.of_keys(key), attended.of_keys(value), attended.mask[:, 0]
        score_bias, keep = (None if pair is None else attended.of_pairs(pair) for pair in (score_bias, keep))
    with without_autocast(x):
        output, h_n, c_n, context, weights = autograd.attention_decoder.run(
            impl,
            Weights(
                x, key, value, v, h0, c0, context0, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh,
                weight_gate, bias_gate, score_bias, location,
            ),
            Selection(mask, keep, lengths),
            DecoderOptions(Activation(activation, float(negative_slope)), float(scale), cell, query),
        )  # fmt: skip
    if attended is not None and return_weights:
        weights = attended.all_pairs(weights)
    states = h_n if c_n is None else (h_n, c_n.to(dtype_of_c))
    return output, states, context, weights if return_weights else None


def _split_states(hx: States | None) -> tuple[Tensor | None, Tensor | None]:
    """h and c, where there are; of a GRU h is all there is."""
    return hx if isinstance(hx, (tuple, list)) else (hx, None)


def _check_decoder(
    x: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    hx: States | None,
    weight_q: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    cell: str,
) -> tuple[tuple[int, int, int], int, int]:
    """(B, S, T), H, D."""
    check_shape("x", x, ("B", "S", "E"))
    batch, steps, inputs = x.shape
    check_shape("key", key, (batch, "T", "A"))
    _, keys, width = key.shape
    check_shape("value", value, (batch, keys, "D"))
    check_shape("v", v, (width,))
    check_shape("weight_q", weight_q, (width, "H"))
    hidden, values = weight_q.shape[1], value.shape[2]
    check_shape("weight_ih", weight_ih, (GATES[cell] * hidden, inputs + values))
    check_shape("weight_hh", weight_hh, (GATES[cell] * hidden, hidden))
    states: dict[str, Any] = {} if hx is None else {"hx": hx} if cell == "gru" else {"h of hx": hx[0], "c of hx": hx[1]}
    for name, state in states.items():
        check_shape(name, state, (batch, hidden))
        check_like(name, state, x, dtype=False, like_name="x")
    return (batch, steps, keys), hidden, values


def _check_optional(**tensors: tuple[Tensor | None, Sequence[int]]) -> None:
    for name, (tensor, shape) in tensors.items():
        if tensor is not None:
            check_shape(name, tensor, shape)


def _decoder_mask(mask: Tensor | None, x: Tensor, pairs: tuple[int, int, int]) -> Tensor | None:
    """(B, T)"""
    if mask is None:
        return None
    batch, _, keys = pairs
    mask = broadcast_mask(mask, batch, 1, keys)[:, 0].expand(batch, keys)
    if mask.device != x.device:
        raise ValueError(f"mask must be on the device of x, {x.device}, got {mask.device}")
    return mask


def _kept_weights(dropout_p: float, value: Tensor, pairs: tuple[int, int, int]) -> Tensor | None:
    """(B, S, T), 0 or 1/(1-p); drawn as a loop over the steps draws."""
    if dropout_p == 0:
        return None
    batch, steps, keys = pairs
    ones = value.new_ones(batch, 1, keys)
    return torch.cat([F.dropout(ones, dropout_p) for _ in range(steps)], 1)


class PackedDecoder(NamedTuple):
    """What `pack_decoder_weights` gave: copies of all that a step reads of its weights, none of which sees a change."""

    step: Tensor  # W_q, W_c, W_h, W_β, as the back end reads them
    of_x: PackedLinear  # W_x, and the biases beside it
    v: Tensor  # (A)
    weight_q: Tensor  # (A, H); of this and the next three only the sizes are read
    weight_ih: Tensor  # (GH, E+D)
    weight_hh: Tensor  # (GH, H)
    weight_gate: Tensor | None  # (D, H)
    bias_q: Tensor | None  # (A)
    bias_hh: Tensor | None  # (GH), of a GRU alone
    bias_gate: Tensor | None  # (D)


def pack_decoder_weights(
    memory: Tensor,  # (B, T, D)
    v: Tensor,  # (A)
    weight_q: Tensor,  # (A, H)
    bias_q: Tensor | None,  # (A)
    weight_ih: Tensor,  # (GH, E+D)
    weight_hh: Tensor,  # (GH, H)
    bias_ih: Tensor | None,  # (GH)
    bias_hh: Tensor | None,  # (GH)
    weight_gate: Tensor | None,  # (D, H)
    bias_gate: Tensor | None,  # (D)
    *,
    cell: str,
    backend: str | None,
) -> PackedDecoder | None:
    """For `attention_decoder_step`. None where the back end has no use for it, or there is more to a step than it does
    (gradients, autocast, a transform, tensors that are not alike).
    """
    tensors = (v, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh, weight_gate, bias_gate)
    if not may_be_packed(memory) or not all(t is None or t.dtype == memory.dtype for t in tensors):
        return None
    pack = getattr(backends.choose("attention_decoder", backend, memory), "pack_weights", None)
    inputs = weight_ih.shape[1] - memory.shape[2]
    of_x = pack_linear(weight_ih[:, :inputs], bias_of_x(bias_ih, bias_hh, cell), backend=backend)
    if pack is None or of_x is None:
        return None
    bias_q, bias_hh, bias_gate = (None if t is None else t.detach().clone() for t in (bias_q, bias_hh, bias_gate))
    return PackedDecoder(
        pack(weight_q, weight_ih[:, inputs:], weight_hh, weight_gate, cell), of_x, v.detach().clone(),
        weight_q, weight_ih, weight_hh, weight_gate, bias_q, bias_hh, bias_gate,
    )  # fmt: skip


def attention_decoder_step(
    x: Tensor,  # (m·B, E), the m of an entry of the memory next to each other
    h: Tensor,  # (m·B, H)
    c: Tensor | None,  # (m·B, H), None: a GRU
    context: Tensor,  # (m·B, D), of the step before
    key: Tensor,  # (B, T, A)
    value: Tensor,  # (B, T, D)
    packed: PackedDecoder,
    *,
    mask: Tensor | None,  # boolean, broadcastable to (B, T)
    prepared: PreparedExponentials | None,
    query: str,
    scale: float,
    activation: str,
    negative_slope: float,
    backend: str | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor] | None:
    """A step of decoding without gradients, the equations of `attention_decoder`, on the weights as they were packed.

    Gives h, c or None, context, weights (m·B, T); or None where there is more to do than it does.
    """
    tensors = (h, context, key, value)
    if x.shape[0] == 0 or key.numel() == 0 or x.shape[0] % key.shape[0] or not may_be_packed(x):
        return None
    if not all(type(t) in (Tensor, torch.nn.Parameter) and t.dtype == x.dtype for t in tensors):
        return None
    impl, cell = backends.choose("attention_decoder", backend, x), "gru" if c is None else "lstm"
    autograd.refuse_forward_mode(x, *tensors)
    x_gates = linear_packed(x, packed.of_x)
    if x_gates is None:
        return None
    exponentials = check_prepared(prepared, key, backends.choose("additive_attention", backend, key).__name__)
    weights = Weights(
        x[:, None], key, value, packed.v, h, None if c is None else c.to(accumulation_dtype(x.dtype)),
        context if query == "current" else None, packed.weight_q, packed.bias_q, packed.weight_ih, packed.weight_hh,
        None, packed.bias_hh, packed.weight_gate, packed.bias_gate, None,
    )  # fmt: skip
    options = DecoderOptions(Activation(activation, negative_slope), scale, cell, query)
    mask = None if mask is None else mask.expand(key.shape[:2])
    output, _, c_n, context, alpha = autograd.attention_decoder.step(
        impl, weights, Selection(mask, None, None), options, exponentials, packed.step, x_gates[:, None]
    )
    return output[:, 0], None if c is None or c_n is None else c_n.to(c.dtype), context[:, 0], alpha[:, 0]
