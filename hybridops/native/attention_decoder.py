"""The attention decoder in compiled code: attention_decoder.* in csrc/cpu and csrc/cuda. Contract:
contract.AttentionDecoderImpl.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridops.checks import ACTIVATIONS
from hybridops.contract import DecoderGradients, DecoderInputs, DecoderOptions, DecoderStates, DecoderUpstreamGrads
from hybridops.formulas.attention_decoder import CELLS, QUERIES
from hybridops.native.additive_attention import additive_scores_backward, prepare_keys
from hybridops.native.library import call

__all__ = [
    "additive_scores_backward", "attention_decoder_backward", "attention_decoder_forward", "pack_weights",
    "prepare_keys", "takes_attended_keys",
]  # fmt: skip

takes_attended_keys = True


def attention_decoder_forward(
    inputs: DecoderInputs,
    options: DecoderOptions,
    save: bool,
    key_exponentials: tuple[Tensor, Tensor] | None = None,
    packed: Tensor | None = None,
) -> DecoderStates:
    """`packed`: what pack_weights made of these weights, which are then not read; it does not see that they change."""
    states = call(
        torch.ops.hybridops.attention_decoder_forward.default,
        *inputs[:-1], *(key_exponentials or (None, None)), packed, *_flat(options), save,
    )  # fmt: skip
    lstm, gated = options.cell == "lstm", inputs.w_beta is not None
    output, h_n, cell_n, context, weights, cells, gates, hidden_n, queries, alpha, beta, ungated = states
    results = (output, h_n, cell_n if lstm else None, context, weights)
    if not save:
        return DecoderStates(*results)
    alpha = weights if inputs.keep is None else alpha
    saved = (gates, None if lstm else hidden_n, queries, alpha, *((beta, ungated) if gated else (None, None)))
    return DecoderStates(*results, cells if lstm else None, *saved)


def pack_weights(w_q: Tensor, w_c: Tensor, w_h: Tensor, w_beta: Tensor | None, cell: str) -> Tensor:
    """The weights as the forward otherwise packs them at every call, which takes longer than a step of decoding; on the
    CPU alone.
    """
    weights = (None if w is None else w.detach() for w in (w_q, w_c, w_h, w_beta))
    return call(torch.ops.hybridops.attention_decoder_pack.default, *weights, CELLS.index(cell))


def attention_decoder_backward(
    grads: DecoderUpstreamGrads,
    inputs: DecoderInputs,
    options: DecoderOptions,
    states: DecoderStates,
    key_exponentials: tuple[Tensor, Tensor] | None = None,
) -> DecoderGradients:
    i, s = inputs, states
    da, da_h, dq, dcontext, dscores, dbeta, dh0, dcell0, dcontext0 = call(
        torch.ops.hybridops.attention_decoder_backward.default,
        *grads, i.key, i.value, i.v, i.h0, i.cell0, i.w_q, i.w_c, i.w_h, i.w_beta, i.mask, i.keep, i.lengths,
        *(key_exponentials or (None, None)),
        s.output, s.cells, s.gates, s.hidden_n, s.queries, s.alpha, s.beta, s.ungated, *_flat(options),
    )  # fmt: skip
    lstm = options.cell == "lstm"
    return DecoderGradients(
        da, da if lstm else da_h, dq, dcontext, dscores, None if i.w_beta is None else dbeta, dh0,
        dcell0 if lstm else None, None if options.query == "previous" else dcontext0,
    )  # fmt: skip


def _flat(options: DecoderOptions) -> tuple[float, int, float, int, int]:
    """As the ops take them."""
    (kind, negative_slope), scale, cell, query = options
    return scale, ACTIVATIONS.index(kind), negative_slope, CELLS.index(cell), QUERIES.index(query)
