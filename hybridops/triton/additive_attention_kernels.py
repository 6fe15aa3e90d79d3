"""Kernels of the attention in a forward pass, on the scores of additive_scores_kernels.py; names are as there."""

from __future__ import annotations

import triton
import triton.language as tl

from hybridops.triton.additive_scores_kernels import pair_scores
from hybridops.triton.launch import grid_position
from hybridops.triton.math import cast, offset, product


@triton.jit
def attention_kernel(
    pairs, scores_ptr, mask, value, context_ptr, max_ptr, sum_ptr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, WIDTH: tl.constexpr, RANGE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """A block of queries over a split of the keys: context (B,S,D), by a softmax whose maximum is updated on the way

    (Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867). With several splits it leaves of each a sum
    (B,S,SPLITS,D), the maximum and the sum of the exponentials (B,S,SPLITS). The scores (B,S,T) are written if wanted.
    """
    S, T = pairs.S, pairs.T
    b, block, split = grid_position(tl.cdiv(S, BLOCK_S), SPLITS)
    s = block * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]
    d = tl.arange(0, BLOCK_D)[None]
    p_value = value.ptr + b * value.batch
    if mask.ptr is not None:
        p_mask = mask.ptr + b * mask.batch
    b_max = tl.full((BLOCK_S, 1), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_S, 1), tl.float32)
    b_seen = tl.zeros((BLOCK_S, 1), tl.int32)
    b_context = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    keys_per_split = tl.cdiv(tl.cdiv(T, BLOCK_T), SPLITS) * BLOCK_T
    first = split * keys_per_split
    for start in range(first, tl.minimum(first + keys_per_split, T), BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)[None]
        b_scores = tl.zeros((BLOCK_S, BLOCK_T), tl.float32)
        b_scores = pair_scores(pairs, b, s, t, b_scores, ACTIVATION, SLOPE, SCALE, WIDTH, RANGE)
        attended = (s < S) & (t < T)
        if scores_ptr is not None:
            tl.store(scores_ptr + (b * S + s) * T + t, b_scores, attended)
        if mask.ptr is not None:
            attended &= tl.load(p_mask + offset(s, mask.row) + offset(t, mask.column), attended, 0) != 0
        b_old_max = b_max
        b_max = tl.maximum(b_max, tl.max(tl.where(attended, b_scores, float("-inf")), 1)[:, None])
        b_shift = tl.where(b_max == float("-inf"), 0.0, b_max)  # no score yet, or none that counts
        b_weights = tl.where(attended, tl.exp(b_scores - b_shift), 0.0)
        b_rescale = tl.exp(b_old_max - b_shift)
        b_sum = b_sum * b_rescale + tl.sum(b_weights, 1)[:, None]
        b_seen = tl.maximum(b_seen, tl.max(attended.to(tl.int32), 1)[:, None])
        rows = start + tl.arange(0, BLOCK_T)[:, None]
        b_value = tl.load(p_value + offset(rows, value.row) + offset(d, value.column), (rows < T) & (d < D), 0.0)
        if BLOCK_S == 1:
            b_context = b_context * b_rescale + tl.sum(tl.trans(b_weights) * b_value.to(tl.float32), 0)[None]
        else:
            b_context = product(cast(b_weights, b_value.dtype), b_value, b_context * b_rescale, PRECISION)

    inside = (s < S) & (d < D)
    if SPLITS == 1:
        # A row that may attend nothing is zeros; one that attends to scores of -inf alone is 0/0, as in PyTorch.
        b_context = tl.where(b_seen != 0, b_context / b_sum, 0.0)
        tl.store(context_ptr + (b * S + s) * D + d, cast(b_context, context_ptr.dtype.element_ty), inside)
    else:
        at = (b * S + s) * SPLITS + split
        tl.store(context_ptr + at * D + d, b_context, inside)
        tl.store(max_ptr + at, b_max, s < S)
        # Zero only if nothing was attended to: with a maximum of -inf the value does not count.
        tl.store(sum_ptr + at, tl.where((b_seen != 0) & (b_max == float("-inf")), 1.0, b_sum), s < S)


@triton.jit
def combine_kernel(
    parts_ptr, max_ptr, sum_ptr, context_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr
):  # fmt: skip
    """A row of context (B,S,D) from what `attention_kernel` left of each split of the keys"""
    row = tl.program_id(0).to(tl.int64)
    at = row * SPLITS + tl.arange(0, SPLITS)[:, None]
    d = tl.arange(0, BLOCK_D)[None]
    b_max, b_sum = tl.load(max_ptr + at), tl.load(sum_ptr + at)
    seen = tl.max((b_sum != 0).to(tl.int32))
    row_max = tl.max(b_max)
    b_rescale = tl.exp(b_max - tl.where(row_max == float("-inf"), 0.0, row_max))
    b_parts = tl.load(parts_ptr + at * D + d, d < D, 0.0)
    b_context = tl.sum(b_parts * b_rescale, 0)[None] / tl.sum(b_sum * b_rescale)
    b_context = tl.where(seen != 0, b_context, 0.0)
    tl.store(context_ptr + row * D + d, cast(b_context, context_ptr.dtype.element_ty), d < D)


@triton.jit
def softmax_kernel(scores_ptr, mask, weights_ptr, S, T, BLOCK_T: tl.constexpr):
    """A row of weights (B,S,T): the softmax of the scores where the mask is True, 0 elsewhere"""
    row = tl.program_id(0).to(tl.int64)
    p_scores = scores_ptr + row * T
    p_weights = weights_ptr + row * T
    dtype = scores_ptr.dtype.element_ty
    b_max = tl.full((BLOCK_T,), float("-inf"), dtype)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        b_max = tl.maximum(b_max, tl.load(p_scores + t, attended_keys(mask, row, t, S, T), float("-inf")))
    row_max = tl.max(b_max)
    b_sum = tl.zeros((BLOCK_T,), dtype)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        attended = attended_keys(mask, row, t, S, T)
        b_sum += tl.where(attended, tl.exp(tl.load(p_scores + t, attended, 0.0) - row_max), 0.0)
    row_sum = tl.sum(b_sum)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        attended = attended_keys(mask, row, t, S, T)
        b_weights = tl.where(attended, tl.exp(tl.load(p_scores + t, attended, 0.0) - row_max) / row_sum, 0.0)
        tl.store(p_weights + t, cast(b_weights, weights_ptr.dtype.element_ty), t < T)


@triton.jit
def attended_keys(mask, row, t, S, T):
    """Which of the keys t there are, and are let through by the mask, of a row that counts all queries (B,S)"""
    attended = t < T
    if mask.ptr is not None:
        p_mask = mask.ptr + row // S * mask.batch + row % S * mask.row + offset(t, mask.column)
        attended &= tl.load(p_mask, attended, 0) != 0
    return attended
