"""The attention decoder in Triton. Contract: contract.AttentionDecoderImpl.

A sequence is one op, forward and backward: attention_decoder_steps.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops import flops
from hybridops.checks import accumulation_dtype
from hybridops.contract import (
    Activation,
    DecoderGradients,
    DecoderInputs,
    DecoderOptions,
    DecoderStates,
    DecoderUpstreamGrads,
)
from hybridops.formulas.attention_decoder import GATES
from hybridops.triton.additive_attention import additive_scores_backward
from hybridops.triton.attention_decoder_steps import BackwardSteps, ForwardSteps, SavedForBackward
from hybridops.triton.launch import op
from hybridops.triton.sizes import check_sizes

__all__ = ["additive_scores_backward", "attention_decoder_backward", "attention_decoder_forward"]


def attention_decoder_forward(inputs: DecoderInputs, options: DecoderOptions, save: bool) -> DecoderStates:
    states = _forward(*inputs[:-1], *_flat(options), save)
    output, h_n, cell_n, context, weights, cells, gates, hidden_n, queries, alpha, beta, ungated = states
    lstm, gated = options.cell == "lstm", inputs.w_beta is not None
    results = (output, h_n, cell_n if lstm else None, context, weights)
    if not save:
        return DecoderStates(*results)
    alpha = weights if inputs.keep is None else alpha
    of_gate = (beta, ungated) if gated else (None, None)
    return DecoderStates(*results, cells if lstm else None, gates, None if lstm else hidden_n, queries, alpha, *of_gate)


def attention_decoder_backward(
    grads: DecoderUpstreamGrads, inputs: DecoderInputs, options: DecoderOptions, states: DecoderStates
) -> DecoderGradients:
    i, given = inputs, inputs._asdict() | states._asdict()
    da, da_h, dq, dcontext, dscores, dbeta, dh0, dcell0, dcontext0 = _backward(
        *grads, *(given[name] for name in SavedForBackward._fields), *_flat(options)
    )
    lstm = options.cell == "lstm"
    return DecoderGradients(
        da, da if lstm else da_h, dq, dcontext, dscores, None if i.w_beta is None else dbeta, dh0,
        dcell0 if lstm else None, None if options.query == "previous" else dcontext0,
    )  # fmt: skip


def _flat(options: DecoderOptions) -> tuple[float, str, float, str, str]:
    """As the ops take them."""
    (kind, negative_slope), scale, cell, query = options
    return scale, kind, negative_slope, cell, query


def _nested(scale: float, kind: str, negative_slope: float, cell: str, query: str) -> DecoderOptions:
    return DecoderOptions(Activation(kind, negative_slope), scale, cell, query)


# ------------------------------------------------------------------------------------------------------------ ops


def _forward_fake(
    x_gates, key, value, v, h0, cell0, context0, w_q, b_q, w_c, w_h, b_h, w_beta, b_beta, mask, score_bias, keep,
    lengths, scale, activation, negative_slope, cell, query, save,
):  # fmt: skip
    new, lstm, acc = x_gates.new_empty, cell == "lstm", accumulation_dtype(x_gates.dtype)
    (batch, steps, width), hidden, gated = x_gates.shape, h0.shape[1], save and w_beta is not None

    def rows(wanted: bool, columns: int, dtype: torch.dtype = x_gates.dtype) -> Tensor:
        return new(batch, steps, columns, dtype=dtype) if wanted else new(0, dtype=dtype)

    channels, keys = value.shape[2], key.shape[1]
    return (
        rows(True, hidden), new(batch, hidden), new(batch if lstm else 0, hidden, dtype=acc), rows(True, channels),
        rows(True, keys), rows(save and lstm, hidden, acc), rows(save, width), rows(save and not lstm, hidden),
        rows(save, key.shape[2]), rows(save and keep is not None, keys), rows(gated, channels), rows(gated, channels),
    )  # fmt: skip


@op(
    "attention_decoder_forward(Tensor x_gates, Tensor key, Tensor value, Tensor v, Tensor h0, Tensor? cell0, "
    "Tensor? context0, Tensor w_q, Tensor? b_q, Tensor w_c, Tensor w_h, Tensor? b_h, Tensor? w_beta, Tensor? b_beta, "
    "Tensor? mask, Tensor? score_bias, Tensor? keep, Tensor? lengths, float scale, str activation, "
    "float negative_slope, str cell, str query, bool save) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_fake,
    flops.attention_decoder_forward,
)
def _forward(*arguments):
    """The fields of contract.DecoderStates; what is None there has no elements."""
    inputs, options, save = DecoderInputs(*arguments[:18]), _nested(*arguments[18:-1]), arguments[-1]
    _check_weights(inputs, options.cell)
    i, batch, keys = inputs, inputs.key.shape[0], inputs.key.shape[1]
    state, steps = (batch, i.w_q.shape[1]), i.x_gates.shape[1]
    check_sizes(
        x_gates=(i.x_gates, (batch, "S", i.w_h.shape[0])), h0=(i.h0, state), cell0=(i.cell0, state),
        context0=(i.context0, (batch, i.value.shape[2])), b_q=(i.b_q, i.v.shape), b_h=(i.b_h, (i.w_h.shape[0],)),
        b_beta=(i.b_beta, (i.value.shape[2],)), mask=(i.mask, (batch, keys)), lengths=(i.lengths, (batch,)),
        score_bias=(i.score_bias, (batch, steps, keys)), keep=(i.keep, (batch, steps, keys)),
    )  # fmt: skip
    sequence = ForwardSteps(inputs, options, save)
    sequence.run()
    return sequence.results()


def _backward_fake(*arguments):
    saved, options = SavedForBackward(*arguments[5:25]), _nested(*arguments[25:])
    gates, h0, (batch, keys, _), channels = saved.gates, saved.h0, saved.key.shape, saved.value.shape[2]
    new, lstm, steps, acc = gates.new_empty, options.cell == "lstm", gates.shape[1], accumulation_dtype(gates.dtype)
    return (
        new(gates.shape), new(0) if lstm else new(gates.shape), new(saved.queries.shape), new(batch, steps, channels),
        new(batch, steps, keys, dtype=acc), new(0) if saved.w_beta is None else new(batch, steps, channels),
        new(h0.shape), new(h0.shape if lstm else (0,), dtype=acc),
        new(0) if options.query == "previous" else new(batch, channels),
    )  # fmt: skip


@op(
    "attention_decoder_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_cell_n, Tensor? grad_context, "
    "Tensor? grad_weights, Tensor key, Tensor value, Tensor v, Tensor h0, Tensor? cell0, Tensor w_q, Tensor w_c, "
    "Tensor w_h, Tensor? w_beta, Tensor? mask, Tensor? keep, Tensor? lengths, Tensor output, Tensor? cells, "
    "Tensor gates, Tensor? hidden_n, Tensor queries, Tensor alpha, Tensor? beta, Tensor? ungated, float scale, "
    "str activation, float negative_slope, str cell, str query) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
    flops.attention_decoder_backward,
)
def _backward(*arguments):
    """The fields of contract.DecoderGradients; what is None there, and da_h of an LSTM, have no elements."""
    grads, saved = DecoderUpstreamGrads(*arguments[:5]), SavedForBackward(*arguments[5:25])
    options = _nested(*arguments[25:])
    _check_weights(saved, options.cell)
    i, (batch, keys, width), channels = saved, saved.key.shape, saved.value.shape[2]
    hidden = i.w_q.shape[1]
    rows, state = (batch, i.gates.shape[1]), (batch, hidden)
    check_sizes(
        gates=(i.gates, (batch, "S", i.w_h.shape[0])), h0=(i.h0, state), cell0=(i.cell0, state),
        grad_h_n=(grads.h_n, state), grad_cell_n=(grads.cell_n, state), grad_output=(grads.output, (*rows, hidden)),
        output=(i.output, (*rows, hidden)), cells=(i.cells, (*rows, hidden)), hidden_n=(i.hidden_n, (*rows, hidden)),
        queries=(i.queries, (*rows, width)), grad_context=(grads.context, (*rows, channels)),
        beta=(i.beta, (*rows, channels)), ungated=(i.ungated, (*rows, channels)),
        grad_weights=(grads.weights, (*rows, keys)), alpha=(i.alpha, (*rows, keys)), keep=(i.keep, (*rows, keys)),
        mask=(i.mask, (batch, keys)), lengths=(i.lengths, (batch,)),
    )  # fmt: skip
    sequence = BackwardSteps(grads, saved, options)
    sequence.run()
    return sequence.results()


def _check_weights(given: DecoderInputs | SavedForBackward, cell: str) -> None:
    """That they fit together, and with what is attended to."""
    key, w_q = given.key, given.w_q
    check_sizes(key=(key, ("B", "T", "A")), w_q=(w_q, (key.shape[2], "H")))
    hidden, rows = w_q.shape[1], GATES[cell] * w_q.shape[1]
    check_sizes(
        value=(given.value, (*key.shape[:2], "D")), v=(given.v, (key.shape[2],)), w_h=(given.w_h, (rows, hidden))
    )
    channels = given.value.shape[2]
    check_sizes(w_c=(given.w_c, (rows, channels)), w_beta=(given.w_beta, (channels, hidden)))
