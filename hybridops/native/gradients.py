"""Derivatives of the compiled ops themselves, for graphs that hold them without the Functions of hybridops/autograd: an
exported program loses no gradient. The library's own calls do not come by here: see `hybridops.native.call`.

An op that stands for a function of the library is differentiated as that function is, computed once more: right, and
not made for speed. Any other raises where a gradient is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hybridops import autograd
from hybridops.native import OPS, additive_attention, refuse_forward_mode
from hybridops.reference import conv_lstm as reference_conv_lstm

Formula = Callable[..., Sequence[Tensor]]

_ACTIVATIONS = ("tanh", "relu", "leaky_relu")
_SAVED = ("nothing", "cells", "gates")


def _scores(q, k, v, activation, negative_slope, key_exponentials, key_bounds):
    return (autograd.additive_attention.scores(additive_attention, q, k, v, _ACTIVATIONS[activation], negative_slope),)


def _attention(
    q, k, v, value, mask, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds, need_weights
):
    return autograd.additive_attention.attend(
        additive_attention, q, k, v, value, mask, score_bias, scale, _ACTIVATIONS[activation], negative_slope, None,
        need_weights,
    )  # fmt: skip


def _conv_lstm(x, h0, c0, w_ih, w_hh, bias, peephole, save, winograd):
    """In plain PyTorch, where the saved cells and gates have their derivatives too."""
    h0, c0 = (None if state is None else state.movedim(-1, 1) for state in (h0, c0))
    peephole = peephole if peephole is None or peephole.dim() == 2 else peephole.movedim(-1, 1)
    states = reference_conv_lstm.conv_lstm_forward(x, h0, c0, w_ih, w_hh, bias, peephole, _SAVED[save])
    return [None if s is None else s.movedim(2, -1) for s in states]


_FORMULAS: dict[str, Formula] = {
    "additive_scores_forward": _scores,
    "additive_attention_forward": _attention,
    "conv_lstm_forward": _conv_lstm,
}


class _Recomputed(torch.autograd.Function):
    """The op as it is, and the gradients of its formula; without a formula none, which it says."""

    @staticmethod
    def forward(ctx: Any, op: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.op = op
        ctx.others = [None if isinstance(arg, Tensor) else arg for arg in args]
        ctx.save_for_backward(*(arg if isinstance(arg, Tensor) else None for arg in args))
        return _below(op, keyset, args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        none = (None,) * (2 + len(needed))
        if all(grad is None for grad in grads):
            return none
        formula = _FORMULAS.get(ctx.op._opname)
        if formula is None:
            raise RuntimeError(_no_derivative(ctx.op))
        again = torch.is_grad_enabled()  # create_graph=True
        with torch.enable_grad():
            # Tensors of their own: of one that was made from another, the gradient would count for both.
            inputs = [
                t if t is None else t.view_as(t) if again and need else t.detach().requires_grad_(need)
                for t, need in zip(tensors, needed, strict=True)
            ]
            outputs = formula(*(o if t is None else t for t, o in zip(inputs, ctx.others, strict=True)))
        reached = [
            (out, grad.to(out.dtype))
            for out, grad in zip(outputs, grads, strict=True)
            if grad is not None and out is not None and out.requires_grad
        ]
        if not reached:
            return none
        outputs, grads = zip(*reached, strict=True)
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=again, allow_unused=True))
        return (None, None, *(next(found) if need else None for need in needed))


def _below(op: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet, args: tuple[Any, ...]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _no_derivative(op: torch._ops.OpOverload) -> str:
    return f"{op.name()} has no derivative: use hybridops.functional or the modules, or export under torch.no_grad()"


def register() -> torch.library.Library:
    """For every op that takes tensors; the registration lasts as long as what is given."""
    library = torch.library.Library("hybridops", "IMPL")
    for name in OPS:
        if name != "cpu_isa":
            _register(library, getattr(torch.ops.hybridops, name).default)
    return library


def _register(library: torch.library.Library, op: torch._ops.OpOverload) -> None:
    writes = op._schema.is_mutable

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if forward_ad._current_level >= 0:
            refuse_forward_mode(*(arg for arg in args if isinstance(arg, Tensor)))
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return _below(op, keyset, args)
        if writes:
            raise RuntimeError(_no_derivative(op))
        return _Recomputed.apply(op, keyset, *args)

    library.impl(op._opname, kernel, "Autograd", with_keyset=True)
