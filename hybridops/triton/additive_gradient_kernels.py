"""Kernel of the scores' gradients; names are as in additive_scores_kernels.py."""

from __future__ import annotations

import triton
import triton.language as tl

from hybridops.triton.additive_scores_kernels import activate, magnitude
from hybridops.triton.launch import grid_position
from hybridops.triton.math import cast, exponential, offset, reciprocal


@triton.jit
def gradients_kernel(
    grad, x, y, v_ptr, v_a, dx, dv_ptr, X, Y,
    A: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, RANGE: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """Of rows of one side x (B,X,A), over all rows of the other side y (B,Y,A), each in turn; grad is (B,X,Y):

    dx (B,X,A) = v_a Σ_y grad act'(x + y), and where dv is wanted, dv (B,blocks of X,A) = Σ_{x,y} grad act(x + y)
    """
    blocks = tl.cdiv(X, BLOCK_X)
    b, n_block, a_block = grid_position(blocks, tl.cdiv(A, BLOCK_A))
    n = n_block * BLOCK_X + tl.arange(0, BLOCK_X)
    a = a_block * BLOCK_A + tl.arange(0, BLOCK_A)
    inside = (n < X)[:, None] & (a < A)[None]
    acc: tl.constexpr = grad.ptr.dtype.element_ty
    p_grad = grad.ptr + b * grad.batch + offset(n, grad.row)
    p_y = y.ptr + b * y.batch + offset(a, y.column)
    p_x = x.ptr + b * x.batch + offset(n, x.row)[:, None] + offset(a, x.column)[None]
    b_x = tl.load(p_x, inside, 0.0).to(acc)
    b_dx = tl.zeros((BLOCK_X, BLOCK_A), acc)
    b_dv = tl.zeros((BLOCK_X, BLOCK_A), acc)
    x_bound = tl.max(magnitude(b_x))
    b_x_exp = exponential(2 * b_x)
    for start in range(0, Y, BLOCK_Y):
        end = tl.minimum(start + BLOCK_Y, Y)
        bound = float("inf")
        if ACTIVATION == "tanh":
            rows = start + tl.arange(0, BLOCK_Y)
            b_y = tl.load(p_y[None] + offset(rows, y.row)[:, None], (rows < Y)[:, None] & (a < A)[None], 0.0)
            bound = x_bound + tl.max(magnitude(b_y.to(acc)))
        if bound <= RANGE.paired:
            for i in range(start, end, 2):
                b_grad1, b_q1 = gradient_and_exponential(p_grad, p_y, n, a, X, Y, A, i, grad.column, y.row, acc)
                b_grad2, b_q2 = gradient_and_exponential(p_grad, p_y, n, a, X, Y, A, i + 1, grad.column, y.row, acc)
                b_d1 = 1 + b_x_exp * b_q1[None]
                b_d2 = 1 + b_x_exp * b_q2[None]
                b_r = reciprocal(b_d1 * b_d2)
                b_r1, b_r2 = b_r * b_d2, b_r * b_d1
                b_dx += 4 * b_grad1[:, None] * (b_r1 - b_r1 * b_r1)
                b_dx += 4 * b_grad2[:, None] * (b_r2 - b_r2 * b_r2)
                if dv_ptr is not None:
                    b_dv += b_grad1[:, None] * (1 - 2 * b_r1)
                    b_dv += b_grad2[:, None] * (1 - 2 * b_r2)
        else:
            for i in range(start, end):
                b_grad = tl.load(p_grad + offset(i, grad.column), n < X, 0.0)
                b_z = b_x + tl.load(p_y + offset(i, y.row), a < A, 0.0).to(acc)[None]
                b_act = activate(b_z, ACTIVATION, SLOPE)
                b_dx += b_grad[:, None] * slope(b_z, b_act, ACTIVATION, SLOPE)
                if dv_ptr is not None:
                    b_dv += b_grad[:, None] * b_act

    b_v = tl.load(v_ptr + offset(a, v_a), a < A, 0.0).to(acc)
    p_dx = dx.ptr + b * dx.batch + offset(n, dx.row)[:, None] + offset(a, dx.column)[None]
    tl.store(p_dx, cast(b_dx * b_v[None], dx.ptr.dtype.element_ty), inside)
    if dv_ptr is not None:
        p_dv = dv_ptr + (b * blocks + n_block) * A + a
        tl.store(p_dv, tl.sum(b_dv, 0), a < A)


@triton.jit
def gradient_and_exponential(p_grad, p_y, n, a, X, Y, A: tl.constexpr, i, grad_y, y_n, acc: tl.constexpr):
    """The gradients of the pairs of row i, and e^2y of it; zeros and ones beyond the last row"""
    b_grad = tl.load(p_grad + offset(i, grad_y), n < tl.where(i < Y, X, 0), 0.0)
    return b_grad, exponential(2 * tl.load(p_y + offset(i, y_n), a < tl.where(i < Y, A, 0), 0.0).to(acc))


@triton.jit
def slope(z, value, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """act'(z); at the kink, and for NaN, what PyTorch takes it to be"""
    one = tl.full(z.shape, 1.0, z.dtype)
    if ACTIVATION == "tanh":
        return 1 - value * value
    elif ACTIVATION == "relu":
        return tl.where(z <= 0, 0.0, one)
    else:
        return tl.where(z > 0, one, one * SLOPE)
