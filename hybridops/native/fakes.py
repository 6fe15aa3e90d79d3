"""The shapes and dtypes that the compiled ops give, for torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.native.library import unavailable_reason

if unavailable_reason() is None:

    @torch.library.register_fake("hybridops::conv_lstm_forward")
    def _(x, h0, c0, w_ih, w_hh, bias, peephole, save, reduced_precision, winograd):
        steps, batch, *space, _ = x.shape
        hidden, acc = w_hh.shape[1], accumulation_dtype(x.dtype)
        hs = x.new_empty(steps, batch, *space, hidden)
        cs = x.new_empty(steps if save else 1, batch, *space, hidden, dtype=acc)
        return hs, cs, x.new_empty(steps if save == 2 else 0, batch, *space, 4 * hidden)

    @torch.library.register_fake("hybridops::conv_lstm_backward")
    def _(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0, reduced_precision, winograd):
        return _backward_shapes(gates.dtype, cs, need_dh0)

    @torch.library.register_fake("hybridops::conv_lstm_backward_from_states")
    def _(
        grad_hs, grad_hn, grad_cn, x, h0, hs, cs, c0, w_ih, w_hh, bias, peephole, need_dh0, reduced_precision, winograd
    ):
        return _backward_shapes(hs.dtype, cs, need_dh0)

    def _backward_shapes(dtype: torch.dtype, cs: Tensor, need_dh0: bool) -> tuple[Tensor, Tensor, Tensor]:
        steps, batch, *space, hidden = cs.shape
        da = cs.new_empty(steps, batch, *space, 4 * hidden, dtype=dtype)
        return da, cs.new_empty(batch if need_dh0 else 0, *space, hidden), cs.new_empty(batch, *space, hidden)

    @torch.library.register_fake("hybridops::conv_input_gradient")
    def _(da, weight, reduced_precision, winograd, dx):
        return None

    @torch.library.register_fake("hybridops::conv_weight_gradient")
    def _(da, x, h, reduced_precision, winograd, dw_x, dw_h):
        return None

    @torch.library.register_fake("hybridops::additive_scores_forward")
    def _(q, k, v, activation, negative_slope, key_exponentials, key_bounds):
        return q.new_empty(q.shape[0], q.shape[1], k.shape[1], dtype=accumulation_dtype(q.dtype))

    @torch.library.register_fake("hybridops::additive_attention_forward")
    def _(q, k, v, value, mask, score_bias, scale, activation, negative_slope, exponentials, bounds, need_weights):
        context = q.new_empty(q.shape[0], q.shape[1], value.shape[2])
        return context, q.new_empty(q.shape[0], q.shape[1], k.shape[1] if need_weights else 0)

    @torch.library.register_fake("hybridops::additive_prepare_keys")
    def _(k):
        acc = accumulation_dtype(k.dtype)
        group = _lanes(acc, vectors=4)
        padded = -(-k.shape[2] // group) * group
        return k.new_empty(*k.shape[:2], padded, dtype=acc), k.new_empty(k.shape[:2], dtype=acc)

    @torch.library.register_fake("hybridops::additive_attention_step")
    def _(query, projection, bias, k, v, value, mask, scale, activation, slope, exponentials, bounds, need_weights):
        rows = query.shape[:-1]
        return query.new_empty(*rows, value.shape[2]), query.new_empty(*rows, k.shape[1] if need_weights else 0)

    def _lanes(dtype: torch.dtype, vectors: int) -> int:
        return vectors * (16, 32, 64, 64)[torch.ops.hybridops.cpu_isa()] // dtype.itemsize

    @torch.library.register_fake("hybridops::additive_scores_backward")
    def _(grad, q, k, v, activation, negative_slope):
        return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))

    def _packed_bytes(dtype: torch.dtype, outputs: int, inputs: int, vectors: int) -> int:
        """Whole groups of outputs, whole operands of inputs: packed_product_kernels.h"""
        acc = accumulation_dtype(dtype)
        dot_product = dtype == torch.bfloat16 and torch.ops.hybridops.cpu_isa() == 3
        (depth, size), width = (2, 2) if dot_product else (1, acc.itemsize), _lanes(acc, vectors)
        bytes = -(-outputs // width) * width * -(-inputs // depth) * depth * size
        return -(-bytes // 64) * 64

    def _plain_vectors() -> int:
        return 4 if torch.ops.hybridops.cpu_isa() >= 2 else 2

    @torch.library.register_fake("hybridops::attention_decoder_pack")
    def _(w_q, w_c, w_h, w_beta, cell):
        acc = accumulation_dtype(w_q.dtype)
        (width, hidden), channels, plain = w_q.shape, w_c.shape[1], _plain_vectors()
        gates, units = 4 if cell == 0 else 3, -(-hidden // _lanes(acc, 1)) * _lanes(acc, 1)
        weights = [(width, hidden, plain), (gates * units, channels, gates), (gates * units, hidden, gates)]
        weights += [] if w_beta is None else [(channels, hidden, plain)]
        return w_q.new_empty(64 + sum(_packed_bytes(w_q.dtype, *w) for w in weights), dtype=torch.uint8)

    @torch.library.register_fake("hybridops::linear_pack")
    def _(weight):
        return weight.new_empty(64 + _packed_bytes(weight.dtype, *weight.shape, _plain_vectors()), dtype=torch.uint8)

    @torch.library.register_fake("hybridops::linear_packed")
    def _(x, packed, bias, outputs):
        return x.new_empty(x.shape[0], outputs)

    @torch.library.register_fake("hybridops::attention_decoder_forward")
    def _(
        x_gates, key, value, v, h0, cell0, context0, w_q, b_q, w_c, w_h, b_h, w_beta, b_beta, mask, score_bias, keep,
        lengths, exponentials, bounds, packed, scale, activation, slope, cell, query, save,
    ):  # fmt: skip
        new, lstm, gated = x_gates.new_empty, cell == 0, save and w_beta is not None
        batch, steps, hidden, acc = *x_gates.shape[:2], h0.shape[1], accumulation_dtype(x_gates.dtype)

        def rows(wanted: bool, width: int, dtype: torch.dtype | None = None) -> Tensor:
            return new(batch, steps, width, dtype=dtype) if wanted else new(0, dtype=dtype)

        context, weights = rows(True, value.shape[2]), rows(True, key.shape[1])
        cell_n = new(batch, hidden, dtype=acc) if lstm else new(0, dtype=acc)
        saved = (
            rows(save and lstm, hidden, acc), rows(save, x_gates.shape[2]), rows(save and not lstm, hidden),
            rows(save, key.shape[2]), rows(save and keep is not None, key.shape[1]),
            rows(gated, value.shape[2]), rows(gated, value.shape[2]),
        )  # fmt: skip
        return rows(True, hidden), new(batch, hidden), cell_n, context, weights, *saved

    @torch.library.register_fake("hybridops::attention_decoder_backward")
    def _(
        grad_output, grad_h_n, grad_cell_n, grad_context, grad_weights, key, value, v, h0, cell0, w_q, w_c, w_h, w_beta,
        mask, keep, lengths, exponentials, bounds, output, cells, gates, hidden_n, queries, alpha, beta, ungated,
        scale, activation, slope, cell, query,
    ):  # fmt: skip
        new, lstm, acc = gates.new_empty, cell == 0, accumulation_dtype(gates.dtype)
        batch, steps, _ = gates.shape
        return (
            new(gates.shape), new(0) if lstm else new(gates.shape), new(queries.shape),
            new(batch, steps, value.shape[2]), new(batch, steps, key.shape[1], dtype=acc),
            new(0) if w_beta is None else new(batch, steps, value.shape[2]),
            new(h0.shape), new(h0.shape if lstm else (0,), dtype=acc),
            new(0) if query == 0 else new(batch, value.shape[2]),
        )  # fmt: skip
