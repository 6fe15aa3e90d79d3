"""The attention decoder in Triton. Contract: contract.AttentionDecoderImpl.

A step has two products of the library: of h with all weights that it meets, [W_h; W_q; W_β], and of the context with
W_c. Between them are the kernels of the scores and of the softmax, a batched product with the value, and one pointwise
kernel for the cell. The backward of a step has two products by the same weights, not transposed. A sequence is one op
that only launches: nothing waits for the GPU, and a CUDA graph captures it. In half precision products are rounded, as
PyTorch's own cells round them.

Within an op steps come first, (S,B,·): what a step reads and writes is in one piece. `rows of h` (.,B,R) are what is
made of a state by [W_h; W_q; W_β], or the gradients of that: R = GH + A, + D where there is a context gate.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
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
from hybridops.triton.additive_attention import (
    EXPONENTIALS,
    SCORES,
    SOFTMAX,
    additive_scores_backward,
    pairs_of,
    prepare_keys,
    score_constants,
)
from hybridops.triton.additive_attention_kernels import softmax_kernel
from hybridops.triton.additive_gradient_kernels import gradients_kernel
from hybridops.triton.additive_scores_kernels import QUOTIENT_RANGE, exponentials_kernel, scores_kernel
from hybridops.triton.arguments import strided
from hybridops.triton.attention_decoder_kernels import (
    context_backward_kernel,
    context_gate_kernel,
    gru_backward_kernel,
    gru_kernel,
    lstm_backward_kernel,
    lstm_kernel,
    softmax_backward_kernel,
)
from hybridops.triton.launch import Config, launch, op
from hybridops.triton.sizes import check_sizes

__all__ = ["additive_scores_backward", "attention_decoder_backward", "attention_decoder_forward"]

# `python -m hybridops.triton.check` compiles each; none was timed on a GPU yet.
POINTWISE = Config({"BLOCK": 256}, num_warps=4)
QUERY_GRADIENT = Config({"BLOCK_X": 1, "BLOCK_Y": 32, "BLOCK_A": 64}, num_warps=2)


# --------------------------------------------------------------------------------------------------- what is here


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
    i, s = inputs, states
    da, da_h, dq, dcontext, dscores, dbeta, dh0, dcell0, dcontext0 = _backward(
        *grads, i.key, i.value, i.v, i.h0, i.cell0, i.w_q, i.w_c, i.w_h, i.w_beta, i.mask, i.keep, i.lengths,
        s.output, s.cells, s.gates, s.hidden_n, s.queries, s.alpha, s.beta, s.ungated, *_flat(options),
    )  # fmt: skip
    lstm = options.cell == "lstm"
    return DecoderGradients(
        da, da if lstm else da_h, dq, dcontext, dscores, None if i.w_beta is None else dbeta, dh0,
        dcell0 if lstm else None, None if options.query == "previous" else dcontext0,
    )  # fmt: skip


def _flat(options: DecoderOptions) -> tuple[float, str, float, str, str]:
    (kind, negative_slope), scale, cell, query = options
    return scale, kind, negative_slope, cell, query


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
    inputs, (scale, activation, negative_slope, cell, query, save) = DecoderInputs(*arguments[:18]), arguments[18:]
    i, lstm, previous = inputs, cell == "lstm", query == "previous"
    _check_weights(i.w_q, i.w_c, i.w_h, i.w_beta, i.key, i.value, i.v, cell)
    (batch, steps, width), (hidden, channels) = i.x_gates.shape, (i.w_q.shape[1], i.value.shape[2])
    gates_of_h, attention_width, keys = i.w_h.shape[0], i.v.shape[0], i.key.shape[1]
    check_sizes(
        x_gates=(i.x_gates, (i.key.shape[0], "S", gates_of_h)), h0=(i.h0, (batch, hidden)),
        cell0=(i.cell0, (batch, hidden)), context0=(i.context0, (batch, channels)),
        b_q=(i.b_q, (attention_width,)), b_h=(i.b_h, (gates_of_h,)), b_beta=(i.b_beta, (channels,)),
        mask=(i.mask, (batch, keys)), score_bias=(i.score_bias, (batch, steps, keys)),
        keep=(i.keep, (batch, steps, keys)), lengths=(i.lengths, (batch,)),
    )  # fmt: skip
    x_gates, value, w_c = i.x_gates.contiguous(), i.value.contiguous(), i.w_c.T.contiguous()
    w_of_h, b_of_h = _weights_of_h(i.w_h, i.w_q, i.w_beta).T, _biases_of_h(i)
    alive = None if i.lengths is None else _alive(i.lengths, steps)
    new, acc = x_gates.new_empty, accumulation_dtype(x_gates.dtype)

    def each_step(count: int, columns: int, dtype: torch.dtype = x_gates.dtype, kept: bool = True) -> Tensor:
        """(count,B,columns); all of it the same memory where none is read once its step is over"""
        return new(count if kept else 1, batch, columns, dtype=dtype).expand(count, batch, columns)

    hs, contexts = each_step(steps + 1, hidden), each_step(steps + 1, channels)
    hs[0].copy_(i.h0)
    cells = each_step(steps + 1, hidden, acc, kept=save)
    if i.cell0 is not None:
        cells[0].copy_(i.cell0)
    if i.context0 is None:
        contexts[0].zero_()
    else:
        contexts[0].copy_(i.context0)
    of_h = each_step(steps + 1, w_of_h.shape[1], kept=save)
    gates = each_step(steps, width, kept=save)
    alphas = each_step(steps, keys)
    weights = alphas if i.keep is None else each_step(steps, keys)
    gated = i.w_beta is not None
    ungated = each_step(steps, channels, kept=save) if gated else contexts[1:]
    betas = each_step(steps, channels, kept=save)
    of_context = new(batch, width)
    attention = _Attention(i.key, i.v, i.mask, Activation(activation, negative_slope), scale)
    of_units, of_channels = _pointwise_grid(batch, hidden), _pointwise_grid(batch, channels)

    def attend(s: int, rows: Tensor) -> None:
        bias = None if i.score_bias is None else i.score_bias[:, s : s + 1]
        attention.weights(rows[:, None, gates_of_h : gates_of_h + attention_width], bias, alphas[s])
        if i.keep is not None:
            torch.mul(alphas[s], i.keep[:, s], out=weights[s])
        torch.bmm(weights[s][:, None], value, out=ungated[s][:, None])
        if gated:
            launch(
                context_gate_kernel, of_channels, POINTWISE,
                ungated[s], rows[:, gates_of_h + attention_width :], rows.stride(0), contexts[s + 1],
                betas[s] if save else None, batch, D=channels,
            )  # fmt: skip

    torch.addmm(b_of_h, hs[0], w_of_h, out=of_h[0])
    for s in range(steps):
        if previous:
            attend(s, of_h[s])
        torch.mm(contexts[s + 1 if previous else s], w_c, out=of_context)
        sums = (x_gates[:, s], x_gates.stride(0), of_context, of_h[s], of_h[s].stride(0), hs[s])
        row_ends, saved = None if alive is None else alive[s], gates[s] if save else None
        if lstm:
            states = (cells[s], row_ends, hs[s + 1], cells[s + 1])
            launch(lstm_kernel, of_units, POINTWISE, *sums, *states, saved, batch, H=hidden)
        else:
            launch(gru_kernel, of_units, POINTWISE, *sums, row_ends, hs[s + 1], saved, batch, H=hidden)
        if not previous or s + 1 < steps:
            torch.addmm(b_of_h, hs[s + 1], w_of_h, out=of_h[s + 1])
        if not previous:
            attend(s, of_h[s + 1])

    output, context, found = _steps_second(hs[1:]), _steps_second(contexts[1:]), _steps_second(weights)
    if alive is not None:
        ended = ~alive.T[..., None]
        for t in (output, context, found):
            t.masked_fill_(ended, 0.0)
    asking = of_h[:steps] if previous else of_h[1:]
    return (
        output, hs[-1].clone(), cells[-1].clone() if lstm else new(0, hidden, dtype=acc), context, found,
        _steps_second(cells[1:], save and lstm), _steps_second(gates, save),
        _steps_second(of_h[:steps, :, gates_of_h - hidden : gates_of_h], save and not lstm),
        _steps_second(asking[..., gates_of_h : gates_of_h + attention_width], save),
        _steps_second(alphas, save and i.keep is not None), _steps_second(betas, save and gated),
        _steps_second(ungated, save and gated),
    )  # fmt: skip


def _backward_fake(
    grad_output, grad_h_n, grad_cell_n, grad_context, grad_weights, key, value, v, h0, cell0, w_q, w_c, w_h, w_beta,
    mask, keep, lengths, output, cells, gates, hidden_n, queries, alpha, beta, ungated,
    scale, activation, negative_slope, cell, query,
):  # fmt: skip
    new, lstm, acc = gates.new_empty, cell == "lstm", accumulation_dtype(gates.dtype)
    (batch, steps, _), keys, channels = gates.shape, key.shape[1], value.shape[2]
    return (
        new(gates.shape), new(0) if lstm else new(gates.shape), new(queries.shape), new(batch, steps, channels),
        new(batch, steps, keys, dtype=acc), new(0) if w_beta is None else new(batch, steps, channels),
        new(h0.shape), new(h0.shape if lstm else (0,), dtype=acc),
        new(0) if query == "previous" else new(batch, channels),
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
def _backward(
    grad_output, grad_h_n, grad_cell_n, grad_context, grad_weights, key, value, v, h0, cell0, w_q, w_c, w_h, w_beta,
    mask, keep, lengths, output, cells, gates, hidden_n, queries, alpha, beta, ungated,
    scale, activation, negative_slope, cell, query,
):  # fmt: skip
    """The fields of contract.DecoderGradients; what is None there, and da_h of an LSTM, have no elements."""
    lstm, previous = cell == "lstm", query == "previous"
    _check_weights(w_q, w_c, w_h, w_beta, key, value, v, cell)
    (batch, keys, width), channels = key.shape, value.shape[2]
    hidden, gates_of_h, steps = h0.shape[1], w_h.shape[0], gates.shape[1]
    rows, state = (batch, steps), (batch, w_q.shape[1])
    check_sizes(
        gates=(gates, (batch, "S", gates_of_h)), h0=(h0, state), cell0=(cell0, state), grad_h_n=(grad_h_n, state),
        grad_cell_n=(grad_cell_n, state), grad_output=(grad_output, (*rows, hidden)), output=(output, (*rows, hidden)),
        cells=(cells, (*rows, hidden)), hidden_n=(hidden_n, (*rows, hidden)), queries=(queries, (*rows, width)),
        grad_context=(grad_context, (*rows, channels)), beta=(beta, (*rows, channels)),
        ungated=(ungated, (*rows, channels)), grad_weights=(grad_weights, (*rows, keys)), alpha=(alpha, (*rows, keys)),
        keep=(keep, (*rows, keys)), mask=(mask, (batch, keys)), lengths=(lengths, (batch,)),
    )  # fmt: skip
    new, acc = gates.new_empty, accumulation_dtype(gates.dtype)
    value, w_c, w_of_h = value.contiguous(), w_c.contiguous(), _weights_of_h(w_h, w_q, w_beta)
    alive = None if lengths is None else _alive(lengths, steps)
    grad_output, grad_context, grad_weights, keep, gates, cells, hidden_n, output, beta, ungated, alpha = (
        _Rows(t) for t in (
            grad_output, grad_context, grad_weights, keep, gates, cells, hidden_n, output, beta, ungated, alpha
        )
    )  # fmt: skip
    scaled_v = v.to(acc) * scale
    constants = {"A": width, "ACTIVATION": activation, "SLOPE": negative_slope, "RANGE": QUOTIENT_RANGE[acc]}
    attended = strided(None if mask is None else mask[:, None])

    # row j is of h_j, which the states before the first step begin
    d_of_h = new(steps + 1, batch, w_of_h.shape[0])
    da = d_of_h[:steps, :, :gates_of_h] if lstm else new(steps, batch, gates_of_h)
    dungated, dscores = new(steps, batch, channels), new(steps, batch, keys, dtype=acc)
    dh = new(batch, hidden, dtype=acc).zero_() if grad_h_n is None else grad_h_n.to(acc, copy=True).contiguous()
    dcell = None
    if lstm:
        dcell = dh.new_zeros(dh.shape) if grad_cell_n is None else grad_cell_n.to(acc, copy=True).contiguous()
    dh_product, dc_product = new(batch, hidden).zero_(), new(batch, channels).zero_()
    dalpha = new(batch, keys, 1)
    of_units, of_channels = _pointwise_grid(batch, hidden), _pointwise_grid(batch, channels)
    of_queries = (batch, 1, triton.cdiv(width, QUERY_GRADIENT.blocks["BLOCK_A"]))

    def through_cell(s: int) -> None:
        row_ends, da_h = None if alive is None else alive[s], d_of_h[s]
        given = (dh_product, dh, *((dcell,) if lstm else ()), *grad_output.at(s), *gates.at(s))
        if lstm:
            before = cells.at(s - 1) if s else (first_cell, hidden)
            launch(
                lstm_backward_kernel, of_units, POINTWISE,
                *given, *cells.at(s), *before, row_ends, da_h, da_h.stride(0), batch, H=hidden,
            )  # fmt: skip
        else:
            before = output.at(s - 1) if s else (first_h, hidden)
            launch(
                gru_backward_kernel, of_units, POINTWISE,
                *given, *hidden_n.at(s), *before, row_ends, da[s], da_h, da_h.stride(0), batch, H=hidden,
            )  # fmt: skip
        torch.mm(da[s], w_c, out=dc_product)

    def through_attention(s: int) -> None:
        row_ends, d_row = None if alive is None else alive[s], d_of_h[s if previous else s + 1]
        dbeta = (d_row[:, gates_of_h + width :], d_row.stride(0)) if w_beta is not None else (None, 0)
        launch(
            context_backward_kernel, of_channels, POINTWISE,
            dc_product, *grad_context.at(s), *beta.at(s), *ungated.at(s), row_ends, dungated[s], *dbeta, batch,
            D=channels,
        )  # fmt: skip
        torch.bmm(value, dungated[s][..., None], out=dalpha)
        launch(
            softmax_backward_kernel, (batch,), SOFTMAX,
            dalpha, *grad_weights.at(s), *keep.at(s), attended, *alpha.at(s), row_ends, dscores[s], keys,
        )  # fmt: skip
        launch(
            gradients_kernel, of_queries, QUERY_GRADIENT,
            strided(dscores[s][:, None]), strided(queries[:, s : s + 1]), strided(key), scaled_v, 1,
            strided(d_row[:, None, gates_of_h : gates_of_h + width]), None, 1, keys, **constants,
        )  # fmt: skip

    first_h, first_cell = h0.contiguous(), None if cell0 is None else cell0.contiguous()
    if not previous:
        d_of_h[steps, :, :gates_of_h] = 0.0
    for s in reversed(range(steps)):
        if previous:
            through_cell(s)
            through_attention(s)
            torch.mm(d_of_h[s], w_of_h, out=dh_product)
        else:
            through_attention(s)
            torch.mm(d_of_h[s + 1], w_of_h, out=dh_product)
            through_cell(s)
    if not previous:
        torch.mm(d_of_h[0, :, :gates_of_h], w_of_h[:gates_of_h], out=dh_product)

    asking = d_of_h[:steps] if previous else d_of_h[1:]
    return (
        _steps_second(da), new(0) if lstm else _steps_second(d_of_h[:steps, :, :gates_of_h]),
        _steps_second(asking[..., gates_of_h : gates_of_h + width]), _steps_second(dungated), _steps_second(dscores),
        new(0) if w_beta is None else _steps_second(asking[..., gates_of_h + width :]),
        (dh + dh_product).to(h0.dtype), dcell if lstm else new(0, dtype=acc), new(0) if previous else dc_product,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- pieces


class _Attention:
    """The weights of one query for each entry of the batch, step after step."""

    def __init__(self, key: Tensor, v: Tensor, mask: Tensor | None, activation: Activation, scale: float) -> None:
        (self.batch, self.keys, self.width), acc = key.shape, accumulation_dtype(key.dtype)
        self.key, self.v = key, v
        self.mask = strided(None if mask is None else mask[:, None])
        self.constants = score_constants(v, scale, *activation)
        self.scores = key.new_empty(self.batch, 1, self.keys, dtype=acc)
        of_key = prepare_keys(key, activation.kind)
        self.factors: tuple[Any, ...]
        if of_key is None:  # the kernel walks along the channels
            self.key, self.factors = key.transpose(1, 2).contiguous().transpose(1, 2), (None,) * 4
        else:
            of_query = key.new_empty(self.batch, of_key[0].shape[1], 4, dtype=acc)
            self.factors = (of_query, key.new_empty(self.batch, 1, dtype=acc), *of_key)

    def weights(
        self,
        query: Tensor,  # (B,1,A)
        score_bias: Tensor | None,  # (B,1,T)
        alpha: Tensor,  # (B,T), written
    ) -> None:
        exponentials, bounds = self.factors[:2]
        if exponentials is not None:
            query_factors = (strided(query), exponentials, bounds)
            launch(exponentials_kernel, (self.batch, 1), EXPONENTIALS, *query_factors, 1, A=self.width)
        config = SCORES["one query"]
        grid = (self.batch, 1, triton.cdiv(self.keys, config.blocks["BLOCK_T"]))
        pairs = pairs_of(query, self.key, self.v, score_bias, self.factors)
        launch(scores_kernel, grid, config, pairs, self.scores, **self.constants)
        launch(softmax_kernel, (self.batch,), SOFTMAX, self.scores, self.mask, alpha, 1, self.keys)


class _Rows:
    """A tensor (B,S,·), or none: of each step, as kernels take it, the pointer and how far its rows are apart."""

    def __init__(self, tensor: Tensor | None) -> None:
        self.tensor = None if tensor is None else tensor.contiguous()

    def at(self, s: int) -> tuple[Tensor | None, int]:
        return (None, 0) if self.tensor is None else (self.tensor[:, s], self.tensor.stride(0))


def _check_weights(
    w_q: Tensor, w_c: Tensor, w_h: Tensor, w_beta: Tensor | None, key: Tensor, value: Tensor, v: Tensor, cell: str
) -> None:
    """That they fit together, and with what is attended to."""
    check_sizes(key=(key, ("B", "T", "A")), w_q=(w_q, (key.shape[2], "H")))
    hidden, rows = w_q.shape[1], GATES[cell] * w_q.shape[1]
    check_sizes(value=(value, (*key.shape[:2], "D")), v=(v, (key.shape[2],)), w_h=(w_h, (rows, hidden)))
    check_sizes(w_c=(w_c, (rows, value.shape[2])), w_beta=(w_beta, (value.shape[2], hidden)))


def _weights_of_h(w_h: Tensor, w_q: Tensor, w_beta: Tensor | None) -> Tensor:
    """(R,H)"""
    return torch.cat([w for w in (w_h, w_q, w_beta) if w is not None])


def _biases_of_h(i: DecoderInputs) -> Tensor:
    """(R), zeros where there is none"""
    pairs = ((i.b_h, i.w_h), (i.b_q, i.w_q), (i.b_beta, i.w_beta))
    return torch.cat([w.new_zeros(w.shape[0]) if b is None else b for b, w in pairs if w is not None])


def _pointwise_grid(batch: int, columns: int) -> tuple[int]:
    return (triton.cdiv(batch * columns, POINTWISE.blocks["BLOCK"]),)


def _alive(lengths: Tensor, steps: int) -> Tensor:
    """(S,B): the rows whose step is not behind their end"""
    return torch.arange(steps, device=lengths.device)[:, None] < lengths


def _steps_second(x: Tensor, wanted: bool = True) -> Tensor:
    """(B,S,·) of (S,B,·), in memory of its own; without an element if it is not wanted"""
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format) if wanted else x.new_empty(0)
