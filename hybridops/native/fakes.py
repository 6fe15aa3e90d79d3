"""The shapes and dtypes that the compiled ops give, for torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.native.library import unavailable_reason

Maybe = Tensor | None

if unavailable_reason() is None:

    @torch.library.register_fake("hybridops::conv_lstm_forward")
    def _(
        x: Tensor, h0: Maybe, c0: Maybe, w_ih: Tensor, w_hh: Tensor, bias: Maybe, peephole: Maybe, save: int,
        *options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        steps, batch, *space, _ = x.shape
        hidden, acc = w_hh.shape[1], accumulation_dtype(x.dtype)
        hs = x.new_empty(steps, batch, *space, hidden)
        cs = x.new_empty(steps if save else 1, batch, *space, hidden, dtype=acc)
        return hs, cs, x.new_empty(steps if save == 2 else 0, batch, *space, 4 * hidden)

    @torch.library.register_fake("hybridops::conv_lstm_backward")
    def _(
        grad_hs: Maybe, grad_hn: Maybe, grad_cn: Maybe, gates: Tensor, cs: Tensor, c0: Maybe, w_hh: Tensor,
        peephole: Maybe, need_dh0: bool, *_: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return _backward_shapes(gates.dtype, cs, need_dh0)

    @torch.library.register_fake("hybridops::conv_lstm_backward_from_states")
    def _(
        grad_hs: Maybe, grad_hn: Maybe, grad_cn: Maybe, x: Tensor, h0: Maybe, hs: Tensor, cs: Tensor, c0: Maybe,
        w_ih: Tensor, w_hh: Tensor, bias: Maybe, peephole: Maybe, need_dh0: bool, *_: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return _backward_shapes(hs.dtype, cs, need_dh0)

    def _backward_shapes(dtype: torch.dtype, cs: Tensor, need_dh0: bool) -> tuple[Tensor, Tensor, Tensor]:
        steps, batch, *space, hidden = cs.shape
        da = cs.new_empty(steps, batch, *space, 4 * hidden, dtype=dtype)
        return da, cs.new_empty(batch if need_dh0 else 0, *space, hidden), cs.new_empty(batch, *space, hidden)

    @torch.library.register_fake("hybridops::conv_input_gradient")
    def _(*_: Any) -> None:
        """It writes into an argument, as the next one does."""

    @torch.library.register_fake("hybridops::conv_weight_gradient")
    def _(*_: Any) -> None:
        pass

    @torch.library.register_fake("hybridops::additive_scores_forward")
    def _(q: Tensor, k: Tensor, *_: Any) -> Tensor:
        return q.new_empty(q.shape[0], q.shape[1], k.shape[1], dtype=accumulation_dtype(q.dtype))

    @torch.library.register_fake("hybridops::additive_attention_forward")
    def _(
        q: Tensor, k: Tensor, v: Tensor, value: Tensor, mask: Maybe, score_bias: Maybe, scale: float, activation: int,
        negative_slope: float, exponentials: Maybe, bounds: Maybe, need_weights: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        context = q.new_empty(q.shape[0], q.shape[1], value.shape[2])
        return context, q.new_empty(q.shape[0], q.shape[1], k.shape[1] if need_weights else 0)

    @torch.library.register_fake("hybridops::additive_prepare_keys")
    def _(k: Tensor) -> tuple[Tensor, Tensor]:
        acc = accumulation_dtype(k.dtype)
        group = _lanes(acc, vectors=4)
        padded = -(-k.shape[2] // group) * group
        return k.new_empty(*k.shape[:2], padded, dtype=acc), k.new_empty(k.shape[:2], dtype=acc)

    @torch.library.register_fake("hybridops::additive_attention_step")
    def _(
        query: Tensor, projection: Tensor, bias: Maybe, k: Tensor, v: Tensor, value: Tensor, mask: Maybe, scale: float,
        activation: int, slope: float, exponentials: Maybe, bounds: Maybe, need_weights: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows = query.shape[:-1]
        return query.new_empty(*rows, value.shape[2]), query.new_empty(*rows, k.shape[1] if need_weights else 0)

    def _lanes(dtype: torch.dtype, vectors: int) -> int:
        return vectors * (16, 32, 64, 64, 64)[_isa()] // dtype.itemsize

    def _isa() -> int:
        return int(torch.ops.hybridops.cpu_isa())

    @torch.library.register_fake("hybridops::additive_scores_backward")
    def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        return dq, dk, dv

    def _packed_bytes(dtype: torch.dtype, outputs: int, inputs: int, vectors: int) -> int:
        """Whole groups of outputs, whole operands of inputs: packed_product_kernels.h"""
        acc = accumulation_dtype(dtype)
        operands = {3: (2, 2), 4: (32, 2)} if dtype == torch.bfloat16 else {}
        (depth, size), width = operands.get(_isa(), (1, acc.itemsize)), _lanes(acc, vectors)
        bytes = -(-outputs // width) * width * -(-inputs // depth) * depth * size
        return -(-bytes // 64) * 64

    def _plain_vectors() -> int:
        return 4 if _isa() >= 2 else 2

    @torch.library.register_fake("hybridops::attention_decoder_pack")
    def _(w_q: Tensor, w_c: Tensor, w_h: Tensor, w_beta: Maybe, cell: int) -> Tensor:
        acc = accumulation_dtype(w_q.dtype)
        (width, hidden), channels, plain = w_q.shape, w_c.shape[1], _plain_vectors()
        gates, units = 4 if cell == 0 else 3, -(-hidden // _lanes(acc, 1)) * _lanes(acc, 1)
        weights = [(width, hidden, plain), (gates * units, channels, gates), (gates * units, hidden, gates)]
        weights += [] if w_beta is None else [(channels, hidden, plain)]
        return w_q.new_empty(64 + sum(_packed_bytes(w_q.dtype, *w) for w in weights), dtype=torch.uint8)

    @torch.library.register_fake("hybridops::linear_pack")
    def _(weight: Tensor) -> Tensor:
        outputs, inputs = weight.shape
        return weight.new_empty(64 + _packed_bytes(weight.dtype, outputs, inputs, _plain_vectors()), dtype=torch.uint8)

    @torch.library.register_fake("hybridops::linear_packed")
    def _(x: Tensor, packed: Tensor, bias: Maybe, outputs: int) -> Tensor:
        return x.new_empty(x.shape[0], outputs)

    @torch.library.register_fake("hybridops::linear_likeliest")
    def _(x: Tensor, packed: Tensor, bias: Maybe, outputs: int, count: int) -> tuple[Tensor, Tensor]:
        shape = (x.shape[0], count)
        return x.new_empty(shape, dtype=accumulation_dtype(x.dtype)), x.new_empty(shape, dtype=torch.int64)

    @torch.library.register_fake("hybridops::attention_decoder_forward")
    def _(
        x_gates: Tensor, key: Tensor, value: Tensor, v: Tensor, h0: Tensor, cell0: Maybe, context0: Maybe, w_q: Tensor,
        b_q: Maybe, w_c: Tensor, w_h: Tensor, b_h: Maybe, w_beta: Maybe, b_beta: Maybe, mask: Maybe, score_bias: Maybe,
        keep: Maybe, lengths: Maybe, exponentials: Maybe, bounds: Maybe, packed: Maybe, scale: float, activation: int,
        slope: float, cell: int, query: int, save: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        new, lstm, gated = x_gates.new_empty, cell == 0, save and w_beta is not None
        (batch, steps, _), hidden, acc = x_gates.shape, h0.shape[1], accumulation_dtype(x_gates.dtype)

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
        grad_output: Maybe, grad_h_n: Maybe, grad_cell_n: Maybe, grad_context: Maybe, grad_weights: Maybe, key: Tensor,
        value: Tensor, v: Tensor, h0: Tensor, cell0: Maybe, w_q: Tensor, w_c: Tensor, w_h: Tensor, w_beta: Maybe,
        mask: Maybe, keep: Maybe, lengths: Maybe, exponentials: Maybe, bounds: Maybe, output: Tensor, cells: Maybe,
        gates: Tensor, hidden_n: Maybe, queries: Tensor, alpha: Maybe, beta: Maybe, ungated: Maybe, scale: float,
        activation: int, slope: float, cell: int, query: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        new, lstm, acc = gates.new_empty, cell == 0, accumulation_dtype(gates.dtype)
        batch, steps, _ = gates.shape
        return (
            new(gates.shape), new(0) if lstm else new(gates.shape), new(queries.shape),
            new(batch, steps, value.shape[2]), new(batch, steps, key.shape[1], dtype=acc),
            new(0) if w_beta is None else new(batch, steps, value.shape[2]),
            new(h0.shape), new(h0.shape if lstm else (0,), dtype=acc),
            new(0) if query == 0 else new(batch, value.shape[2]),
        )  # fmt: skip
