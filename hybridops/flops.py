"""What the ops count as in `torch.utils.flop_counter`: as much as it counts of the plain modules, whose products alone
count, two for each multiply-add. A step from states that are zeros has no product with them; gates that a backward
computes anew count again, as those of a checkpoint do.

Formulas are of shapes. They are registered when that module is imported, which may be never: it imports Triton.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

Shape = Sequence[int]
COUNTER = "torch.utils.flop_counter"
_waiting: dict[Any, Callable[..., int]] = {}  # by op


def register(op: torch._ops.OpOverloadPacket, formula: Callable[..., int]) -> None:
    """The formula of an op's shapes, and of its other arguments as they are."""
    _waiting[op] = formula
    if COUNTER in sys.modules:
        _register(sys.modules[COUNTER])


def _register(counter: ModuleType) -> None:
    while _waiting:
        op, formula = _waiting.popitem()
        counter.register_flop_formula(op)(formula)


class _Loader(Loader):
    """The module's own, and then what waits for it."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.own.exec_module(module)
        _register(module)


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if COUNTER not in sys.modules:
    sys.meta_path.insert(0, _Finder())


def conv_lstm_forward(x: Shape, h0: Shape | None, c0: Any, w_ih: Shape, w_hh: Shape, *_: Any, **__: Any) -> int:
    steps, images = x[0], math.prod(x[1:-1])
    return 2 * images * (steps * math.prod(w_ih) + _with_state(steps, h0 is not None) * math.prod(w_hh))


def conv_lstm_backward(
    grad_hs: Any, grad_hn: Any, grad_cn: Any, gates: Shape, cs: Shape, c0: Any, w_hh: Shape, peephole: Any,
    need_dh0: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return 2 * math.prod(cs[1:-1]) * _with_state(cs[0], need_dh0) * math.prod(w_hh)


def conv_lstm_backward_from_states(
    grad_hs: Any, grad_hn: Any, grad_cn: Any, x: Shape, h0: Shape | None, hs: Any, cs: Shape, c0: Any, w_ih: Shape,
    w_hh: Shape, bias: Any, peephole: Any, need_dh0: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    again = conv_lstm_forward(x, h0, c0, w_ih, w_hh)
    return again + conv_lstm_backward(None, None, None, x, cs, c0, w_hh, peephole, need_dh0)


def _with_state(steps: int, first: bool) -> int:
    return steps if first else steps - 1


def conv_input_gradient(da: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(da[:-1]) * math.prod(weight)


def conv_weight_gradient(
    da: Shape, x: Any, h: Any, reduced_precision: bool, winograd: int, dw_x: Shape, dw_h: Shape | None = None,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    weights = math.prod(dw_x) + (0 if dw_h is None else math.prod(dw_h))
    return 2 * math.prod(da[:-1]) * weights


def recurrence_gradients(
    family: str, impl: str, inputs: Sequence[Any], needed: Sequence[bool], states: Sequence[Any], *_: Any, **__: Any
) -> int:
    """Of a cell whose inputs begin and end as those of contract.ConvLSTMInputs, outside."""
    x, h0, _, w_ih, w_hh = inputs[:5]
    steps, images = int(x[1]), math.prod([x[0], *x[3:]])
    of_x = (needed[0] + needed[3]) * steps * math.prod(w_ih)
    of_h = _with_state(steps, needed[1]) + needed[4] * _with_state(steps, h0 is not None)
    return int(2 * images * (of_x + of_h * math.prod(w_hh)))


def additive_scores_forward(q: Shape, k: Shape, v: Any, *_: Any, **__: Any) -> int:
    """Of the product by v; the sums are no products."""
    return 2 * q[0] * q[1] * k[1] * q[2]


def additive_attention_forward(q: Shape, k: Shape, v: Any, value: Shape, *_: Any, **__: Any) -> int:
    return additive_scores_forward(q, k, v) + 2 * q[0] * q[1] * k[1] * value[2]


def additive_attention_step(
    query: Shape, projection: Shape, bias: Any, k: Shape, v: Any, value: Shape, *_: Any, **__: Any
) -> int:
    return 2 * math.prod(query[:-1]) * (math.prod(projection) + k[1] * (k[2] + value[2]))


def additive_scores_backward(grad: Shape, q: Shape, k: Shape, v: Any, *_: Any, **__: Any) -> int:
    """Of the sums that v is beside, and of v."""
    return 2 * additive_scores_forward(q, k, v)


def attention_decoder_forward(
    x_gates: Shape, key: Shape, value: Shape, v: Any, h0: Any, cell0: Any, context0: Any, w_q: Shape, b_q: Any,
    w_c: Shape, w_h: Shape, b_h: Any, w_beta: Shape | None, *_: Any, **__: Any,
) -> int:  # fmt: skip
    weights = _weights(w_q, w_c, w_h, w_beta)
    return 2 * x_gates[0] * x_gates[1] * (weights + key[1] * (key[2] + value[2]))


def attention_decoder_backward(
    grad_output: Any, grad_h_n: Any, grad_cell_n: Any, grad_context: Any, grad_weights: Any, key: Shape, value: Shape,
    v: Any, h0: Any, cell0: Any, w_q: Shape, w_c: Shape, w_h: Shape, w_beta: Shape | None, *__: Any,
    out_shape: Sequence[Shape], **___: Any,
) -> int:  # fmt: skip
    """Without that of the scores, which is an op of its own for all steps at once."""
    batch, steps, _ = out_shape[0]  # of da
    return 2 * batch * steps * (_weights(w_q, w_c, w_h, w_beta) + key[1] * value[2])


def _weights(w_q: Shape, w_c: Shape, w_h: Shape, w_beta: Shape | None) -> int:
    return sum(math.prod(w) for w in (w_q, w_c, w_h, w_beta) if w is not None)


def linear_packed(x: Shape, packed: Any, bias: Any, outputs: int, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * outputs


def linear_likeliest(x: Shape, packed: Any, bias: Any, outputs: int, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * outputs


OPS: dict[str, Callable[..., int]] = {  # of torch.ops.hybridops
    formula.__name__: formula
    for formula in (
        conv_lstm_forward, conv_lstm_backward, conv_lstm_backward_from_states, conv_input_gradient,
        conv_weight_gradient, additive_scores_forward, additive_attention_forward,
        additive_attention_step, additive_scores_backward, attention_decoder_forward, attention_decoder_backward,
        linear_packed, linear_likeliest,
    )
}  # fmt: skip
