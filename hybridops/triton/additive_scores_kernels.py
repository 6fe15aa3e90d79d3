"""Kernels of the additive scores.

The factored tanh: with P = e^2q and Q = e^2k, tanh(q+k) = 1 - 2r with r = 1/(1 + PQ): exponentials once a row, not once
a pair, and one reciprocal serves several pairs. How far |q| + |k| may go for that is said in RANGE; beyond, and for
infinities and NaN, a tile takes tanh itself.

<tensor>_b, _s, _t, _a, _n are the strides of a tensor along the batch, queries, keys, channels, rows of either kind.
A block is a variable with the tensor's name; everything is computed in the dtype of the scores, `acc`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hybridops.triton.launch import grid_position
from hybridops.triton.math import exponential, offset, reciprocal, tanh

# Sums of |q| + |k| up to which the product of four factors 1 + PQ is finite, of two, and one; and Σ|v| up to which the
# numerators over such products are. (1 + e^21)^4 = 3e36 = (1 + e^42)^2, 1 + e^86 = 2e37; the last keeps 1/x normal.
RANGE = {
    torch.float32: {"FOUR": 10.5, "TWO": 21.0, "ONE": 43.0, "MAX_V": 1e10},
    torch.float64: {"FOUR": 80.0, "TWO": 170.0, "ONE": 350.0, "MAX_V": 1e30},
}


@triton.jit
def exponentials_kernel(
    x_ptr, e_ptr, bounds_ptr, N, x_b, x_n, x_a, A: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_A: tl.constexpr
):  # fmt: skip
    """e (B,A',N') = e^2x, A' and N' multiples of four, and bounds (B,N) = max_a |x|"""
    b, block, _ = grid_position(tl.cdiv(N, BLOCK_N), 1)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    e_ptr += b * padded(A) * padded(N)
    bounds = tl.zeros((BLOCK_N,), bounds_ptr.dtype.element_ty)
    for start in range(0, A, BLOCK_A):
        a = start + tl.arange(0, BLOCK_A)
        inside = (n < N)[:, None] & (a < A)[None]
        x = tl.load(x_ptr + b * x_b + offset(n, x_n)[:, None] + offset(a, x_a)[None], inside, 0.0).to(bounds.dtype)
        inside = (n < padded(N))[:, None] & (a < padded(A))[None]
        tl.store(e_ptr + offset(a, padded(N))[None] + n[:, None], exponential(2 * x), inside)
        bounds = tl.maximum(bounds, tl.max(magnitude(x), 1))
    tl.store(bounds_ptr + b * N + n, bounds, n < N)


@triton.jit
def scores_kernel(
    q_ptr, k_ptr, v_ptr, q_exp_ptr, q_bound_ptr, k_exp_ptr, k_bound_ptr, bias_ptr, S, T, A,
    q_b, q_s, q_a, k_b, k_t, k_a, v_a, bias_b, bias_s, bias_t, scores_ptr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, WIDTH: tl.constexpr,
    FOUR: tl.constexpr, TWO: tl.constexpr, ONE: tl.constexpr, MAX_V: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """A tile of scores (B,S,T)"""
    b, s_block, t_block = grid_position(tl.cdiv(S, BLOCK_S), tl.cdiv(T, BLOCK_T))
    # a column and a row from the start: loads are then laid out as what they are broadcast to
    s = s_block * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]
    t = t_block * BLOCK_T + tl.arange(0, BLOCK_T)[None]
    scores = pair_scores(
        q_ptr, k_ptr, v_ptr, q_exp_ptr, q_bound_ptr, k_exp_ptr, k_bound_ptr, bias_ptr, b, s, t, S, T, A,
        q_b, q_s, q_a, k_b, k_t, k_a, v_a, bias_b, bias_s, bias_t,
        tl.zeros((BLOCK_S, BLOCK_T), scores_ptr.dtype.element_ty),
        ACTIVATION, SLOPE, SCALE, WIDTH, FOUR, TWO, ONE, MAX_V,
    )  # fmt: skip
    tl.store(scores_ptr + (b * S + s) * T + t, scores, (s < S) & (t < T))


@triton.jit
def pair_scores(
    q_ptr, k_ptr, v_ptr, q_exp_ptr, q_bound_ptr, k_exp_ptr, k_bound_ptr, bias_ptr, b, s, t, S, T, A,
    q_b, q_s, q_a, k_b, k_t, k_a, v_a, bias_b, bias_s, bias_t, scores,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, WIDTH: tl.constexpr,
    FOUR: tl.constexpr, TWO: tl.constexpr, ONE: tl.constexpr, MAX_V: tl.constexpr,
):  # fmt: skip
    """scale Σ_a v_a act(q + k) + bias of queries s, a column, and keys t, a row; `scores` is zeros of that shape

    A is no constant: a loop over few channels would be unrolled as a whole, and its loads take all registers.
    """
    q_ptr += b * q_b
    k_ptr += b * k_b
    if ACTIVATION == "tanh":
        q_exp_ptr += b * padded(A) * padded(S)
        k_exp_ptr += b * padded(A) * padded(T)
        a = tl.arange(0, WIDTH)
        v = tl.load(v_ptr + offset(a, v_a), a < A, 0.0).to(scores.dtype)
        q_bound = tl.max(tl.load(q_bound_ptr + b * S + s, s < S, 0.0))
        bound = q_bound + tl.max(tl.load(k_bound_ptr + b * T + t, t < T, 0.0))
        factored = tl.sum(tl.abs(v)) <= MAX_V
        if factored & (bound <= FOUR):
            scores = quotients(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, scores, A, 4)
            scores = tl.sum(v) - 2 * scores
        elif factored & (bound <= TWO):
            scores = quotients(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, scores, A, 2)
            scores = tl.sum(v) - 2 * scores
        elif factored & (bound <= ONE):
            scores = quotients(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, scores, A, 1)
            scores = tl.sum(v) - 2 * scores
        else:
            scores = values(q_ptr, k_ptr, v_ptr, s, t, S, T, q_s, q_a, k_t, k_a, v_a, scores, A, ACTIVATION, SLOPE)
    else:
        scores = values(q_ptr, k_ptr, v_ptr, s, t, S, T, q_s, q_a, k_t, k_a, v_a, scores, A, ACTIVATION, SLOPE)
    scores *= SCALE
    if bias_ptr is not None:
        bias_ptr += b * bias_b + offset(s, bias_s) + offset(t, bias_t)
        scores += tl.load(bias_ptr, (s < S) & (t < T), 0.0).to(scores.dtype)
    return scores


@triton.jit
def quotients(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, acc, A, SHARE: tl.constexpr):
    """acc + Σ_a v_a / (1 + P_a Q_a), where SHARE channels, of 1, 2 and 4, share a reciprocal"""
    for a in range(0, A, SHARE):
        if SHARE == 1:
            n, d = quotient(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, acc, a, A)
        elif SHARE == 2:
            n, d = sum_of_two(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, acc, a, A)
        else:
            n1, d1 = sum_of_two(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, acc, a, A)
            n2, d2 = sum_of_two(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, acc, a + 2, A)
            n, d = n1 * d2 + n2 * d1, d1 * d2
        acc += n * reciprocal(d)
    return acc


@triton.jit
def sum_of_two(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, acc, a, A):
    """v1/x1 + v2/x2 = (v1 x2 + v2 x1) / (x1 x2): numerator and denominator"""
    v1, x1 = quotient(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, acc, a, A)
    v2, x2 = quotient(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, acc, a + 1, A)
    return v1 * x2 + v2 * x1, x1 * x2


@triton.jit
def quotient(q_exp_ptr, k_exp_ptr, v_ptr, s, t, S, T, v_a, acc, a, A):
    """v_a and 1 + P_a Q_a; beyond the last channel 0 and 2"""
    p = tl.load(q_exp_ptr + offset(a, padded(S)) + s, s < S, 0.0)
    q = tl.load(k_exp_ptr + offset(a, padded(T)) + t, t < T, 0.0)
    return tl.load(v_ptr + offset(a, v_a), a < A, 0.0).to(acc.dtype), 1 + p * q


@triton.jit
def values(
    q_ptr, k_ptr, v_ptr, s, t, S, T, q_s, q_a, k_t, k_a, v_a, acc, A, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr
):  # fmt: skip
    """acc + Σ_a v_a act(q_a + k_a)"""
    for a in range(A):
        q = tl.load(q_ptr + offset(s, q_s) + offset(a, q_a), s < S, 0.0).to(acc.dtype)
        k = tl.load(k_ptr + offset(t, k_t) + offset(a, k_a), t < T, 0.0).to(acc.dtype)
        v = tl.load(v_ptr + offset(a, v_a)).to(acc.dtype)
        acc += v * activate(q + k, ACTIVATION, SLOPE)
    return acc


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    if ACTIVATION == "tanh":
        return tanh(z)
    elif ACTIVATION == "relu":
        return tl.where(z < 0, 0.0, z)  # NaN stays
    else:
        return tl.where(z > 0, z, z * SLOPE)


@triton.jit
def magnitude(x):
    """|x|, infinite where x is NaN: a maximum would pass over that"""
    return tl.where(x == x, tl.abs(x), float("inf"))


@triton.jit
def padded(size):
    """As many channels as share a reciprocal, or a vector's worth of rows"""
    return (size + 3) // 4 * 4
