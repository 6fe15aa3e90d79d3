"""Derivatives of the ops themselves, for graphs that hold them without the Functions beside this file: an exported
program loses no gradient. The library's own calls do not come by here: see `hybridops.native.call`.

An op that stands for a function of the library is differentiated as that function is, computed once more: right, and
not made for speed. Any other raises where a gradient is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from hybridops import native, triton
from hybridops.autograd import additive_attention, conv_lstm  # noqa: F401  the latter defines an op
from hybridops.autograd.double_backward import formula_gradients
from hybridops.autograd.transforms import refuse_forward_mode
from hybridops.checks import ACTIVATIONS
from hybridops.contract import Activation, AttentionInputs, ConvLSTMInputs, DecoderInputs, DecoderOptions, Save
from hybridops.formulas import attention_decoder as decoder_formulas
from hybridops.formulas import conv_lstm as conv_lstm_formulas
from hybridops.formulas.attention_decoder import CELLS, QUERIES

Formula = Callable[..., Sequence[Tensor]]


def _scores(q, k, v, activation, negative_slope, key_exponentials, key_bounds):
    act = Activation(ACTIVATIONS[activation], negative_slope)
    return (additive_attention.scores(native.additive_attention, q, k, v, act),)


def _attention(
    q, k, v, value, mask, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds, need_weights
):
    inputs, act = AttentionInputs(q, k, v, value, mask, score_bias), Activation(ACTIVATIONS[activation], negative_slope)
    return additive_attention.attend(native.additive_attention, inputs, act, scale, None, need_weights)[:2]


def _conv_lstm(x, h0, c0, w_ih, w_hh, bias, peephole, save, reduced_precision, winograd):
    """In plain PyTorch, where the saved cells and gates have their derivatives too."""
    return conv_lstm_formulas.conv_lstm_forward(ConvLSTMInputs(x, h0, c0, w_ih, w_hh, bias, peephole), Save(save))


def _attention_decoder(*arguments):
    """In plain PyTorch, where what is saved has its derivatives too."""
    *inputs, _, _, _, scale, activation, negative_slope, cell, query, save = arguments
    inputs = DecoderInputs(*inputs)
    options = DecoderOptions(Activation(ACTIVATIONS[activation], negative_slope), scale, CELLS[cell], QUERIES[query])
    states = decoder_formulas.attention_decoder_forward(inputs, options, save)
    if inputs.keep is None:
        states = states._replace(alpha=None)  # the op gives them once, as the weights
    if inputs.lengths is None:
        return states
    steps = torch.arange(inputs.x_gates.shape[1], device=inputs.lengths.device)
    ended = (steps >= inputs.lengths[:, None])[..., None]
    return [*states[:5], *(None if t is None else t.masked_fill(ended, 0.0) for t in states[5:])]


_FORMULAS: dict[str, Formula] = {
    "hybridops::additive_scores_forward": _scores,
    "hybridops::additive_attention_forward": _attention,
    "hybridops::conv_lstm_forward": _conv_lstm,
    "hybridops::attention_decoder_forward": _attention_decoder,
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
        formula = _FORMULAS.get(ctx.op.name())
        if formula is None:
            raise RuntimeError(_no_derivative(ctx.op))

        def of_tensors(*inputs: Tensor | None) -> Sequence[Tensor]:
            return formula(*(other if t is None else t for t, other in zip(inputs, ctx.others, strict=True)))

        found = formula_gradients(of_tensors, tensors, needed, grads, create_graph=torch.is_grad_enabled())
        return (None, None, *found)


def _below(op: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet, args: tuple[Any, ...]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _no_derivative(op: torch._ops.OpOverload) -> str:
    return f"{op.name()} has no derivative: use hybridops.functional or the modules, or export under torch.no_grad()"


def _register(library: torch.library.Library, op: torch._ops.OpOverload) -> None:
    in_lists = any("List" in str(argument.type) for argument in op._schema.arguments)
    at_once = op._schema.is_mutable or in_lists  # a Function does not see what is written into, or in a list

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if forward_ad._current_level >= 0:
            refuse_forward_mode(*(arg for arg in args if isinstance(arg, Tensor)))
        if not (
            torch.is_grad_enabled() and torch._C._any_requires_grad(*(pytree.tree_leaves(args) if in_lists else args))
        ):
            return _below(op, keyset, args)
        if at_once:
            raise RuntimeError(_no_derivative(op))
        return _Recomputed.apply(op, keyset, *args)

    library.impl(op._opname, kernel, "Autograd", with_keyset=True)


def _libraries() -> Iterator[torch.library.Library]:
    """One for each namespace; what it registers lasts as long as it does."""
    ops = [torch.ops.hybridops.conv_lstm_gradients]
    if native.unavailable_reason() is None:
        ops += [getattr(torch.ops.hybridops, name) for name in native.OPS if name != "cpu_isa"]
    if triton.unavailable_reason() is None:
        from hybridops.triton.launch import OPS

        ops += OPS
    for namespace in ("hybridops", "hybridops_triton"):
        library = torch.library.Library(namespace, "FRAGMENT")
        for op in (packet.default for packet in ops):
            if op.namespace == namespace:
                _register(library, op)
        yield library


_LIBRARIES = tuple(_libraries())
