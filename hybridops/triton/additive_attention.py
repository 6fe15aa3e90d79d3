"""Additive attention in Triton. Contract: reference/additive_attention.py.

The factored tanh: with P = e^2q and Q = e^2k, tanh(q+k) = 1 - 2r with r = 1/(1 + PQ): exponentials once a row, not once
a pair, and one reciprocal serves several pairs. How far |q| + |k| may go for that is said in RANGE; beyond, and for
infinities and NaN, a tile takes tanh itself.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.native import refuse_forward_mode
from hybridops.triton.launch import Config, launch, op, place
from hybridops.triton.math import cast, exponential, offset, precision, product, reciprocal, tanh

# Sums of |q| + |k| up to which the product of four factors 1 + PQ is finite, of two, and one; and Σ|v| up to which the
# numerators over such products are. (1 + e^21)^4 = 3e36 = (1 + e^42)^2, 1 + e^86 = 2e37; the last keeps 1/x normal.
RANGE = {
    torch.float32: {"FOUR": 10.5, "TWO": 21.0, "ONE": 43.0, "LARGEST_V": 1e10},
    torch.float64: {"FOUR": 80.0, "TWO": 170.0, "ONE": 350.0, "LARGEST_V": 1e30},
}

# The block sizes that the kernels run with, all there are: `python -m hybridops.triton.check` compiles each.
EXPONENTIALS = Config({"BLOCK_N": 32, "BLOCK_A": 32}, num_warps=4)
SCORES = {
    "one query": Config({"BLOCK_S": 1, "BLOCK_T": 128}, num_warps=4),
    "few pairs": Config({"BLOCK_S": 16, "BLOCK_T": 32}, num_warps=4),
    "many pairs": Config({"BLOCK_S": 32, "BLOCK_T": 64}, num_warps=4),
}
ATTENTION = {
    # BLOCK_T × MOST_VALUES values are in registers: with 64 keys, or four warps, they spill under Triton 3.6
    "one query": Config({"BLOCK_S": 1, "BLOCK_T": 32}, num_warps=8, num_stages=1),
    "few pairs": Config({"BLOCK_S": 16, "BLOCK_T": 16}, num_warps=4, num_stages=1, max_registers=255),
    "many pairs": Config({"BLOCK_S": 32, "BLOCK_T": 32}, num_warps=8, num_stages=1, max_registers=255),
}
COMBINE = Config({}, num_warps=4)
SOFTMAX = Config({"BLOCK_T": 512}, num_warps=4)
GRADIENTS = {
    "few rows": Config({"BLOCK_X": 16, "BLOCK_Y": 16, "BLOCK_A": 32}, num_warps=4, max_registers=255),
    # in float64 it would spill
    "many rows": Config({"BLOCK_X": 32, "BLOCK_Y": 16, "BLOCK_A": 64}, num_warps=8, max_registers=255),
}
# Programs that fill a GPU of about 130 multiprocessors some times over: with fewer, smaller blocks are taken.
MANY_PROGRAMS = 1024
# ... and that just fill it: with fewer, the keys of a query are shared out among up to so many.
ENOUGH_PROGRAMS, MOST_SPLITS = 128, 16
# Value channels that a program sums up in registers; beyond, the context is a library product.
MOST_VALUES = 256


# --------------------------------------------------------------------------------------------------- what is here


def additive_scores_forward(
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> Tensor:
    refuse_forward_mode(q, k, v)
    return _scores(q, k, v, None, 1.0, activation, negative_slope, None, None)


def additive_attention_forward(
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    value: Tensor,  # (B,T,D)
    mask: Tensor | None,  # boolean, broadcastable to (B,S,T)
    score_bias: Tensor | None,  # broadcastable to (B,S,T)
    scale: float,
    activation: str,
    negative_slope: float,
    key_exponentials: tuple[Tensor, Tensor] | None = None,
    need_weights: bool = True,
) -> tuple[Tensor, Tensor]:
    """Without the weights nothing of the size (B,S,T) is written, where a row of the context fits in registers."""
    refuse_forward_mode(q, k, v, value, score_bias)
    scores = (q, k, v, score_bias, scale, activation, negative_slope, *(key_exponentials or (None, None)))
    if _fits_registers(value):
        return _attention(*scores, mask, value, need_weights)
    weights = _weights(*scores, mask)
    return torch.matmul(weights, value), weights


def prepare_keys(k: Tensor, activation: str) -> tuple[Tensor, Tensor] | None:
    """The exponentials of the keys (B,A',T') and their bounds (B,T), which the forward otherwise computes each time."""
    return _exponentials(k.detach()) if activation == "tanh" else None


def additive_scores_backward(
    grad_scores: Tensor,  # (B,S,T) acc
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _scores_backward(grad_scores, q, k, v, activation, negative_slope)


# ------------------------------------------------------------------------------------------------------------ ops


def _exponentials_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    batch, rows, width = x.shape
    acc = accumulation_dtype(x.dtype)
    return x.new_empty(batch, _round_up(width, 4), _round_up(rows, 4), dtype=acc), x.new_empty(batch, rows, dtype=acc)


@op("exponentials(Tensor x) -> (Tensor, Tensor)", _exponentials_fake)
def _exponentials(
    x: Tensor,  # (B,N,A)
) -> tuple[Tensor, Tensor]:
    """e^2x with the channels first, and one channel after the other for as many as share a reciprocal; and max|x|."""
    exponentials, bounds = _exponentials_fake(x)
    batch, rows, width = x.shape
    grid = (batch, triton.cdiv(rows, EXPONENTIALS.blocks["BLOCK_N"]))
    launch(
        exponentials_kernel, grid, EXPONENTIALS,
        x, exponentials, bounds, rows, *x.stride(), A=width,
    )  # fmt: skip
    return exponentials, bounds


def _scores_fake(q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds):
    return q.new_empty(q.shape[0], q.shape[1], k.shape[1], dtype=accumulation_dtype(q.dtype))


@op(
    "scores(Tensor q, Tensor k, Tensor v, Tensor? score_bias, float scale, str activation, float negative_slope, "
    "Tensor? key_exponentials, Tensor? key_bounds) -> Tensor",
    _scores_fake,
)
def _scores(
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    score_bias: Tensor | None,  # broadcastable to (B,S,T)
    scale: float,
    activation: str,
    negative_slope: float,
    key_exponentials: Tensor | None,  # of `_exponentials`
    key_bounds: Tensor | None,
) -> Tensor:
    """(B,S,T) acc: scale Σ_a v_a act(q + k) + score_bias"""
    scores = _scores_fake(q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds)
    batch, queries, keys = scores.shape
    config = _scores_config(SCORES, batch, queries, keys)
    grid = (batch, triton.cdiv(queries, config.blocks["BLOCK_S"]), triton.cdiv(keys, config.blocks["BLOCK_T"]))
    pairs, constants = _pairs(q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds)
    launch(scores_kernel, grid, config, *pairs, scores, **constants)
    return scores


def _pairs(q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds):
    """What the kernels take that compute scores: arguments and constants."""
    (batch, queries, width), keys = q.shape, k.shape[1]
    bias, bias_strides = _broadcast(score_bias, (batch, queries, keys))
    if activation == "tanh":
        factors = (*_exponentials(q), *((key_exponentials, key_bounds) if key_bounds is not None else _exponentials(k)))
    else:  # the kernel walks along the channels
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
        factors = (None,) * 4
    strides = (*q.stride(), *k.stride(), v.stride(0), *bias_strides)
    constants = {"ACTIVATION": activation, "SLOPE": negative_slope, "SCALE": scale}
    constants |= {"WIDTH": _power_of_two(width), **RANGE[accumulation_dtype(q.dtype)]}
    return (q, k, v, *factors, bias, queries, keys, width, *strides), constants


def _weights_fake(q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds, mask):
    return q.new_empty(q.shape[0], q.shape[1], k.shape[1])


@op(
    "weights(Tensor q, Tensor k, Tensor v, Tensor? score_bias, float scale, str activation, float negative_slope, "
    "Tensor? key_exponentials, Tensor? key_bounds, Tensor? mask) -> Tensor",
    _weights_fake,
)
def _weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_bias: Tensor | None,
    scale: float,
    activation: str,
    negative_slope: float,
    key_exponentials: Tensor | None,
    key_bounds: Tensor | None,
    mask: Tensor | None,  # boolean, broadcastable to (B,S,T)
) -> Tensor:
    """(B,S,T): the softmax of `_scores`; rows that may attend nothing are zeros."""
    scores = _scores(q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds)
    weights = torch.empty_like(scores, dtype=q.dtype)
    batch, queries, keys = scores.shape
    mask, mask_strides = _broadcast(mask, scores.shape)
    launch(softmax_kernel, (batch * queries,), SOFTMAX, scores, mask, weights, queries, keys, *mask_strides)
    return weights


def _attention_fake(
    q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds, mask, value, need_weights
):
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    weights = q.new_empty(batch if need_weights else 0, queries, keys)
    return q.new_empty(batch, queries, value.shape[2]), weights


@op(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? score_bias, float scale, str activation, float negative_slope, "
    "Tensor? key_exponentials, Tensor? key_bounds, Tensor? mask, Tensor value, bool need_weights) -> (Tensor, Tensor)",
    _attention_fake,
)
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_bias: Tensor | None,
    scale: float,
    activation: str,
    negative_slope: float,
    key_exponentials: Tensor | None,
    key_bounds: Tensor | None,
    mask: Tensor | None,  # boolean, broadcastable to (B,S,T)
    value: Tensor,  # (B,T,D)
    need_weights: bool,
) -> tuple[Tensor, Tensor]:
    """context (B,S,D), and the weights (B,S,T) if needed, else (0,S,T)."""
    scores = (q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds)
    context, weights = _attention_fake(*scores, mask, value, need_weights)
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    scores_out = torch.empty_like(weights, dtype=accumulation_dtype(q.dtype)) if need_weights else None
    config = _scores_config(ATTENTION, batch, queries, keys)
    splits = _splits(config, batch, queries, keys)
    shared_out = splits > 1
    parts = context.new_empty(batch, queries, splits, value.shape[2], dtype=torch.float32) if shared_out else context
    tops, totals = parts.new_empty(2, batch, queries, splits) if shared_out else (None, None)
    mask, mask_strides = _broadcast(mask, (batch, queries, keys))
    pairs, constants = _pairs(*scores)
    grid = (batch, triton.cdiv(queries, config.blocks["BLOCK_S"]), splits)
    block_d = max(16, _power_of_two(value.shape[2]))
    launch(
        attention_kernel, grid, config, *pairs, scores_out, mask, value, parts, tops, totals,
        *mask_strides, *value.stride(),
        **constants, D=value.shape[2], BLOCK_D=block_d, SPLITS=splits, PRECISION=precision(value),
    )  # fmt: skip
    if shared_out:
        sizes = {"D": value.shape[2], "BLOCK_D": block_d, "SPLITS": splits}
        launch(combine_kernel, (batch * queries,), COMBINE, parts, tops, totals, context, **sizes)
    if need_weights:
        launch(softmax_kernel, (batch * queries,), SOFTMAX, scores_out, mask, weights, queries, keys, *mask_strides)
    return context, weights


def _scores_backward_fake(grad, q, k, v, activation, negative_slope):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))


@op(
    "scores_backward(Tensor grad, Tensor q, Tensor k, Tensor v, str activation, float negative_slope) -> "
    "(Tensor, Tensor, Tensor)",
    _scores_backward_fake,
)
def _scores_backward(
    grad: Tensor,  # (B,S,T) acc
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv: each pair is computed twice, in exchange for sums without atomics, always in one order."""
    dq, dk, _ = _scores_backward_fake(grad, q, k, v, activation, negative_slope)
    act = {"ACTIVATION": activation, "SLOPE": negative_slope}
    dv = _row_gradients(grad, q, k, v, dq, True, act)
    _row_gradients(grad.transpose(1, 2), k, q, v, dk, False, act)
    return dq, dk, dv.sum((0, 1)).to(v.dtype)


def _row_gradients(
    grad: Tensor,  # (B,X,Y) acc
    x: Tensor,  # (B,X,A)
    y: Tensor,  # (B,Y,A)
    v: Tensor,  # (A,)
    dx: Tensor,  # (B,X,A), written
    with_dv: bool,
    act: dict[str, str | float],
) -> Tensor | None:
    """The gradient of one side of the sums, and parts of v's, one a block of rows."""
    (batch, rows, width), others = x.shape, y.shape[1]
    config = _gradients_config(grad.dtype, batch, rows, width)
    grid = _gradients_grid(config, batch, rows, width)
    dv = grad.new_empty(batch, grid[1], width) if with_dv else None
    launch(
        gradients_kernel, grid, config,
        grad, x, y, v, dx, dv, rows, others, *grad.stride(), *x.stride(), *y.stride(), v.stride(0),
        A=width, TWO=RANGE[grad.dtype]["TWO"], **act,
    )  # fmt: skip
    return dv


# -------------------------------------------------------------------------------------------------------- choices


def _scores_config(table: dict[str, Config], batch: int, queries: int, keys: int) -> Config:
    if queries == 1:
        return table["one query"]
    blocks = table["many pairs"].blocks
    programs = batch * triton.cdiv(queries, blocks["BLOCK_S"]) * triton.cdiv(keys, blocks["BLOCK_T"])
    return table["many pairs" if programs >= MANY_PROGRAMS else "few pairs"]


def _splits(config: Config, batch: int, queries: int, keys: int) -> int:
    """Among how many programs the keys of a block of queries are shared out: a power of two."""
    programs = max(1, batch * triton.cdiv(queries, config.blocks["BLOCK_S"]))
    blocks = triton.cdiv(keys, config.blocks["BLOCK_T"])
    splits = 1
    while 2 * splits <= min(blocks, MOST_SPLITS) and splits * programs < ENOUGH_PROGRAMS:
        splits *= 2
    return splits


def _fits_registers(value: Tensor) -> bool:
    """Whether a program sums up the context: in float64 it would take the registers twice over."""
    return 0 < value.shape[2] <= MOST_VALUES and value.dtype != torch.float64


def _gradients_config(acc: torch.dtype, batch: int, rows: int, width: int) -> Config:
    programs = math.prod(_gradients_grid(GRADIENTS["many rows"], batch, rows, width))
    return GRADIENTS["many rows" if programs >= MANY_PROGRAMS and acc == torch.float32 else "few rows"]


def _gradients_grid(config: Config, batch: int, rows: int, width: int) -> tuple[int, int, int]:
    return batch, triton.cdiv(rows, config.blocks["BLOCK_X"]), triton.cdiv(width, config.blocks["BLOCK_A"])


def _broadcast(tensor: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, tuple[int, ...]]:
    """The tensor and its strides in that shape."""
    return (None, (0, 0, 0)) if tensor is None else (tensor, tensor.expand(shape).stride())


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _power_of_two(size: int) -> int:
    return triton.next_power_of_2(max(size, 1))


# -------------------------------------------------------------------------------------------------------- kernels
# <tensor>_b, _s, _t, _a, _n are the strides of a tensor along the batch, queries, keys, channels, rows of either kind.
# A block is a variable with the tensor's name; everything is computed in the dtype of the scores, `acc`.


@triton.jit
def exponentials_kernel(
    x_ptr, e_ptr, bounds_ptr, N, x_b, x_n, x_a, A: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_A: tl.constexpr
):  # fmt: skip
    """e (B,A',N') = e^2x, A' and N' multiples of four, and bounds (B,N) = max_a |x|"""
    b, block, _ = place(tl.cdiv(N, BLOCK_N), 1)
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
    FOUR: tl.constexpr, TWO: tl.constexpr, ONE: tl.constexpr, LARGEST_V: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """A tile of scores (B,S,T)"""
    b, s_block, t_block = place(tl.cdiv(S, BLOCK_S), tl.cdiv(T, BLOCK_T))
    # a column and a row from the start: loads are then laid out as what they are broadcast to
    s = s_block * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]
    t = t_block * BLOCK_T + tl.arange(0, BLOCK_T)[None]
    scores = pair_scores(
        q_ptr, k_ptr, v_ptr, q_exp_ptr, q_bound_ptr, k_exp_ptr, k_bound_ptr, bias_ptr, b, s, t, S, T, A,
        q_b, q_s, q_a, k_b, k_t, k_a, v_a, bias_b, bias_s, bias_t,
        tl.zeros((BLOCK_S, BLOCK_T), scores_ptr.dtype.element_ty),
        ACTIVATION, SLOPE, SCALE, WIDTH, FOUR, TWO, ONE, LARGEST_V,
    )  # fmt: skip
    tl.store(scores_ptr + (b * S + s) * T + t, scores, (s < S) & (t < T))


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, q_exp_ptr, q_bound_ptr, k_exp_ptr, k_bound_ptr, bias_ptr, S, T, A,
    q_b, q_s, q_a, k_b, k_t, k_a, v_a, bias_b, bias_s, bias_t,
    scores_ptr, mask_ptr, value_ptr, context_ptr, top_ptr, total_ptr,
    mask_b, mask_s, mask_t, value_b, value_t, value_d,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, WIDTH: tl.constexpr,
    FOUR: tl.constexpr, TWO: tl.constexpr, ONE: tl.constexpr, LARGEST_V: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """A block of queries over its share of the keys: context (B,S,D), by a softmax whose maximum rises as it goes

    (Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867). Of several shares (B,S,SPLITS,D) each is left a sum,
    beside its maximum and the sum of its exponentials, (B,S,SPLITS). The scores (B,S,T) are written if wanted.
    """
    b, block, split = place(tl.cdiv(S, BLOCK_S), SPLITS)
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
            ACTIVATION, SLOPE, SCALE, WIDTH, FOUR, TWO, ONE, LARGEST_V,
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
def pair_scores(
    q_ptr, k_ptr, v_ptr, q_exp_ptr, q_bound_ptr, k_exp_ptr, k_bound_ptr, bias_ptr, b, s, t, S, T, A,
    q_b, q_s, q_a, k_b, k_t, k_a, v_a, bias_b, bias_s, bias_t, scores,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, WIDTH: tl.constexpr,
    FOUR: tl.constexpr, TWO: tl.constexpr, ONE: tl.constexpr, LARGEST_V: tl.constexpr,
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
        factored = tl.sum(tl.abs(v)) <= LARGEST_V
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
    b, n_block, a_block = place(blocks, tl.cdiv(A, BLOCK_A))
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
def activate(z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    if ACTIVATION == "tanh":
        return tanh(z)
    elif ACTIVATION == "relu":
        return tl.where(z < 0, 0.0, z)  # NaN stays
    else:
        return tl.where(z > 0, z, z * SLOPE)


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


@triton.jit
def magnitude(x):
    """|x|, infinite where x is NaN: a maximum would pass over that"""
    return tl.where(x == x, tl.abs(x), float("inf"))


@triton.jit
def padded(size):
    """As many channels as share a reciprocal, or a vector's worth of rows"""
    return (size + 3) // 4 * 4
