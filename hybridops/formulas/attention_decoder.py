"""The attention decoder, forward and backward by hand, in plain PyTorch: what every back end is held to.

Symbols: B batch, S steps, T memory positions, E input, H hidden, D memory width, A attention width, G gates: 4 of an
LSTM (rows i, f, g, o as in `nn.LSTMCell`) or 3 of a GRU (rows r, z, n as in `nn.GRUCell`).

    q_s   = W_q h' + b_q                         h' = h_{s-1} (query "previous") or h_s (query "current")
    e_s,t = scale Σ_a v_a act(q_s,a + key_t,a) + score_bias_s,t
    α_s   = softmax_t(e_s) under the mask        (nothing may be attended: zeros)
    u_s   = Σ_t α_s,t keep_s,t value_t           c_s = u_s ∘ σ(W_β h' + b_β), or u_s where there is no context gate
    c'    = c_s (query "previous") or c_{s-1} (query "current": c_0 = context0)

With a location, key_t at step s is key_t + (location * [w_{s-1}; Σ_{j<s} w_j])_t, with w = α keep, zeros before the
first step, and * a convolution over t, of zeros beyond both ends; a location of one channel is of the sum alone.

    LSTM  a = x_gates_s + W_c c' + W_h h_{s-1}                 i, f, o = σ(a_i), σ(a_f), σ(a_o)   g = tanh(a_g)
          cell_s = f∘cell_{s-1} + i∘g                          h_s = o∘tanh(cell_s)
    GRU   a = x_gates_s + W_c c'   a' = W_h h_{s-1} + b_h      r, z = σ(a_r + a'_r), σ(a_z + a'_z)
          n = tanh(a_n + r∘a'_n)                               h_s = (1-z)∘n + z∘h_{s-1}

At a step s >= lengths[b] row b keeps its h, cell and c', and gives zeros. x_gates = W_x x + b_ih (+ b_hh of an LSTM) is
known before the first step. Sums are taken, and the cell kept, in the accumulation dtype ("acc": float32, or float64);
h, q, c are rounded to the dtype of the others at each step.

Only what is sequential is here; the gradients of weights, of key, value and v follow in one product each from what
`attention_decoder_backward` gives (autograd/attention_decoder.py). With a location, where keys are others at each step,
those of key, v and location are summed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.contract import DecoderGradients, DecoderInputs, DecoderOptions, DecoderStates, DecoderUpstreamGrads
from hybridops.formulas.additive_attention import (
    additive_scores_backward,
    additive_scores_forward,
    masked_softmax,
    prepare_keys,
)

__all__ = ["additive_scores_backward", "attention_decoder_backward", "attention_decoder_forward", "prepare_keys"]

LinearMap = Callable[[Tensor], Tensor]
GATES = {"lstm": 4, "gru": 3}
CELLS, QUERIES = tuple(GATES), ("previous", "current")  # by number in the compiled ops


def linear_map(weight: Tensor) -> LinearMap:
    """x -> x weightᵀ, in the accumulation dtype."""
    transposed = weight.to(accumulation_dtype(weight.dtype)).T
    return lambda x: x.to(transposed.dtype) @ transposed


class Parts(NamedTuple):
    """What the loop calls; others do the same in less time."""

    scores_forward: Callable[..., Tensor] = additive_scores_forward
    scores_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = additive_scores_backward
    linear_map: Callable[[Tensor], LinearMap] = linear_map


PLAIN = Parts()


class _Maps(NamedTuple):
    """By each weight, or in the backward by each transposed."""

    q: LinearMap
    c: LinearMap
    h: LinearMap
    beta: LinearMap | None  # None: no context gate


def attention_decoder_forward(
    inputs: DecoderInputs, options: DecoderOptions, save: bool, parts: Parts = PLAIN
) -> DecoderStates:
    """Of at least one step."""
    h, cell = inputs.h0, inputs.cell0
    before = total = inputs.key.new_zeros(inputs.key.shape[:2])
    maps = _maps(inputs, parts, lambda weight: weight)
    context = inputs.value.new_zeros(h.shape[0], inputs.value.shape[2]) if inputs.context0 is None else inputs.context0
    rows: list[tuple[Tensor | None, ...]] = []
    for s in range(inputs.x_gates.shape[1]):
        if options.query == "previous":
            attention = _attend(h, s, _moved(inputs, before, total), options, parts, maps)
            new_h, new_cell, gates, hidden_n = _cell_forward(h, cell, attention[0], s, inputs, maps)
            new_context = attention[0]
        else:
            new_h, new_cell, gates, hidden_n = _cell_forward(h, cell, context, s, inputs, maps)
            attention = _attend(new_h, s, _moved(inputs, before, total), options, parts, maps)
            new_context = attention[0]
        _, weights, queries, alpha, beta, ungated = attention
        before, total = weights, total + weights
        step_output, step_context = new_h, new_context
        alive = _alive(s, inputs.lengths)
        if alive is not None:
            step_output, step_context, weights = (torch.where(alive, t, 0.0) for t in (new_h, new_context, weights))
            new_h = torch.where(alive, new_h, h)  # the context of a row behind its end is fed to no step that counts
            new_cell = None if new_cell is None or cell is None else torch.where(alive, new_cell, cell)
        h, cell, context = new_h, new_cell, new_context
        rows.append((step_output, step_context, weights, cell, gates, hidden_n, queries, alpha, beta, ungated))

    outputs, contexts, all_weights, cells, gates, hidden_n, queries, alpha, beta, ungated = _stacked(rows)
    results = (outputs, h, cell, contexts, all_weights)
    if not save:
        return DecoderStates(*results)
    alpha = all_weights if inputs.keep is None else alpha
    return DecoderStates(*results, cells, gates, hidden_n, queries, alpha, beta, ungated)


def attention_decoder_backward(
    grads: DecoderUpstreamGrads,
    inputs: DecoderInputs,
    options: DecoderOptions,
    states: DecoderStates,
    parts: Parts = PLAIN,
) -> DecoderGradients:
    dtype, steps = inputs.value.dtype, states.output.shape[1]
    acc = accumulation_dtype(dtype)
    previous = options.query == "previous"
    dh = _or_zeros(grads.h_n, inputs.h0, acc)
    dcell = None if inputs.cell0 is None else _or_zeros(grads.cell_n, inputs.cell0, acc)
    # of the context that the next step is fed
    dfed = None if previous else torch.zeros_like(states.context[:, 0], dtype=acc)
    rows: list[tuple[Tensor | None, ...]] = []
    maps = _maps(inputs, parts, lambda weight: weight.T)
    # what a location saw at each step (B,S,T): the weights of the step before, and the sum of all before
    seen = None if inputs.location is None else _histories(states.weights)
    dbefore = dtotal = torch.zeros_like(states.weights[:, 0], dtype=acc)  # the gradients of those, of later steps
    dkey = dv = dlocation = None
    for s in reversed(range(steps)):
        grad_output, grad_context, grad_weights = (
            None if g is None else g[:, s].to(acc) for g in (grads.output, grads.context, grads.weights)
        )
        moved = inputs
        if seen is not None:
            history = seen[0][:, s], seen[1][:, s]
            moved, grad_weights = _moved(inputs, *history), _add(dbefore + dtotal, grad_weights)
        if previous:
            da, da_h, dh_before, dcell_before = _cell_backward(_add(dh, grad_output), dcell, s, inputs, states, maps)
            dcontext = _add(maps.c(da), grad_context)
            attention, of_keys = _attend_backward(dcontext, grad_weights, s, moved, options, states, parts)
            dh_before, dfed_before = dh_before + _from_attention(attention, maps), None
        else:
            assert dfed is not None
            attention, of_keys = _attend_backward(
                _add(dfed, grad_context), grad_weights, s, moved, options, states, parts
            )
            dh_here = _add(dh, grad_output) + _from_attention(attention, maps)
            da, da_h, dh_before, dcell_before = _cell_backward(dh_here, dcell, s, inputs, states, maps)
            dfed_before = maps.c(da)
        if seen is not None and inputs.location is not None:
            dhistory, dlocation_s = _location_backward(of_keys[0], history, inputs.location.to(acc))
            dtotal = dtotal + dhistory[:, -1]
            dbefore = dhistory[:, 0] if dhistory.shape[1] == 2 else torch.zeros_like(dtotal)
            dkey, dv = _add(of_keys[0], dkey), _add(of_keys[1], dv)
            dlocation = _add(dlocation_s, dlocation)
        row: tuple[Tensor | None, ...] = (da, da_h, *attention)
        alive = _alive(s, inputs.lengths)
        if alive is not None:
            row = tuple(None if t is None else torch.where(alive, t, 0.0) for t in row)
            dh_before = torch.where(alive, dh_before, dh)
            dcell_before, dfed_before = (
                None if before is None or after is None else torch.where(alive, before, after)
                for before, after in ((dcell_before, dcell), (dfed_before, dfed))
            )
        dh, dcell, dfed = dh_before, dcell_before, dfed_before
        rows.append(row)

    das, da_hs, dq, dcontexts, dscores, dbeta = _stacked(rows[::-1])
    da_hs = da_hs.to(dtype)
    return DecoderGradients(
        da_hs if options.cell == "lstm" else das.to(dtype), da_hs, dq.to(dtype), dcontexts.to(dtype), dscores,
        None if dbeta is None else dbeta.to(dtype), dh.to(dtype), dcell, None if dfed is None else dfed.to(dtype),
        *(None if t is None else t.to(dtype) for t in (dkey, dv, dlocation)),
    )  # fmt: skip


def _maps(inputs: DecoderInputs, parts: Parts, of: Callable[[Tensor], Tensor]) -> _Maps:
    q, c, h = (parts.linear_map(of(weight)) for weight in (inputs.w_q, inputs.w_c, inputs.w_h))
    return _Maps(q, c, h, None if inputs.w_beta is None else parts.linear_map(of(inputs.w_beta)))


def _stacked(steps: list[tuple[Tensor | None, ...]]) -> list[Any]:
    """Of what each step has, all steps (B,S,·), or None where it has none."""
    return [None if row[0] is None else torch.stack(row, 1) for row in zip(*steps, strict=True)]


def _histories(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(B,S,T): the weights of the step before each, and the sum of all before; zeros at the first."""
    first = torch.zeros_like(weights[:, :1])
    before = torch.cat([first, weights[:, :-1]], 1)
    return before, before.cumsum(1)


def _moved(inputs: DecoderInputs, before: Tensor, total: Tensor) -> DecoderInputs:
    """With the keys of a step, given the weights of the last one and the sum of all (B,T)."""
    if inputs.location is None:
        return inputs
    weight = inputs.location
    history = torch.stack([before, total], 1)[:, 2 - weight.shape[1] :]
    return inputs._replace(key=inputs.key + F.conv1d(history, weight, padding=weight.shape[2] // 2).transpose(1, 2))


def _location_backward(
    dkey: Tensor,  # (B,T,A) acc
    history: tuple[Tensor, Tensor],  # the weights of the last step and the sum of all, (B,T)
    weight: Tensor,  # (A,C,K) acc
) -> tuple[Tensor, Tensor]:
    """Of the history (B,C,T), of the weight (A,C,K)."""
    seen = torch.stack(history, 1)[:, 2 - weight.shape[1] :].to(weight.dtype)
    dhistory, dweight, _ = torch.ops.aten.convolution_backward(
        dkey.transpose(1, 2), seen, weight, None, [1], [weight.shape[2] // 2], [1], False, [0], 1, [True, True, False]
    )
    return dhistory, dweight


def _attend(
    h: Tensor,  # (B,H)
    s: int,
    inputs: DecoderInputs,
    options: DecoderOptions,
    parts: Parts,
    maps: _Maps,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """context (B,D) after the gate, weights (B,T), query (B,A), α (B,T), β (B,D) or None, context before the gate."""
    dtype = h.dtype
    query = _with_bias(maps.q(h), inputs.b_q).to(dtype)
    scores = options.scale * parts.scores_forward(query[:, None], inputs.key, inputs.v, options.activation)[:, 0]
    if inputs.score_bias is not None:
        scores = scores + inputs.score_bias[:, s]
    alpha = masked_softmax(scores, inputs.mask).to(dtype)
    weights = alpha if inputs.keep is None else alpha * inputs.keep[:, s]
    acc = accumulation_dtype(dtype)
    ungated = torch.bmm(weights[:, None].to(acc), inputs.value.to(acc))[:, 0].to(dtype)
    if maps.beta is None:
        return ungated, weights, query, alpha, None, None
    beta = torch.sigmoid(_with_bias(maps.beta(h), inputs.b_beta)).to(dtype)
    return beta * ungated, weights, query, alpha, beta, ungated


def _attend_backward(
    dcontext: Tensor,  # (B,D) acc, of the context after the gate
    grad_weights: Tensor | None,  # (B,T)
    s: int,
    inputs: DecoderInputs,
    options: DecoderOptions,
    states: DecoderStates,
    parts: Parts,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """dq (B,A), gradient of the context before the gate (B,D), of e (B,T), of W_β h' + b_β (B,D) or None; of key and v.
    All acc.
    """
    assert states.alpha is not None
    assert states.queries is not None
    acc, dbeta = dcontext.dtype, None
    if states.beta is not None and states.ungated is not None:
        beta = states.beta[:, s].to(acc)
        dbeta = dcontext * states.ungated[:, s] * beta * (1 - beta)
        dcontext = dcontext * beta
    dalpha = _add(torch.bmm(inputs.value.to(acc), dcontext[:, :, None])[:, :, 0], grad_weights)
    if inputs.keep is not None:
        dalpha = dalpha * inputs.keep[:, s]
    if inputs.mask is not None:  # selected, not multiplied by their weight of zero: they may be infinite
        dalpha = dalpha.masked_fill(~inputs.mask, 0.0)
    alpha = states.alpha[:, s].to(acc)
    dscores = alpha * (dalpha - (alpha * dalpha).sum(-1, keepdim=True))
    if inputs.mask is not None:
        dscores = dscores.masked_fill(~inputs.mask, 0.0)
    alive = _alive(s, inputs.lengths)
    if alive is not None:
        dscores = torch.where(alive, dscores, 0.0)
    dq, dkey, dv = parts.scores_backward(
        options.scale * dscores[:, None], states.queries[:, s, None].to(acc), inputs.key.to(acc), inputs.v.to(acc),
        options.activation,
    )  # fmt: skip
    return (dq[:, 0], dcontext, dscores, dbeta), (dkey, dv)


def _from_attention(attention: tuple[Tensor, Tensor, Tensor, Tensor | None], maps: _Maps) -> Tensor:
    """The gradient of h', by way of the query and of the context gate."""
    dq, _, _, dbeta = attention
    dh = maps.q(dq)
    return dh if dbeta is None or maps.beta is None else dh + maps.beta(dbeta)


def _cell_forward(
    h: Tensor,  # (B,H)
    cell: Tensor | None,  # (B,H) acc
    fed: Tensor,  # (B,D)
    s: int,
    inputs: DecoderInputs,
    maps: _Maps,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """h_s, cell_s (acc) or None, gates after their nonlinearity (B,GH), a'_n (B,H) or None."""
    acc, dtype = accumulation_dtype(h.dtype), h.dtype
    a = inputs.x_gates[:, s].to(acc) + maps.c(fed)
    a_h = _with_bias(maps.h(h), inputs.b_h)
    if cell is not None:
        i, f, g, o = (a + a_h).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        cell = f * cell + i * g
        return (o * cell.tanh()).to(dtype), cell, torch.cat([i, f, g, o], 1).to(dtype), None
    a_r, a_z, a_n = a.chunk(3, 1)
    h_r, h_z, h_n = a_h.chunk(3, 1)
    r, z = (a_r + h_r).sigmoid(), (a_z + h_z).sigmoid()
    n = (a_n + r * h_n).tanh()
    return ((1 - z) * n + z * h).to(dtype), None, torch.cat([r, z, n], 1).to(dtype), h_n.to(dtype)


def _cell_backward(
    dh: Tensor,  # (B,H) acc, of h_s
    dcell: Tensor | None,  # (B,H) acc, of cell_s by way of later steps
    s: int,
    inputs: DecoderInputs,
    states: DecoderStates,
    maps: _Maps,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of a and of a' (B,GH), of h_{s-1} and cell_{s-1} (B,H); all acc."""
    assert states.gates is not None
    gates = states.gates[:, s].to(dh.dtype)
    if dcell is not None:
        assert states.cells is not None
        assert inputs.cell0 is not None
        i, f, g, o = gates.chunk(4, 1)
        before = states.cells[:, s - 1] if s else inputs.cell0
        tanh_cell = states.cells[:, s].tanh()
        dcell = dcell + dh * o * (1 - tanh_cell.square())
        da_i, da_f = dcell * g * i * (1 - i), dcell * before * f * (1 - f)
        da_g, da_o = dcell * i * (1 - g.square()), dh * tanh_cell * o * (1 - o)
        da = torch.cat([da_i, da_f, da_g, da_o], 1)
        return da, da, maps.h(da), dcell * f
    assert states.hidden_n is not None
    r, z, n = gates.chunk(3, 1)
    before = states.output[:, s - 1] if s else inputs.h0
    da_n = dh * (1 - z) * (1 - n.square())
    da_r = da_n * states.hidden_n[:, s] * r * (1 - r)
    da_z = dh * (before - n) * z * (1 - z)
    da_h = torch.cat([da_r, da_z, da_n * r], 1)
    return torch.cat([da_r, da_z, da_n], 1), da_h, dh * z + maps.h(da_h), None


def _with_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)


def _alive(s: int, lengths: Tensor | None) -> Tensor | None:
    """(B,1): the rows whose step s is not behind their end; None: all."""
    return None if lengths is None else (lengths > s)[:, None]


def _add(total: Tensor, part: Tensor | None) -> Tensor:
    return total if part is None else total + part


def _or_zeros(grad: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(like, dtype=dtype) if grad is None else grad.to(dtype)
