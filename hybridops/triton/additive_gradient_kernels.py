"""Kernel of the scores' gradients; names are as in additive_scores_kernels.py."""

from __future__ import annotations

import triton
import triton.language as tl

from hybridops.triton.additive_scores_kernels import activate, magnitude
from hybridops.triton.launch import grid_position
from hybridops.triton.math import cast, exponential, offset, reciprocal


@triton.jit
def gradients_kernel(
    grad_ptr, x_ptr, y_ptr, v_ptr, dx_ptr, dv_ptr, X, Y,
    grad_b, grad_x, grad_y, x_b, x_n, x_a, y_b, y_n, y_a, v_a,
    A: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, TWO: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """For rows x and channels a, over all rows y of the other side, each in turn:

    dx (B,X,A) = v_a Σ_y grad act'(x + y), and where dv is wanted, dv (B,blocks of X,A) = Σ_{x,y} grad act(x + y)
    """
    blocks = tl.cdiv(X, BLOCK_X)
    b, n_block, a_block = grid_position(blocks, tl.cdiv(A, BLOCK_A))
    n = n_block * BLOCK_X + tl.arange(0, BLOCK_X)
    a = a_block * BLOCK_A + tl.arange(0, BLOCK_A)
    inside = (n < X)[:, None] & (a < A)[None]
    acc: tl.constexpr = grad_ptr.dtype.element_ty
    grad_ptr += b * grad_b + offset(n, grad_x)
    y_ptr += b * y_b + offset(a, y_a)
    x = tl.load(x_ptr + b * x_b + offset(n, x_n)[:, None] + offset(a, x_a)[None], inside, 0.0).to(acc)
    dx = tl.zeros((BLOCK_X, BLOCK_A), acc)
    dv = tl.zeros((BLOCK_X, BLOCK_A), acc)
    x_bound = tl.max(magnitude(x))
    x_exp = exponential(2 * x)
    for start in range(0, Y, BLOCK_Y):
        end = tl.minimum(start + BLOCK_Y, Y)
        bound = float("inf")
        if ACTIVATION == "tanh":
            rows = start + tl.arange(0, BLOCK_Y)
            y_block = tl.load(y_ptr[None] + offset(rows, y_n)[:, None], (rows < Y)[:, None] & (a < A)[None], 0.0)
            bound = x_bound + tl.max(magnitude(y_block.to(acc)))
        if bound <= TWO:
            for y in range(start, end, 2):
                grad1, q1 = gradient_and_exponential(grad_ptr, y_ptr, n, a, X, Y, A, y, grad_y, y_n, acc)
                grad2, q2 = gradient_and_exponential(grad_ptr, y_ptr, n, a, X, Y, A, y + 1, grad_y, y_n, acc)
                d1 = 1 + x_exp * q1[None]
                d2 = 1 + x_exp * q2[None]
                r = reciprocal(d1 * d2)
                r1, r2 = r * d2, r * d1
                dx += 4 * grad1[:, None] * (r1 - r1 * r1)
                dx += 4 * grad2[:, None] * (r2 - r2 * r2)
                if dv_ptr is not None:
                    dv += grad1[:, None] * (1 - 2 * r1)
                    dv += grad2[:, None] * (1 - 2 * r2)
        else:
            for y in range(start, end):
                grad = tl.load(grad_ptr + offset(y, grad_y), n < X, 0.0)
                z = x + tl.load(y_ptr + offset(y, y_n), a < A, 0.0).to(acc)[None]
                value = activate(z, ACTIVATION, SLOPE)
                dx += grad[:, None] * slope(z, value, ACTIVATION, SLOPE)
                if dv_ptr is not None:
                    dv += grad[:, None] * value

    v = tl.load(v_ptr + offset(a, v_a), a < A, 0.0).to(acc)
    dx_ptr += (b * X + n)[:, None] * A + a[None]
    tl.store(dx_ptr, cast(dx * v[None], dx_ptr.dtype.element_ty), inside)
    if dv_ptr is not None:
        dv_ptr += (b * blocks + n_block) * A + a
        tl.store(dv_ptr, tl.sum(dv, 0), a < A)


@triton.jit
def gradient_and_exponential(grad_ptr, y_ptr, n, a, X, Y, A: tl.constexpr, y, grad_y, y_n, acc: tl.constexpr):
    """Of row y, or of none, if that is beyond the last."""
    grad = tl.load(grad_ptr + offset(y, grad_y), n < tl.where(y < Y, X, 0), 0.0)
    return grad, exponential(2 * tl.load(y_ptr + offset(y, y_n), a < tl.where(y < Y, A, 0), 0.0).to(acc))


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
