"""The steps of the attention decoder, one after the other: what attention_decoder.py makes ops of.

A step has two products of the library: of h with all weights that it meets, [W_h; W_q; W_β], and of the context with
W_c. Between them are the kernels of the scores and of the softmax, a batched product with the value, and one pointwise
kernel for the cell. The backward of a step has two products by the same weights, not transposed. Steps only launch:
nothing waits for the GPU, and a CUDA graph captures them. In half precision products are rounded, as PyTorch's own
cells round them.

Steps come first here, (S,B,·): what a step reads and writes is in one piece. `rows of h` (.,B,R) are what is made of a
state by [W_h; W_q; W_β], or the gradients of that: R = GH + A, + D where there is a context gate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.contract import Activation, DecoderInputs, DecoderOptions, DecoderUpstreamGrads
from hybridops.triton.additive_attention import (
    EXPONENTIALS,
    SCORES,
    SOFTMAX,
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
from hybridops.triton.launch import Config, launch

# `python -m hybridops.triton.check` compiles each; none was timed on a GPU yet.
POINTWISE = Config({"BLOCK": 256}, num_warps=4)
QUERY_GRADIENT = Config({"BLOCK_X": 1, "BLOCK_Y": 32, "BLOCK_A": 64}, num_warps=2)


class SavedForBackward(NamedTuple):
    """Of contract.DecoderInputs and contract.DecoderStates what a backward reads."""

    key: Tensor
    value: Tensor
    v: Tensor
    h0: Tensor
    cell0: Tensor | None
    w_q: Tensor
    w_c: Tensor
    w_h: Tensor
    w_beta: Tensor | None
    mask: Tensor | None
    keep: Tensor | None
    lengths: Tensor | None
    output: Tensor
    cells: Tensor | None
    gates: Tensor
    hidden_n: Tensor | None
    queries: Tensor
    alpha: Tensor
    beta: Tensor | None
    ungated: Tensor | None


# -------------------------------------------------------------------------------------------------------- forward


class ForwardSteps:
    """`run`, then `results`. States and contexts, (S+1,B,·), begin with those before the first step."""

    def __init__(self, inputs: DecoderInputs, options: DecoderOptions, save: bool) -> None:
        i = self.inputs = inputs
        self.lstm, self.previous, self.save = options.cell == "lstm", options.query == "previous", save
        (self.batch, self.steps, width), (self.hidden, self.channels) = i.x_gates.shape, (i.h0.shape[1], i.w_c.shape[1])
        self.of_gates, keys = slice(0, i.w_h.shape[0]), i.key.shape[1]  # columns of the rows of h
        self.of_query = slice(self.of_gates.stop, self.of_gates.stop + i.v.shape[0])
        self.of_beta = slice(self.of_query.stop, None)
        self.x_gates, self.value, self.w_c = i.x_gates.contiguous(), i.value.contiguous(), i.w_c.T.contiguous()
        self.w_of_h, self.b_of_h = _weights_of_h(i.w_h, i.w_q, i.w_beta).T, _biases_of_h(i)
        self.attention = _Attention(i.key, i.v, i.mask, options.activation, options.scale)
        self.alive = None if i.lengths is None else _alive(i.lengths, self.steps)

        steps, gated, acc = self.steps, i.w_beta is not None, accumulation_dtype(i.x_gates.dtype)
        self.gated = gated
        self.hs, self.contexts = self._each(steps + 1, self.hidden), self._each(steps + 1, self.channels)
        self.cells = self._each(steps + 1, self.hidden, acc, kept=save and self.lstm)
        for states, first in ((self.hs, i.h0), (self.contexts, i.context0), (self.cells, i.cell0)):
            states[0].zero_() if first is None else states[0].copy_(first)
        self.of_h = self._each(steps + 1, self.w_of_h.shape[1], kept=save)
        self.gates = self._each(steps, width, kept=save)
        self.alphas = self._each(steps, keys)
        self.weights = self.alphas if i.keep is None else self._each(steps, keys)
        self.betas = self._each(steps, self.channels, kept=save and gated)
        self.ungated = self._each(steps, self.channels, kept=save) if gated else self.contexts[1:]
        self.of_context = self.x_gates.new_empty(self.batch, width)

    def _each(self, count: int, columns: int, dtype: torch.dtype | None = None, kept: bool = True) -> Tensor:
        """(count,B,columns); all of it the same memory where none is read once its step is over"""
        rows = self.x_gates.new_empty(count if kept else 1, self.batch, columns, dtype=dtype)
        return rows.expand(count, self.batch, columns)

    def run(self) -> None:
        self._multiply_h(0)
        for s in range(self.steps):
            if self.previous:
                self._attend(s, self.of_h[s])
            torch.mm(self.contexts[s + 1 if self.previous else s], self.w_c, out=self.of_context)
            self._cell(s)
            if not self.previous or s + 1 < self.steps:
                self._multiply_h(s + 1)
            if not self.previous:
                self._attend(s, self.of_h[s + 1])

    def _multiply_h(self, s: int) -> None:
        torch.addmm(self.b_of_h, self.hs[s], self.w_of_h, out=self.of_h[s])

    def _attend(self, s: int, rows_of_h: Tensor) -> None:
        bias, keep = self.inputs.score_bias, self.inputs.keep
        bias = None if bias is None else bias[:, s : s + 1]
        self.attention.weights(rows_of_h[:, None, self.of_query], bias, self.alphas[s])
        if keep is not None:
            torch.mul(self.alphas[s], keep[:, s], out=self.weights[s])
        torch.bmm(self.weights[s][:, None], self.value, out=self.ungated[s][:, None])
        if self.gated:
            launch(
                context_gate_kernel, _pointwise_grid(self.batch, self.channels), POINTWISE,
                self.ungated[s], rows_of_h[:, self.of_beta], rows_of_h.stride(0), self.contexts[s + 1],
                self.betas[s] if self.save else None, self.batch, D=self.channels,
            )  # fmt: skip

    def _cell(self, s: int) -> None:
        row_ends, gates = None if self.alive is None else self.alive[s], self.gates[s] if self.save else None
        of_h, grid = self.of_h[s], _pointwise_grid(self.batch, self.hidden)
        sums = (self.x_gates[:, s], self.x_gates.stride(0), self.of_context, of_h, of_h.stride(0), self.hs[s])
        if self.lstm:
            states = (self.cells[s], row_ends, self.hs[s + 1], self.cells[s + 1])
            launch(lstm_kernel, grid, POINTWISE, *sums, *states, gates, self.batch, H=self.hidden)
        else:
            launch(gru_kernel, grid, POINTWISE, *sums, row_ends, self.hs[s + 1], gates, self.batch, H=self.hidden)

    def results(self) -> tuple[Tensor, ...]:
        """The fields of contract.DecoderStates; what is None there has no elements."""
        save, lstm, gated = self.save, self.lstm, self.gated
        output, context, weights = (_steps_second(t) for t in (self.hs[1:], self.contexts[1:], self.weights))
        if self.alive is not None:
            ended = ~self.alive.T[..., None]
            for t in (output, context, weights):
                t.masked_fill_(ended, 0.0)
        before, asking = self.of_h[: self.steps], self.of_h[: self.steps] if self.previous else self.of_h[1:]
        of_hidden_n = slice(self.of_gates.stop - self.hidden, self.of_gates.stop)
        return (
            output, self.hs[-1].clone(), self.cells[-1].clone() if lstm else self.cells.new_empty(0, self.hidden),
            context, weights,
            _steps_second(self.cells[1:], save and lstm), _steps_second(self.gates, save),
            _steps_second(before[..., of_hidden_n], save and not lstm), _steps_second(asking[..., self.of_query], save),
            _steps_second(self.alphas, save and self.inputs.keep is not None),
            _steps_second(self.betas, save and gated), _steps_second(self.ungated, save and gated),
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- backward


class BackwardSteps:
    """`run`, then `results`. Row j of d_of_h (S+1,B,R) is of h_j, which h0 begins."""

    def __init__(self, grads: DecoderUpstreamGrads, saved: SavedForBackward, options: DecoderOptions) -> None:
        i = self.saved = saved
        self.lstm, self.previous, self.activation = (
            options.cell == "lstm",
            options.query == "previous",
            options.activation,
        )
        (self.batch, self.steps, _), (self.hidden, self.channels) = i.gates.shape, (i.h0.shape[1], i.w_c.shape[1])
        self.of_gates = slice(0, i.w_h.shape[0])  # columns of the rows of h
        self.of_query = slice(self.of_gates.stop, self.of_gates.stop + i.v.shape[0])
        self.of_beta = slice(self.of_query.stop, None)
        self.value, self.w_c, self.w_of_h = (
            i.value.contiguous(),
            i.w_c.contiguous(),
            _weights_of_h(i.w_h, i.w_q, i.w_beta),
        )
        self.alive = None if i.lengths is None else _alive(i.lengths, self.steps)
        self.first_h, self.first_cell = i.h0.contiguous(), None if i.cell0 is None else i.cell0.contiguous()
        self.grad_output, self.grad_context, self.grad_weights = map(
            _Rows, (grads.output, grads.context, grads.weights)
        )
        self.output, self.cells, self.gates, self.hidden_n = map(_Rows, (i.output, i.cells, i.gates, i.hidden_n))
        self.keep, self.alpha, self.beta, self.ungated = map(_Rows, (i.keep, i.alpha, i.beta, i.ungated))
        self.attended = strided(None if i.mask is None else i.mask[:, None])

        new, acc = i.gates.new_empty, accumulation_dtype(i.gates.dtype)
        self.scaled_v = i.v.to(acc) * options.scale
        self.d_of_h = new(self.steps + 1, self.batch, self.w_of_h.shape[0])
        if not self.previous:
            self.d_of_h[self.steps, :, self.of_gates] = 0.0  # no cell reads the last h
        of_cells = self.d_of_h[: self.steps, :, self.of_gates]
        self.da = of_cells if self.lstm else new(of_cells.shape)
        self.dungated = new(self.steps, self.batch, self.channels)
        self.dscores = new(self.steps, self.batch, i.key.shape[1], dtype=acc)
        self.dalpha = new(self.batch, i.key.shape[1], 1)
        # what goes from a step to the one before
        self.dh = _summed(grads.h_n, i.h0, acc)
        self.dcell = _summed(grads.cell_n, i.h0, acc) if self.lstm else new(0, dtype=acc)
        self.dh_product, self.dc_product = new(i.h0.shape).zero_(), new(self.batch, self.channels).zero_()

    def run(self) -> None:
        for s in reversed(range(self.steps)):
            if self.previous:
                self._through_cell(s)
                self._through_attention(s, self.d_of_h[s])
                torch.mm(self.d_of_h[s], self.w_of_h, out=self.dh_product)
            else:
                self._through_attention(s, self.d_of_h[s + 1])
                torch.mm(self.d_of_h[s + 1], self.w_of_h, out=self.dh_product)
                self._through_cell(s)
        if not self.previous:
            torch.mm(self.d_of_h[0, :, self.of_gates], self.w_of_h[self.of_gates], out=self.dh_product)

    def _through_cell(self, s: int) -> None:
        row_ends, da_h, grid = self._row_ends(s), self.d_of_h[s], _pointwise_grid(self.batch, self.hidden)
        given = (*self.grad_output.at(s), *self.gates.at(s))
        if self.lstm:
            before = self.cells.at(s - 1) if s else (self.first_cell, self.hidden)
            launch(
                lstm_backward_kernel, grid, POINTWISE,
                self.dh_product, self.dh, self.dcell, *given, *self.cells.at(s), *before, row_ends,
                da_h, da_h.stride(0), self.batch, H=self.hidden,
            )  # fmt: skip
        else:
            before = self.output.at(s - 1) if s else (self.first_h, self.hidden)
            launch(
                gru_backward_kernel, grid, POINTWISE,
                self.dh_product, self.dh, *given, *self.hidden_n.at(s), *before, row_ends,
                self.da[s], da_h, da_h.stride(0), self.batch, H=self.hidden,
            )  # fmt: skip
        torch.mm(self.da[s], self.w_c, out=self.dc_product)

    def _through_attention(self, s: int, d_row: Tensor) -> None:
        i, row_ends, (batch, keys, width) = self.saved, self._row_ends(s), self.saved.key.shape
        dbeta = (None, 0) if i.w_beta is None else (d_row[:, self.of_beta], d_row.stride(0))
        launch(
            context_backward_kernel, _pointwise_grid(batch, self.channels), POINTWISE,
            self.dc_product, *self.grad_context.at(s), *self.beta.at(s), *self.ungated.at(s), row_ends,
            self.dungated[s], *dbeta, batch, D=self.channels,
        )  # fmt: skip
        torch.bmm(self.value, self.dungated[s][..., None], out=self.dalpha)
        launch(
            softmax_backward_kernel, (batch,), SOFTMAX,
            self.dalpha, *self.grad_weights.at(s), *self.keep.at(s), self.attended, *self.alpha.at(s), row_ends,
            self.dscores[s], keys,
        )  # fmt: skip
        kind, negative_slope = self.activation
        launch(
            gradients_kernel, (batch, 1, triton.cdiv(width, QUERY_GRADIENT.blocks["BLOCK_A"])), QUERY_GRADIENT,
            strided(self.dscores[s][:, None]), strided(i.queries[:, s : s + 1]), strided(i.key), self.scaled_v, 1,
            strided(d_row[:, None, self.of_query]), None, 1, keys,
            A=width, ACTIVATION=kind, SLOPE=negative_slope, RANGE=QUOTIENT_RANGE[self.scaled_v.dtype],
        )  # fmt: skip

    def _row_ends(self, s: int) -> Tensor | None:
        return None if self.alive is None else self.alive[s]

    def results(self) -> tuple[Tensor, ...]:
        """The fields of contract.DecoderGradients; what is None there, and da_h of an LSTM, have no elements."""
        h0, gated = self.saved.h0, self.saved.w_beta is not None
        asking = self.d_of_h[: self.steps] if self.previous else self.d_of_h[1:]
        return (
            _steps_second(self.da), _steps_second(self.d_of_h[: self.steps, :, self.of_gates], not self.lstm),
            _steps_second(asking[..., self.of_query]), _steps_second(self.dungated), _steps_second(self.dscores),
            _steps_second(asking[..., self.of_beta], gated),
            (self.dh + self.dh_product).to(h0.dtype), self.dcell, h0.new_empty(0) if self.previous else self.dc_product,
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- pieces


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


def _weights_of_h(w_h: Tensor, w_q: Tensor, w_beta: Tensor | None) -> Tensor:
    """(R,H)"""
    return torch.cat([w for w in (w_h, w_q, w_beta) if w is not None])


def _biases_of_h(i: DecoderInputs) -> Tensor:
    """(R), zeros where there is none"""
    pairs = ((i.b_h, i.w_h), (i.b_q, i.w_q), (i.b_beta, i.w_beta))
    return torch.cat([w.new_zeros(w.shape[0]) if b is None else b for b, w in pairs if w is not None])


def _summed(grad: Tensor | None, like: Tensor, acc: torch.dtype) -> Tensor:
    """In memory of its own, to be added to; zeros if there is none"""
    if grad is None:
        return torch.zeros_like(like, dtype=acc, memory_format=torch.contiguous_format)
    return grad.to(acc, copy=True).contiguous()


def _pointwise_grid(batch: int, columns: int) -> tuple[int]:
    return (triton.cdiv(batch * columns, POINTWISE.blocks["BLOCK"]),)


def _alive(lengths: Tensor, steps: int) -> Tensor:
    """(S,B): the rows whose step is not behind their end"""
    return torch.arange(steps, device=lengths.device)[:, None] < lengths


def _steps_second(x: Tensor, wanted: bool = True) -> Tensor:
    """(B,S,·) of (S,B,·), in memory of its own; without an element if it is not wanted"""
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format) if wanted else x.new_empty(0)
