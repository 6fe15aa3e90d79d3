"""The public functions: the mathematics, the shapes, the checks of arguments; each picks a back end and runs it.

A call goes through four files: functional.py, autograd/<family>.py, <back end>/<family>.py, csrc/<device>/<family>.*.
Symbols are those of the ConvLSTM (B batch, T time, C input channels, H hidden channels, S* one to three spatial sizes,
K* the kernel), of additive attention (B batch, S queries, T keys, A attention channels, D value channels), and of the
attention decoder (S steps, E input, H hidden, G gates beside those of attention).

Dtypes: float32, float64, bfloat16, float16, the same for all arguments but recurrent states. Sums are
accumulated in float32 (float64 for float64), and so is the cell state within a sequence. Under autocast, arguments are
cast to the autocast dtype, a cell state is not.

Results are tensors of their own, no views. One that the backward reads (the output of more than one step, the weights
of attention) may be written into, but then raises autograd's own error in the backward, as with `nn.LSTM`.

Every function raises TypeError or ValueError, before anything is computed, for an argument of the wrong type, dtype,
device or shape, and RuntimeError where a back end was named (by `backend=`, `hybridops.use_backend` or
HYBRIDOPS_BACKEND) that is not here or does not take these arguments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridops import autograd, backends
from hybridops.autograd.attention_decoder import Selection, Weights
from hybridops.checks import (
    ACTIVATIONS,
    DTYPES,
    SPATIAL_NAMES,
    accumulation_dtype,
    autocast_is_on,
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
from hybridops.contract import Activation, AttentionInputs, DecoderOptions, Save
from hybridops.formulas.additive_attention import masked_softmax
from hybridops.formulas.attention_decoder import CELLS, GATES, QUERIES

__all__ = [
    "additive_attention", "additive_scores", "attention_decoder", "conv_lstm", "conv_lstm_cell", "prepare_exponentials",
]  # fmt: skip


def conv_lstm_cell(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    *,
    peephole: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of a ConvLSTM: `conv_lstm` for a single frame.

    Args:
        x: (B, C, S*).
        hx: (h, c), each (B, H, S*); None = zeros.
        weight_ih, weight_hh, bias, peephole, backend: as in `conv_lstm`.

    Returns:
        (h, c), each (B, H, S*); h in the dtype of x, c in that of the c given, else of x.
    """
    check_shape("x", x, ("B", "C", *_space(weight_ih, "weight_ih")))
    output, _, c = _conv_lstm(
        x.unsqueeze(1), hx, weight_ih, weight_hh, bias, peephole, save="gates", want_h_n=False, backend=backend
    )
    return output.squeeze(1), c


def conv_lstm(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    *,
    peephole: Tensor | None = None,
    save: str = "gates",
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A ConvLSTM layer over a sequence (Shi et al. 2015, https://arxiv.org/abs/1506.04214).

        a_t = W_ih * x_t + W_hh * h_{t-1} + b          (* 'same' convolution; 4H channels a_f a_i a_g a_o)
        f = σ(a_f + p_f∘c_{t-1})     i = σ(a_i + p_i∘c_{t-1})     g = tanh(a_g)
        c_t = f∘c_{t-1} + i∘g        o = σ(a_o + p_o∘c_t)         h_t = o∘tanh(c_t)

    Args:
        x: (B, T, C, S*), any strides.
        hx: (h, c) before the first step, each (B, H, S*), in any floating-point dtype; None = zeros.
        weight_ih: (4H, C, K*), rows in the gate order f, i, g, o; every kernel size odd.
        weight_hh: (4H, H, K*).
        bias: (4H).
        peephole: (3, H), or (3, H, S*) with one weight a position; rows f, i, o.
        save: what the backward finds: "gates", the gates of every step, or "recompute", only the states, from which it
            computes the gates again: about half the memory, about a third more work.
        backend: "reference", "native", "triton", or None for the fastest that takes these arguments.

    Returns:
        output (B, T, H, S*) in the dtype of x (under autocast in its dtype), whose memory is time-major and
        channels-last; and (h_n, c_n) after the last step, each (B, H, S*), c_n in the dtype of the c given, else of x.
    """
    output, h_n, c_n = _conv_lstm(
        x, hx, weight_ih, weight_hh, bias, peephole, save=save, want_h_n=True, backend=backend
    )
    assert h_n is not None
    return output, (h_n, c_n)


def _conv_lstm(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    *,
    save: str,
    want_h_n: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """output (B, T, H, S*), h_n (B, H, S*) if wanted, c_n (B, H, S*)."""
    if hx is not None:
        check_pair("hx", hx)
    dims = _check_conv_lstm(x, hx, weight_ih, weight_hh, bias, peephole)
    h0, c0 = hx if hx is not None else (None, None)
    check_choice("save", save, ("gates", "recompute"))
    dtype_of_c = x.dtype if c0 is None else c0.dtype
    x, weight_ih, weight_hh, bias, peephole = _autocast(x, weight_ih, weight_hh, bias, peephole)
    check_dtypes(x=x, weight_ih=weight_ih, weight_hh=weight_hh, bias=bias, peephole=peephole)
    acc = accumulation_dtype(x.dtype)
    h0, c0 = None if h0 is None else h0.to(x.dtype), None if c0 is None else c0.to(acc)
    impl = backends.choose("conv_lstm", backend, x, dims)
    keep = Save.GATES if save == "gates" else Save.CELLS

    if x.shape[1] == 0:
        state = (x.shape[0], weight_hh.shape[1], *x.shape[3:])
        h_n = x.new_zeros(state) if h0 is None else h0.clone()
        c_n = x.new_zeros(state, dtype=acc) if c0 is None else c0.clone()
        return h_n.new_empty(state[0], 0, *state[1:]), h_n, c_n.to(dtype_of_c)
    inputs = (x, h0, c0, weight_ih, weight_hh, bias, peephole)
    with _no_autocast(x):
        output, last_h, last_c = autograd.conv_lstm.run(impl, *inputs, keep, want_h_n)
    return output, last_h, last_c.to(dtype_of_c)


@dataclass(frozen=True, eq=False)
class PreparedExponentials:
    """What `prepare_exponentials` gave; opaque."""

    backend: str
    key_shape: torch.Size
    tensors: tuple[Tensor, Tensor]

    def index_select(self, index: Tensor) -> PreparedExponentials:
        """Of the keys at `index` of the batch."""
        exponentials, bounds = (t.index_select(0, index) for t in self.tensors)
        shape = torch.Size([index.shape[0], *self.key_shape[1:]])
        return PreparedExponentials(self.backend, shape, (exponentials, bounds))


def prepare_exponentials(
    key: Tensor, *, activation: str = "tanh", backend: str | None = None
) -> PreparedExponentials | None:
    """For decoding, where the same key (B, T, A) meets one query at a time: what `additive_attention` computes of the
    key alone, once. None where the back end has no use for it.
    """
    check_shape("key", key, ("B", "T", "A"))
    check_choice("activation", activation, ACTIVATIONS)
    key = _autocast(key)[0]
    check_dtypes(key=key)
    impl = backends.choose("additive_attention", backend, key)
    tensors = impl.prepare_keys(key, activation)
    return None if tensors is None else PreparedExponentials(impl.__name__, key.shape, tensors)


def additive_scores(
    query: Tensor,
    key: Tensor,
    v: Tensor,
    *,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """Additive scores (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473) without a (B, S, T, A) tensor.

        score[b,s,t] = Σ_a v_a act(query[b,s,a] + key[b,t,a])

    Args:
        query: (B, S, A), projected.
        key: (B, T, A), projected.
        v: (A,).
        activation: "tanh", "relu" or "leaky_relu".
        negative_slope: of leaky_relu.
        backend: "reference", "native", "triton", or None for the fastest that takes these arguments.

    Returns:
        (B, S, T) in the dtype of query.
    """
    _check_pairs(query, key, v, activation, negative_slope)
    query, key, v = _autocast(query, key, v)
    check_dtypes(query=query, key=key, v=v)
    impl = backends.choose("additive_attention", backend, query)
    with _no_autocast(query):
        scores = autograd.additive_attention.scores(impl, query, key, v, Activation(activation, float(negative_slope)))
    return scores.to(query.dtype)


@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: Literal[False] = False,
    prepared: PreparedExponentials | None = None,
    backend: str | None = None,
) -> Tensor: ...
@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: Literal[True],
    prepared: PreparedExponentials | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: bool,
    prepared: PreparedExponentials | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    prepared: PreparedExponentials | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Additive attention (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473) without a (B, S, T, A) tensor.

        score[b,s,t] = scale Σ_a v_a act(query[b,s,a] + key[b,t,a]) + score_bias[b,s,t]
        α = softmax_t(score) where mask is True, 0 elsewhere          context[b,s] = Σ_t α[b,s,t] value[b,t]

    Args:
        query, key, v, activation, negative_slope, backend: as in `additive_scores`.
        value: (B, T, D).
        mask: boolean, True = may be attended, (B, T) or broadcastable to (B, S, T). A row that may attend nothing has a
            zero context, zero weights and zero gradients.
        score_bias: broadcastable to (B, S, T).
        scale: multiplies the scores, not the bias.
        dropout_p: probability with which a weight is zeroed, the others being scaled up; 0 in evaluation.
        return_weights: whether to return α too: after dropout, the weights that made the context.
        prepared: what `prepare_exponentials` gave for this very key, to save computing it at every step of decoding.

    Returns:
        context (B, S, D) in the dtype of value, or (context, α (B, S, T)).
    """
    _check_pairs(query, key, v, activation, negative_slope)
    pairs = (*query.shape[:2], key.shape[1])
    check_shape("value", value, (pairs[0], pairs[2], "D"))
    query, key, value, v = _autocast(query, key, value, v)
    check_dtypes(query=query, key=key, value=value, v=v)
    mask = broadcast_mask(mask, *pairs)
    if mask is not None and mask.device != query.device:
        raise ValueError(f"mask must be on the device of query, {query.device}, got {mask.device}")
    if score_bias is not None:
        check_broadcastable("score_bias", score_bias, query, pairs)
    check_number("scale", scale)
    check_number("dropout_p", dropout_p, 0.0, 1.0)
    impl = backends.choose("additive_attention", backend, query)
    exponentials = _check_prepared(prepared, key, impl.__name__)
    act = Activation(activation, float(negative_slope))
    with _no_autocast(query):
        if dropout_p == 0:
            inputs = AttentionInputs(query, key, v, value, mask, score_bias)
            attend = autograd.additive_attention.attend
            context, weights = attend(impl, inputs, act, float(scale), exponentials, return_weights)
        else:  # between the weights and the context stands what only PyTorch's generator knows
            scores = scale * autograd.additive_attention.scores(impl, query, key, v, act)
            if score_bias is not None:
                scores = scores + score_bias.to(scores.dtype)
            weights = F.dropout(masked_softmax(scores, mask), dropout_p).to(value.dtype)
            context = torch.matmul(weights, value)
    return context if weights is None or not return_weights else (context, weights)


# Of more queries PyTorch's product is as fast, and it knows the matrix units of processors that have them.
MAX_STEP_QUERIES = 512


def additive_attention_step(
    query: Tensor,  # (m·B, Q) or (m·B, S, Q), not projected
    projection: Tensor,  # (A, Q)
    projection_bias: Tensor | None,  # (A)
    key: Tensor,  # (B, T, A)
    value: Tensor,  # (B, T, D)
    v: Tensor,  # (1, A)
    *,
    mask: Tensor | None,  # boolean, three dimensions, broadcastable to (B, m·S, T)
    scale: float,
    activation: str,
    negative_slope: float,
    return_weights: bool,
    prepared: PreparedExponentials | None,
    backend: str | None,
) -> tuple[Tensor, Tensor | None] | None:
    """A step of decoding without gradients as one op: `additive_attention` of a query that is yet to be projected,

        q = projection query + projection_bias

    Gives context (m·B, D) or (m·B, S, D), and weights with T in place of D or None; or None where the back end has no
    such op, or there is more to do than it does (gradients, autocast, a transform, tensors that are not alike).
    """
    tensors = (query, projection, key, value, v, projection_bias)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or autograd.under_transform():
        return None
    rows, batch = query.shape[:-1].numel(), key.shape[0]  # not before: `numel` makes a number of a symbol
    if not 0 < rows <= MAX_STEP_QUERIES or autocast_is_on(query):
        return None
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.dtype is not query.dtype
            or tensor.device != query.device
        ):
            return None
    width = key.shape[2]
    if projection.shape != (width, query.shape[-1]) or v.shape != (1, width):
        return None
    if projection_bias is not None and projection_bias.shape != (width,):
        return None
    impl = backends.choose("additive_attention", backend, query)
    step = getattr(impl, "additive_attention_step", None)
    if step is None or query.device.type != "cpu":  # there is no such op on a GPU
        return None
    autograd.refuse_forward_mode(query)
    exponentials = _check_prepared(prepared, key, impl.__name__)
    mask = None if mask is None else mask.expand(batch, rows // batch, key.shape[1])
    inputs = AttentionInputs(query, key, v, value, mask, None)
    act = Activation(activation, negative_slope)
    context, weights = step(query, (projection, projection_bias), inputs, act, scale, exponentials, return_weights)
    return context, weights if return_weights else None


# ---------------------------------------------------------------------------------------------------------- arguments


def _check_conv_lstm(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
) -> int:
    """The number of spatial dimensions."""
    space = _space(weight_ih, "weight_ih")
    dims = len(space)
    rows, channels, *kernel = weight_ih.shape
    if rows % 4 or rows == 0:
        raise ValueError(f"weight_ih must have 4H rows, one for each gate and hidden channel, got {rows}")
    if channels == 0:
        raise ValueError("weight_ih must have at least one input channel, got 0")
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"weight_ih must have an odd kernel in every dimension, got {tuple(kernel)}")
    hidden = rows // 4
    check_shape("weight_hh", weight_hh, (rows, hidden, *kernel))
    check_shape("x", x, ("B", "T", channels, *space))
    if hx is not None:
        for name, state in zip(("h of hx", "c of hx"), hx, strict=True):
            check_shape(name, state, (x.shape[0], hidden, *x.shape[3:]))
            check_like(name, state, x, dtype=False, like_name="x")
    if bias is not None:
        check_shape("bias", bias, (rows,))
    if peephole is not None:
        per_position = not isinstance(peephole, Tensor) or peephole.dim() != 2
        check_shape("peephole", peephole, (3, hidden, *(x.shape[3:] if per_position else ())))
    return dims


def _check_pairs(query: Tensor, key: Tensor, v: Tensor, activation: str, negative_slope: float) -> None:
    check_shape("query", query, ("B", "S", "A"))
    batch, _, width = query.shape
    check_shape("key", key, (batch, "T", width))
    check_shape("v", v, (width,))
    check_choice("activation", activation, ACTIVATIONS)
    check_number("negative_slope", negative_slope)


def _check_prepared(prepared: PreparedExponentials | None, key: Tensor, backend: str) -> tuple[Tensor, Tensor] | None:
    """What was prepared; None if by another back end, for it is of no use then."""
    if prepared is None:
        return None
    if not isinstance(prepared, PreparedExponentials):
        raise TypeError(f"prepared must be what prepare_exponentials gave, got {type(prepared).__name__}")
    wanted = (key.shape, accumulation_dtype(key.dtype), key.device)
    came = (prepared.key_shape, prepared.tensors[0].dtype, prepared.tensors[0].device)
    if came != wanted:
        raise ValueError("prepared must be of a key like {}, {}, {}, got {}, {}, {}".format(*wanted, *came))
    return prepared.tensors if prepared.backend == backend else None


def _space(weight: Tensor, name: str) -> tuple[str, ...]:
    """Names of the spatial sizes that go with a weight (4H, C, K*)."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (4H, C, K*), got {type(weight).__name__}")
    if weight.dim() - 2 not in SPATIAL_NAMES:
        raise ValueError(
            f"{name} must have shape (4H, C, K*) with one to three kernel sizes, got {tuple(weight.shape)}"
        )
    return SPATIAL_NAMES[weight.dim() - 2]


# ----------------------------------------------------------------------------------------------------------- autocast
# Casts are explicit, not left to the dispatcher, so that the cell state stays in float32.


def _autocast(*tensors: Tensor | None) -> Sequence[Any]:
    """Under autocast, the tensors as autocast would pass them to a convolution or a product."""
    first = tensors[0]
    assert first is not None
    if not autocast_is_on(first):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return [t if t is None or t.dtype not in DTYPES or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


_AS_IT_IS = contextlib.nullcontext()


def _no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(x.device.type, enabled=False) if autocast_is_on(x) else _AS_IT_IS


# -------------------------------------------------------------------------------------------------- attention decoder

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
    if weight_gate is None and bias_gate is not None:
        raise ValueError("bias_gate must be None where weight_gate is None, got a tensor")
    if query == "previous" and context0 is not None:
        raise ValueError("context0 must be None where query is 'previous', got a tensor")
    check_choice("activation", activation, ACTIVATIONS)
    check_number("scale", scale)
    check_number("negative_slope", negative_slope)
    check_number("dropout_p", dropout_p, 0.0, 1.0)
    dtype_of_c = x.dtype if c0 is None else c0.dtype
    x, key, value, v, context0, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh, weight_gate, bias_gate = (
        _autocast(
            x, key, value, v, context0, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh, weight_gate, bias_gate
        )
    )
    check_dtypes(
        x=x, key=key, value=value, v=v, context0=context0, weight_q=weight_q, bias_q=bias_q, weight_ih=weight_ih,
        weight_hh=weight_hh, bias_ih=bias_ih, bias_hh=bias_hh, weight_gate=weight_gate, bias_gate=bias_gate,
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
    impl = backends.choose("attention_decoder", backend, x)

    if pairs[1] == 0:
        states = h0.clone() if c0 is None else (h0.clone(), c0.to(dtype_of_c, copy=True))
        weights = x.new_empty(pairs) if return_weights else None
        return x.new_empty(pairs[0], 0, hidden), states, x.new_empty(pairs[0], 0, width), weights
    with _no_autocast(x):
        output, h_n, c_n, context, weights = autograd.attention_decoder.run(
            impl,
            Weights(
                x, key, value, v, h0, c0, context0, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh,
                weight_gate, bias_gate, score_bias,
            ),
            Selection(mask, _kept_weights(dropout_p, value, pairs), lengths),
            DecoderOptions(Activation(activation, float(negative_slope)), float(scale), cell, query),
        )  # fmt: skip
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


def pack_decoder_weights(
    like: Tensor,
    weight_q: Tensor,  # (A, H)
    weight_ih: Tensor,  # (GH, E+D)
    weight_hh: Tensor,  # (GH, H)
    weight_gate: Tensor | None,  # (D, H)
    *,
    cell: str,
    value_dim: int,
    backend: str | None,
) -> Tensor | None:
    """For `attention_decoder_step`: the weights of a step as the back end reads them, but for those of x. None where it
    has no use for them, or there is more to a step than it does (gradients, autocast, a transform, other tensors).
    """
    weights = (weight_q, weight_ih, weight_hh, weight_gate)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or autograd.under_transform() or autocast_is_on(like):
        return None
    if not all(w is None or (w.dtype, w.device) == (like.dtype, like.device) for w in weights):
        return None
    pack = getattr(backends.choose("attention_decoder", backend, like), "pack_weights", None)
    if pack is None:
        return None
    packed: Tensor = pack(weight_q, weight_ih[:, weight_ih.shape[1] - value_dim :], weight_hh, weight_gate, cell)
    return packed


def attention_decoder_step(
    x: Tensor,  # (B, E)
    h: Tensor,  # (B, H)
    c: Tensor | None,  # (B, H), None: a GRU
    context: Tensor,  # (B, D), of the step before
    key: Tensor,  # (B, T, A)
    value: Tensor,  # (B, T, D)
    v: Tensor,  # (A)
    mask: Tensor | None,  # boolean, broadcastable to (B, T)
    weight_q: Tensor,
    bias_q: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_gate: Tensor | None,
    bias_gate: Tensor | None,
    *,
    packed: Tensor,
    prepared: PreparedExponentials | None,
    query: str,
    scale: float,
    activation: str,
    negative_slope: float,
    backend: str | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor] | None:
    """A step of decoding without gradients as one op, on what `pack_decoder_weights` made of these weights.

    Gives h, c or None, context, weights (B, T); or None where there is more to do than it does.
    """
    tensors = (h, context, key, value, v, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh, bias_gate)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or autograd.under_transform() or autocast_is_on(x):
        return None
    if len(x) != len(key) or key.numel() == 0:
        return None
    if not all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and t.dtype == x.dtype) for t in tensors):
        return None
    impl, cell = backends.choose("attention_decoder", backend, x), "gru" if c is None else "lstm"
    autograd.refuse_forward_mode(x, *tensors)
    exponentials = _check_prepared(prepared, key, backends.choose("additive_attention", backend, key).__name__)
    weights = Weights(
        x[:, None], key, value, v, h, None if c is None else c.to(accumulation_dtype(x.dtype)),
        context if query == "current" else None, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh, weight_gate,
        bias_gate, None,
    )  # fmt: skip
    options = DecoderOptions(Activation(activation, negative_slope), scale, cell, query)
    mask = None if mask is None else mask.expand(key.shape[:2])
    output, _, c_n, context, alpha = autograd.attention_decoder.step(
        impl, weights, Selection(mask, None, None), options, exponentials, packed
    )
    return output[:, 0], None if c is None or c_n is None else c_n.to(c.dtype), context[:, 0], alpha[:, 0]
