"""Pointwise kernels of the attention decoder's step, forward and backward; the equations are those of
formulas/attention_decoder.py.

A program has BLOCK elements, counted through, of a matrix (B,H) or (B,D): `b` is the row of each, `u` its column. Rows
of what a kernel reads or writes are `<name>_row` elements apart, or as many as there are columns. `alive` (B,) says
which rows are not behind their end; None = all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybridops.triton.additive_attention_kernels import attended_keys
from hybridops.triton.math import cast, offset, sigmoid, tanh


@triton.jit
def lstm_kernel(
    x_ptr, x_row, from_c_ptr, from_h_ptr, from_h_row, h_ptr, cell_ptr, alive_ptr, h_out_ptr, cell_out_ptr, gates_ptr, B,
    H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """h_out, cell_out (B,H) and, if wanted, the gates (B,4H) from three parts of their sums, h and cell (B,H)"""
    at, b, u, inside = elements(B, H, BLOCK)
    p_x, p_h = x_ptr + offset(b, x_row) + u, from_h_ptr + offset(b, from_h_row) + u
    p_c = from_c_ptr + offset(b, 4 * H) + u
    b_i = sigmoid(load(p_x, inside) + load(p_c, inside) + load(p_h, inside))
    b_f = sigmoid(load(p_x + H, inside) + load(p_c + H, inside) + load(p_h + H, inside))
    b_g = tanh(load(p_x + 2 * H, inside) + load(p_c + 2 * H, inside) + load(p_h + 2 * H, inside))
    b_o = sigmoid(load(p_x + 3 * H, inside) + load(p_c + 3 * H, inside) + load(p_h + 3 * H, inside))
    b_cell = load(cell_ptr + at, inside)
    b_new = b_f * b_cell + b_i * b_g
    b_h = b_o * tanh(b_new)
    if alive_ptr is not None:
        alive = is_alive(alive_ptr, b, inside)
        b_new = tl.where(alive, b_new, b_cell)
        b_h = tl.where(alive, b_h, load(h_ptr + at, inside))
    store(h_out_ptr + at, b_h, inside)
    store(cell_out_ptr + at, b_new, inside)
    if gates_ptr is not None:
        p_gates = gates_ptr + offset(b, 4 * H) + u
        store(p_gates, b_i, inside)
        store(p_gates + H, b_f, inside)
        store(p_gates + 2 * H, b_g, inside)
        store(p_gates + 3 * H, b_o, inside)


@triton.jit
def gru_kernel(
    x_ptr, x_row, from_c_ptr, from_h_ptr, from_h_row, h_ptr, alive_ptr, h_out_ptr, gates_ptr, B,
    H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """h_out (B,H) and, if wanted, the gates (B,3H); as `lstm_kernel`"""
    at, b, u, inside = elements(B, H, BLOCK)
    p_x, p_h = x_ptr + offset(b, x_row) + u, from_h_ptr + offset(b, from_h_row) + u
    p_c = from_c_ptr + offset(b, 3 * H) + u
    b_r = sigmoid(load(p_x, inside) + load(p_c, inside) + load(p_h, inside))
    b_z = sigmoid(load(p_x + H, inside) + load(p_c + H, inside) + load(p_h + H, inside))
    b_n = tanh(load(p_x + 2 * H, inside) + load(p_c + 2 * H, inside) + b_r * load(p_h + 2 * H, inside))
    b_before = load(h_ptr + at, inside)
    b_h = (1 - b_z) * b_n + b_z * b_before
    if alive_ptr is not None:
        b_h = tl.where(is_alive(alive_ptr, b, inside), b_h, b_before)
    store(h_out_ptr + at, b_h, inside)
    if gates_ptr is not None:
        p_gates = gates_ptr + offset(b, 3 * H) + u
        store(p_gates, b_r, inside)
        store(p_gates + H, b_z, inside)
        store(p_gates + 2 * H, b_n, inside)


@triton.jit
def context_gate_kernel(
    ungated_ptr, from_h_ptr, from_h_row, context_ptr, beta_ptr, B, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """context (B,D) = ungated ∘ β, and β = σ(from_h) (B,D) if wanted"""
    at, b, u, inside = elements(B, D, BLOCK)
    b_beta = sigmoid(load(from_h_ptr + offset(b, from_h_row) + u, inside))
    store(context_ptr + at, b_beta * load(ungated_ptr + at, inside), inside)
    if beta_ptr is not None:
        store(beta_ptr + at, b_beta, inside)


@triton.jit
def lstm_backward_kernel(
    product_ptr, dh_ptr, dcell_ptr, grad_h_ptr, grad_h_row, gates_ptr, gates_row, cell_ptr, cell_row,
    before_ptr, before_row, alive_ptr, da_ptr, da_row, B,
    H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """da (B,4H) of the sums, given the gradient of h in three parts: `product`, `dh` and, if there is one, grad_h.

    dh and dcell (B,H) acc are then those of the step before: of h what is not to be had by a product with da.
    """
    at, b, u, inside = elements(B, H, BLOCK)
    p_gates = gates_ptr + offset(b, gates_row) + u
    b_i, b_f = load(p_gates, inside), load(p_gates + H, inside)
    b_g, b_o = load(p_gates + 2 * H, inside), load(p_gates + 3 * H, inside)
    b_before = load(before_ptr + offset(b, before_row) + u, inside)
    b_tanh = tanh(load(cell_ptr + offset(b, cell_row) + u, inside))
    b_kept = load(dh_ptr + at, inside) + load(product_ptr + at, inside)
    b_dh = b_kept
    if grad_h_ptr is not None:
        b_dh += load(grad_h_ptr + offset(b, grad_h_row) + u, inside)
    b_dcell = load(dcell_ptr + at, inside)
    b_d = b_dcell + b_dh * b_o * (1 - b_tanh * b_tanh)
    b_di, b_df = b_d * b_g * b_i * (1 - b_i), b_d * b_before * b_f * (1 - b_f)
    b_dg, b_do = b_d * b_i * (1 - b_g * b_g), b_dh * b_tanh * b_o * (1 - b_o)
    b_d *= b_f
    b_rest = tl.zeros_like(b_d)
    if alive_ptr is not None:
        alive = is_alive(alive_ptr, b, inside)
        b_di, b_df = tl.where(alive, b_di, 0.0), tl.where(alive, b_df, 0.0)
        b_dg, b_do = tl.where(alive, b_dg, 0.0), tl.where(alive, b_do, 0.0)
        b_d, b_rest = tl.where(alive, b_d, b_dcell), tl.where(alive, 0.0, b_kept)
    store(dh_ptr + at, b_rest, inside)
    store(dcell_ptr + at, b_d, inside)
    p_da = da_ptr + offset(b, da_row) + u
    store(p_da, b_di, inside)
    store(p_da + H, b_df, inside)
    store(p_da + 2 * H, b_dg, inside)
    store(p_da + 3 * H, b_do, inside)


@triton.jit
def gru_backward_kernel(
    product_ptr, dh_ptr, grad_h_ptr, grad_h_row, gates_ptr, gates_row, hidden_n_ptr, hidden_n_row,
    before_ptr, before_row, alive_ptr, da_ptr, da_h_ptr, da_h_row, B,
    H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """da and da_h (B,3H), as `lstm_backward_kernel`; `before` is h of the step before"""
    at, b, u, inside = elements(B, H, BLOCK)
    p_gates = gates_ptr + offset(b, gates_row) + u
    b_r, b_z, b_n = load(p_gates, inside), load(p_gates + H, inside), load(p_gates + 2 * H, inside)
    b_hidden_n = load(hidden_n_ptr + offset(b, hidden_n_row) + u, inside)
    b_before = load(before_ptr + offset(b, before_row) + u, inside)
    b_kept = load(dh_ptr + at, inside) + load(product_ptr + at, inside)
    b_dh = b_kept
    if grad_h_ptr is not None:
        b_dh += load(grad_h_ptr + offset(b, grad_h_row) + u, inside)
    b_dn = b_dh * (1 - b_z) * (1 - b_n * b_n)
    b_dr = b_dn * b_hidden_n * b_r * (1 - b_r)
    b_dz = b_dh * (b_before - b_n) * b_z * (1 - b_z)
    b_dn_h, b_rest = b_dn * b_r, b_dh * b_z
    if alive_ptr is not None:
        alive = is_alive(alive_ptr, b, inside)
        b_dr, b_dz = tl.where(alive, b_dr, 0.0), tl.where(alive, b_dz, 0.0)
        b_dn, b_dn_h = tl.where(alive, b_dn, 0.0), tl.where(alive, b_dn_h, 0.0)
        b_rest = tl.where(alive, b_rest, b_kept)
    store(dh_ptr + at, b_rest, inside)
    p_da, p_da_h = da_ptr + offset(b, 3 * H) + u, da_h_ptr + offset(b, da_h_row) + u
    store(p_da, b_dr, inside)
    store(p_da + H, b_dz, inside)
    store(p_da + 2 * H, b_dn, inside)
    store(p_da_h, b_dr, inside)
    store(p_da_h + H, b_dz, inside)
    store(p_da_h + 2 * H, b_dn_h, inside)


@triton.jit
def context_backward_kernel(
    product_ptr, grad_ptr, grad_row, beta_ptr, beta_row, ungated_ptr, ungated_row, alive_ptr,
    dungated_ptr, dbeta_ptr, dbeta_row, B,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dungated (B,D), of the context before its gate, and where there is one dbeta (B,D), of the gate before its σ.

    The gradient of the context is `product` and, if there is one, grad.
    """
    at, b, u, inside = elements(B, D, BLOCK)
    b_d = load(product_ptr + at, inside)
    if grad_ptr is not None:
        b_d += load(grad_ptr + offset(b, grad_row) + u, inside)
    if alive_ptr is not None:
        b_d = tl.where(is_alive(alive_ptr, b, inside), b_d, 0.0)
    if beta_ptr is not None:
        b_beta = load(beta_ptr + offset(b, beta_row) + u, inside)
        b_ungated = load(ungated_ptr + offset(b, ungated_row) + u, inside)
        store(dbeta_ptr + offset(b, dbeta_row) + u, b_d * b_ungated * b_beta * (1 - b_beta), inside)
        b_d *= b_beta
    store(dungated_ptr + at, b_d, inside)


@triton.jit
def softmax_backward_kernel(
    product_ptr, grad_ptr, grad_row, keep_ptr, keep_row, mask, alpha_ptr, alpha_row, alive_ptr, dscores_ptr, T,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """A row of dscores (B,T) = α∘(dα - Σ_t α∘dα), 0 where masked, with dα = keep∘(product + grad)

    Masked places are selected, not multiplied by their weight of zero: grad may be infinite there.
    """
    row = tl.program_id(0).to(tl.int64)
    p_product, p_dscores = product_ptr + row * T, dscores_ptr + row * T
    acc: tl.constexpr = dscores_ptr.dtype.element_ty
    b_sum = tl.zeros((BLOCK_T,), acc)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        attended = keys_of_live_row(mask, alive_ptr, row, t, T)
        b_alpha = load(alpha_ptr + offset(row, alpha_row) + t, attended)
        b_sum += b_alpha * weight_gradients(p_product, grad_ptr, grad_row, keep_ptr, keep_row, row, t, attended)
    row_sum = tl.sum(b_sum)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        attended = keys_of_live_row(mask, alive_ptr, row, t, T)
        b_alpha = load(alpha_ptr + offset(row, alpha_row) + t, attended)
        b_d = weight_gradients(p_product, grad_ptr, grad_row, keep_ptr, keep_row, row, t, attended)
        tl.store(p_dscores + t, tl.where(attended, b_alpha * (b_d - row_sum), 0.0), t < T)


@triton.jit
def keys_of_live_row(mask, alive_ptr, row, t, T):
    attended = attended_keys(mask, row, t, 1, T)
    if alive_ptr is not None:  # loaded for each key: Triton 3.9's interpreter makes no mask of a scalar
        attended &= tl.load(alive_ptr + row + tl.zeros_like(t), attended, 0) != 0
    return attended


@triton.jit
def weight_gradients(p_product, grad_ptr, grad_row, keep_ptr, keep_row, row, t, attended):
    b_d = load(p_product + t, attended)
    if grad_ptr is not None:
        b_d += load(grad_ptr + offset(row, grad_row) + t, attended)
    if keep_ptr is not None:
        b_d *= load(keep_ptr + offset(row, keep_row) + t, attended)
    return b_d


@triton.jit
def elements(B, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Of this program: each element's number, its row and column, and whether there is such a row"""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b = at // COLUMNS
    return at, b, at % COLUMNS, b < B


@triton.jit
def is_alive(alive_ptr, b, inside):
    return tl.load(alive_ptr + b, inside, 0) != 0


@triton.jit
def load(pointers, inside):
    """In float32, or float64 where it is that"""
    b_x = tl.load(pointers, inside, 0.0)
    if b_x.dtype == tl.float64:
        return b_x
    else:
        return b_x.to(tl.float32)


@triton.jit
def store(pointers, b_x, inside):
    tl.store(pointers, cast(b_x, pointers.dtype.element_ty), inside)
