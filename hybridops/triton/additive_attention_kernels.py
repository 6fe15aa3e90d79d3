"""Kernels of attention in a forward pass, whose scores are those of additive_scores_kernels.py; names are as there."""

from __future__ import annotations

import triton
import triton.language as tl

from hybridops.triton.additive_scores_kernels import pair_scores
from hybridops.triton.launch import grid_position
from hybridops.triton.math import cast, offset, product


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, q_exp_ptr, q_bound_ptr, k_exp_ptr, k_bound_ptr, bias_ptr, S, T, A,
    q_b, q_s, q_a, k_b, k_t, k_a, v_a, bias_b, bias_s, bias_t,
    scores_ptr, mask_ptr, value_ptr, context_ptr, top_ptr, total_ptr,
    mask_b, mask_s, mask_t, value_b, value_t, value_d,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, WIDTH: tl.constexpr,
    FOUR: tl.constexpr, TWO: tl.constexpr, ONE: tl.constexpr, MAX_V: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """A block of queries over its share of the keys: context (B,S,D), by a softmax whose maximum rises as it goes

    (Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867). Of several shares (B,S,SPLITS,D) each is left a sum,
    beside its maximum and the sum of its exponentials, (B,S,SPLITS). The scores (B,S,T) are written if wanted.
    """
    b, block, split = grid_position(tl.cdiv(S, BLOCK_S), SPLITS)
    s = block * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]
    d = tl.arange(0, BLOCK_D)[None]
    value_ptr += b * value_b
    if mask_ptr is not None:
        mask_ptr += b * mask_b
    top = tl.full((BLOCK_S, 1), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_S, 1), tl.float32)
    seen = tl.zeros((BLOCK_S, 1), tl.int32)
    context = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    share = tl.cdiv(tl.cdiv(T, BLOCK_T), SPLITS) * BLOCK_T
    first = split * share
    for start in range(first, tl.minimum(first + share, T), BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)[None]
        scores = pair_scores(
            q_ptr, k_ptr, v_ptr, q_exp_ptr, q_bound_ptr, k_exp_ptr, k_bound_ptr, bias_ptr, b, s, t, S, T, A,
            q_b, q_s, q_a, k_b, k_t, k_a, v_a, bias_b, bias_s, bias_t, tl.zeros((BLOCK_S, BLOCK_T), tl.float32),
            ACTIVATION, SLOPE, SCALE, WIDTH, FOUR, TWO, ONE, MAX_V,
        )  # fmt: skip
        attended = (s < S) & (t < T)
        if scores_ptr is not None:
            tl.store(scores_ptr + (b * S + s) * T + t, scores, attended)
        if mask_ptr is not None:
            attended &= tl.load(mask_ptr + offset(s, mask_s) + offset(t, mask_t), attended, 0) != 0
        before = top
        top = tl.maximum(top, tl.max(tl.where(attended, scores, float("-inf")), 1)[:, None])
        shift = tl.where(top == float("-inf"), 0.0, top)  # no score yet, or none that counts
        weights = tl.where(attended, tl.exp(scores - shift), 0.0)
        shrink = tl.exp(before - shift)
        total = total * shrink + tl.sum(weights, 1)[:, None]
        seen = tl.maximum(seen, tl.max(attended.to(tl.int32), 1)[:, None])
        rows = start + tl.arange(0, BLOCK_T)[:, None]
        value = tl.load(value_ptr + offset(rows, value_t) + offset(d, value_d), (rows < T) & (d < D), 0.0)
        if BLOCK_S == 1:
            context = context * shrink + tl.sum(tl.trans(weights) * value.to(tl.float32), 0)[None]
        else:
            context = product(cast(weights, value.dtype), value, context * shrink, PRECISION)

    inside = (s < S) & (d < D)
    if SPLITS == 1:
        # a row that may attend nothing is zeros; one that attends to scores of -inf alone is 0/0, as in PyTorch
        context = tl.where(seen != 0, context / total, 0.0)
        tl.store(context_ptr + (b * S + s) * D + d, cast(context, context_ptr.dtype.element_ty), inside)
    else:
        at = (b * S + s) * SPLITS + split
        tl.store(context_ptr + at * D + d, context, inside)
        tl.store(top_ptr + at, top, s < S)
        # zero only if nothing was attended to: with a maximum of -inf the value does not count
        tl.store(total_ptr + at, tl.where((seen != 0) & (top == float("-inf")), 1.0, total), s < S)


@triton.jit
def combine_kernel(
    parts_ptr, top_ptr, total_ptr, context_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr
):  # fmt: skip
    """A row of context (B,S,D) from the shares of the keys that `attention_kernel` left"""
    row = tl.program_id(0).to(tl.int64)
    at = row * SPLITS + tl.arange(0, SPLITS)[:, None]
    d = tl.arange(0, BLOCK_D)[None]
    top, total = tl.load(top_ptr + at), tl.load(total_ptr + at)
    seen = tl.max((total != 0).to(tl.int32))
    highest = tl.max(top)
    shrink = tl.exp(top - tl.where(highest == float("-inf"), 0.0, highest))
    parts = tl.load(parts_ptr + at * D + d, d < D, 0.0)
    context = tl.sum(parts * shrink, 0)[None] / tl.sum(total * shrink)
    context = tl.where(seen != 0, context, 0.0)
    tl.store(context_ptr + row * D + d, cast(context, context_ptr.dtype.element_ty), d < D)


@triton.jit
def softmax_kernel(
    scores_ptr, mask_ptr, weights_ptr, S, T, mask_b, mask_s, mask_t, BLOCK_T: tl.constexpr
):  # fmt: skip
    """A row of weights (B,S,T): the softmax of the scores where mask is True, 0 elsewhere"""
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * T
    weights_ptr += row * T
    if mask_ptr is not None:
        mask_ptr += row // S * mask_b + row % S * mask_s
    dtype = scores_ptr.dtype.element_ty
    top = tl.full((BLOCK_T,), float("-inf"), dtype)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        attended = attended_keys(mask_ptr, t, T, mask_t)
        top = tl.maximum(top, tl.load(scores_ptr + t, attended, float("-inf")))
    top = tl.max(top)
    total = tl.zeros((BLOCK_T,), dtype)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        attended = attended_keys(mask_ptr, t, T, mask_t)
        total += tl.where(attended, tl.exp(tl.load(scores_ptr + t, attended, 0.0) - top), 0.0)
    total = tl.sum(total)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        attended = attended_keys(mask_ptr, t, T, mask_t)
        weights = tl.where(attended, tl.exp(tl.load(scores_ptr + t, attended, 0.0) - top) / total, 0.0)
        tl.store(weights_ptr + t, cast(weights, weights_ptr.dtype.element_ty), t < T)


@triton.jit
def attended_keys(mask_ptr, t, T, mask_t):
    attended = t < T
    if mask_ptr is not None:
        attended &= tl.load(mask_ptr + offset(t, mask_t), attended, 0) != 0
    return attended
