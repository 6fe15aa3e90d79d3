"""Kernels of the additive scores.

The factored tanh: with P = e^2q and Q = e^2k, tanh(q+k) = 1 - 2r with r = 1/(1 + PQ). So there is an exponential a row,
not a pair, and one reciprocal serves several channels. QUOTIENT_RANGE says how large |q| + |k| may be for that. Beyond,
and for infinities and NaN, a tile takes tanh itself.

In a kernel, `p_x` is a pointer or a block of pointers into the tensor x, and `b_x` a block of its values. All is
computed in the dtype of the scores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from hybridops.triton.launch import grid_position
from hybridops.triton.math import exponential, offset, reciprocal, tanh


class QuotientRange(NamedTuple):
    """Largest |q| + |k| for which a product of 1 + PQ is finite, by how many channels share a reciprocal."""

    merged: float  # four
    paired: float  # two
    single: float  # one: 1/(1 + PQ) is a normal number too
    max_v: float  # largest Σ|v|, which such a product is multiplied by


# (1 + e^21)^4 = 3e36 = (1 + e^42)^2 and 1 + e^86 = 2e37, where float32 ends at 3e38 and is normal from 1e-38 on. A
# merged numerator is up to max_v (1 + e^21)^3 = 2e37. In float64 likewise, which ends at 2e308.
QUOTIENT_RANGE = {
    torch.float32: QuotientRange(merged=10.5, paired=21.0, single=43.0, max_v=1e10),
    torch.float64: QuotientRange(merged=80.0, paired=170.0, single=350.0, max_v=1e30),
}


@triton.jit
def exponentials_kernel(
    x, exp_ptr, bound_ptr, N, A: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_A: tl.constexpr
):  # fmt: skip
    """exp (B,A',N') = e^2x of x (B,N,A), A' and N' multiples of four, and bound (B,N) = max_a |x|"""
    b, block, _ = grid_position(tl.cdiv(N, BLOCK_N), 1)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    p_exp = exp_ptr + b * padded(A) * padded(N)
    b_bound = tl.zeros((BLOCK_N,), bound_ptr.dtype.element_ty)
    for start in range(0, A, BLOCK_A):
        a = start + tl.arange(0, BLOCK_A)
        p_x = x.ptr + b * x.batch + offset(n, x.row)[:, None] + offset(a, x.column)[None]
        b_x = tl.load(p_x, (n < N)[:, None] & (a < A)[None], 0.0).to(b_bound.dtype)
        inside = (n < padded(N))[:, None] & (a < padded(A))[None]
        tl.store(p_exp + offset(a, padded(N))[None] + n[:, None], exponential(2 * b_x), inside)
        b_bound = tl.maximum(b_bound, tl.max(magnitude(b_x), 1))
    tl.store(bound_ptr + b * N + n, b_bound, n < N)


@triton.jit
def scores_kernel(
    pairs, scores_ptr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, WIDTH: tl.constexpr, RANGE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """A tile of scores (B,S,T)"""
    S, T = pairs.S, pairs.T
    b, s_block, t_block = grid_position(tl.cdiv(S, BLOCK_S), tl.cdiv(T, BLOCK_T))
    # A column and a row from the start: loads are then laid out as what they are broadcast to.
    s = s_block * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]
    t = t_block * BLOCK_T + tl.arange(0, BLOCK_T)[None]
    b_scores = tl.zeros((BLOCK_S, BLOCK_T), scores_ptr.dtype.element_ty)
    b_scores = pair_scores(pairs, b, s, t, b_scores, ACTIVATION, SLOPE, SCALE, WIDTH, RANGE)
    tl.store(scores_ptr + (b * S + s) * T + t, b_scores, (s < S) & (t < T))


@triton.jit
def pair_scores(
    pairs, b, s, t, b_scores,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, WIDTH: tl.constexpr, RANGE: tl.constexpr,
):  # fmt: skip
    """scale Σ_a v_a act(q + k) + bias of queries s, a column, and keys t, a row; b_scores is zeros of that shape

    A is not a constant: Triton would unroll a loop over few channels completely, and its loads would take all
    registers.
    """
    if ACTIVATION == "tanh":
        p_q = pairs.q_exp_ptr + b * padded(pairs.A) * padded(pairs.S)
        p_k = pairs.k_exp_ptr + b * padded(pairs.A) * padded(pairs.T)
        a = tl.arange(0, WIDTH)
        b_v = tl.load(pairs.v_ptr + offset(a, pairs.v_a), a < pairs.A, 0.0).to(b_scores.dtype)
        q_bound = tl.max(tl.load(pairs.q_bound_ptr + b * pairs.S + s, s < pairs.S, 0.0))
        bound = q_bound + tl.max(tl.load(pairs.k_bound_ptr + b * pairs.T + t, t < pairs.T, 0.0))
        factored = tl.sum(tl.abs(b_v)) <= RANGE.max_v
        if factored & (bound <= RANGE.merged):
            b_scores = tl.sum(b_v) - 2 * quotients(pairs, p_q, p_k, s, t, b_scores, 4)
        elif factored & (bound <= RANGE.paired):
            b_scores = tl.sum(b_v) - 2 * quotients(pairs, p_q, p_k, s, t, b_scores, 2)
        elif factored & (bound <= RANGE.single):
            b_scores = tl.sum(b_v) - 2 * quotients(pairs, p_q, p_k, s, t, b_scores, 1)
        else:
            b_scores = direct_sum(pairs, b, s, t, b_scores, ACTIVATION, SLOPE)
    else:
        b_scores = direct_sum(pairs, b, s, t, b_scores, ACTIVATION, SLOPE)
    b_scores *= SCALE
    if pairs.bias_ptr is not None:
        p_bias = pairs.bias_ptr + b * pairs.bias_b + offset(s, pairs.bias_s) + offset(t, pairs.bias_t)
        b_scores += tl.load(p_bias, (s < pairs.S) & (t < pairs.T), 0.0).to(b_scores.dtype)
    return b_scores


@triton.jit
def quotients(pairs, p_q, p_k, s, t, b_sum, SHARE: tl.constexpr):
    """b_sum + Σ_a v_a / (1 + P_a Q_a), where SHARE channels, of 1, 2 and 4, share a reciprocal"""
    for a in range(0, pairs.A, SHARE):
        if SHARE == 1:
            n, d = quotient(pairs, p_q, p_k, s, t, a, b_sum.dtype)
        elif SHARE == 2:
            n, d = sum_of_two(pairs, p_q, p_k, s, t, a, b_sum.dtype)
        else:
            n1, d1 = sum_of_two(pairs, p_q, p_k, s, t, a, b_sum.dtype)
            n2, d2 = sum_of_two(pairs, p_q, p_k, s, t, a + 2, b_sum.dtype)
            n, d = n1 * d2 + n2 * d1, d1 * d2
        b_sum += n * reciprocal(d)
    return b_sum


@triton.jit
def sum_of_two(pairs, p_q, p_k, s, t, a, dtype: tl.constexpr):
    """v1/x1 + v2/x2 = (v1 x2 + v2 x1) / (x1 x2): numerator and denominator"""
    v1, x1 = quotient(pairs, p_q, p_k, s, t, a, dtype)
    v2, x2 = quotient(pairs, p_q, p_k, s, t, a + 1, dtype)
    return v1 * x2 + v2 * x1, x1 * x2


@triton.jit
def quotient(pairs, p_q, p_k, s, t, a, dtype: tl.constexpr):
    """v_a and 1 + P_a Q_a; beyond the last channel 0 and 2"""
    b_p = tl.load(p_q + offset(a, padded(pairs.S)) + s, s < pairs.S, 0.0)
    b_q = tl.load(p_k + offset(a, padded(pairs.T)) + t, t < pairs.T, 0.0)
    v = tl.load(pairs.v_ptr + offset(a, pairs.v_a), a < pairs.A, 0.0).to(dtype)
    return v, 1 + b_p * b_q


@triton.jit
def direct_sum(pairs, b, s, t, b_sum, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """b_sum + Σ_a v_a act(q_a + k_a)"""
    p_q = pairs.q_ptr + b * pairs.q_b
    p_k = pairs.k_ptr + b * pairs.k_b
    for a in range(pairs.A):
        b_q = tl.load(p_q + offset(s, pairs.q_s) + offset(a, pairs.q_a), s < pairs.S, 0.0).to(b_sum.dtype)
        b_k = tl.load(p_k + offset(t, pairs.k_t) + offset(a, pairs.k_a), t < pairs.T, 0.0).to(b_sum.dtype)
        v = tl.load(pairs.v_ptr + offset(a, pairs.v_a)).to(b_sum.dtype)
        b_sum += v * activate(b_q + b_k, ACTIVATION, SLOPE)
    return b_sum


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
    """Rounded up to four: the channels that share a reciprocal, and rows in whole vectors"""
    return (size + 3) // 4 * 4
