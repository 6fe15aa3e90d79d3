"""Additive attention in Triton: ops, and how they launch their kernels. Contract: contract.AdditiveAttentionImpl."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from hybridops import flops
from hybridops.checks import accumulation_dtype
from hybridops.contract import Activation, AttentionInputs
from hybridops.triton.additive_attention_kernels import attention_kernel, combine_kernel, softmax_kernel
from hybridops.triton.additive_gradient_kernels import gradients_kernel
from hybridops.triton.additive_scores_kernels import QUOTIENT_RANGE, exponentials_kernel, scores_kernel
from hybridops.triton.arguments import Pairs, Strided, strided
from hybridops.triton.launch import Config, launch, op
from hybridops.triton.math import precision
from hybridops.triton.sizes import check_pairs, check_sizes

# All configurations of the kernels. `python -m hybridops.triton.check` compiles each; none was timed on a GPU yet.
EXPONENTIALS = Config({"BLOCK_N": 32, "BLOCK_A": 32}, num_warps=4)
SCORES = {
    "one query": Config({"BLOCK_S": 1, "BLOCK_T": 128}, num_warps=4),
    "few pairs": Config({"BLOCK_S": 16, "BLOCK_T": 32}, num_warps=4),
    "many pairs": Config({"BLOCK_S": 32, "BLOCK_T": 64}, num_warps=4),
}
ATTENTION = {
    # BLOCK_T × MAX_VALUE_CHANNELS values are in registers. With 64 keys, or four warps, Triton 3.6 spills.
    "one query": Config({"BLOCK_S": 1, "BLOCK_T": 32}, num_warps=8, num_stages=1),
    "few pairs": Config({"BLOCK_S": 16, "BLOCK_T": 16}, num_warps=4, num_stages=1, max_registers=255),
    "many pairs": Config({"BLOCK_S": 32, "BLOCK_T": 32}, num_warps=8, num_stages=1, max_registers=255),
}
COMBINE = Config({}, num_warps=4)
SOFTMAX = Config({"BLOCK_T": 512}, num_warps=4)
GRADIENTS = {
    "few rows": Config({"BLOCK_X": 16, "BLOCK_Y": 16, "BLOCK_A": 32}, num_warps=4, max_registers=255),
    # not for float64, where it spills
    "many rows": Config({"BLOCK_X": 32, "BLOCK_Y": 16, "BLOCK_A": 64}, num_warps=8, max_registers=255),
}
# Large blocks need so many programs: about eight for each of the 132 multiprocessors of an H100. Otherwise small ones.
MIN_PROGRAMS_LARGE = 1024
# The keys of a query are split until there are so many programs, about one for each multiprocessor, or so many splits.
TARGET_PROGRAMS, MAX_SPLITS = 128, 16
# Value channels that a program accumulates in registers. With more, the context is a matrix product of the library.
MAX_VALUE_CHANNELS = 256


# --------------------------------------------------------------------------------------------------- what is here


def additive_scores_forward(
    q: Tensor, k: Tensor, v: Tensor, activation: Activation, prepared: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    return _scores(q, k, v, None, 1.0, *activation, *(prepared or (None, None)))


def additive_attention_forward(
    inputs: AttentionInputs,
    activation: Activation,
    scale: float,
    prepared: tuple[Tensor, Tensor] | None = None,
    need_weights: bool = True,
) -> tuple[Tensor, Tensor]:
    """If a row of the context fits in registers, and the weights are not needed, nothing of size (B,S,T) is written."""
    q, k, v, value, mask, score_bias = inputs
    scores = (q, k, v, score_bias, scale, *activation, *(prepared or (None, None)))
    if _fits_registers(value):
        return _attention(*scores, mask, value, need_weights)
    weights = _weights(*scores, mask)
    return torch.matmul(weights, value), weights


def prepare_keys(k: Tensor, kind: str) -> tuple[Tensor, Tensor] | None:
    """The exponentials of the keys (B,A',T') and their bounds (B,T)."""
    return _exponentials(k.detach()) if kind == "tanh" else None


def additive_scores_backward(
    grad_scores: Tensor, q: Tensor, k: Tensor, v: Tensor, activation: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    return _scores_backward(grad_scores, q, k, v, *activation)


# ------------------------------------------------------------------------------------------------------------ ops


def _exponentials_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    batch, rows, width = x.shape
    acc = accumulation_dtype(x.dtype)
    return x.new_empty(batch, _round_up(width, 4), _round_up(rows, 4), dtype=acc), x.new_empty(batch, rows, dtype=acc)


@op("exponentials(Tensor x) -> (Tensor, Tensor)", _exponentials_fake)
def _exponentials(
    x: Tensor,  # (B,N,A)
) -> tuple[Tensor, Tensor]:
    """e^2x (B,A',N'), channels first, A' and N' rounded up to multiples of four; and max_a |x| (B,N)."""
    check_sizes(x=(x, ("B", "N", "A")))
    exponentials, bounds = _exponentials_fake(x)
    batch, rows, width = x.shape
    grid = (batch, triton.cdiv(rows, EXPONENTIALS.blocks["BLOCK_N"]))
    launch(
        exponentials_kernel, grid, EXPONENTIALS,
        strided(x), exponentials, bounds, rows, A=width,
    )  # fmt: skip
    return exponentials, bounds


def _scores_fake(q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds):
    return q.new_empty(q.shape[0], q.shape[1], k.shape[1], dtype=accumulation_dtype(q.dtype))


@op(
    "scores(Tensor q, Tensor k, Tensor v, Tensor? score_bias, float scale, str activation, float negative_slope, "
    "Tensor? key_exponentials, Tensor? key_bounds) -> Tensor",
    _scores_fake,
    flops.additive_scores_forward,
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
    launch(scores_kernel, grid, config, pairs, scores, **constants)
    return scores


def _pairs(q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds):
    """The argument and the constants of kernels that compute scores."""
    batch, queries, keys, width = check_pairs(q, k, v)
    padded = (batch, _round_up(width, 4), _round_up(keys, 4))
    check_sizes(key_exponentials=(key_exponentials, padded), key_bounds=(key_bounds, (batch, keys)))
    if activation == "tanh":
        factors = (*_exponentials(q), *((key_exponentials, key_bounds) if key_bounds is not None else _exponentials(k)))
    else:  # the kernel walks along the channels
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
        factors = (None,) * 4
    bias = None if score_bias is None else score_bias.expand(batch, queries, keys)
    return pairs_of(q, k, v, bias, factors), score_constants(q, scale, activation, negative_slope)


def pairs_of(
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    score_bias: Tensor | None,  # (B,S,T)
    factors: tuple[Tensor | None, ...],  # of `_exponentials`, of q and of k; None but for tanh
) -> Pairs:
    bias = strided(score_bias)
    sizes = (*q.shape[1:2], *k.shape[1:])
    return Pairs._make((q, k, v, bias.ptr, *factors, *sizes, *q.stride(), *k.stride(), v.stride(0), *bias[1:]))


def score_constants(q: Tensor, scale: float, activation: str, negative_slope: float) -> dict[str, Any]:
    constants: dict[str, Any] = {"ACTIVATION": activation, "SLOPE": negative_slope, "SCALE": scale}
    return constants | {"WIDTH": _power_of_two(q.shape[-1]), "RANGE": QUOTIENT_RANGE[accumulation_dtype(q.dtype)]}


def _weights_fake(q, k, v, score_bias, scale, activation, negative_slope, key_exponentials, key_bounds, mask):
    return q.new_empty(q.shape[0], q.shape[1], k.shape[1])


@op(
    "weights(Tensor q, Tensor k, Tensor v, Tensor? score_bias, float scale, str activation, float negative_slope, "
    "Tensor? key_exponentials, Tensor? key_bounds, Tensor? mask) -> Tensor",
    _weights_fake,
    flops.additive_scores_forward,
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
    attended = _broadcast(mask, scores.shape)
    launch(softmax_kernel, (batch * queries,), SOFTMAX, scores, attended, weights, queries, keys)
    return weights


def _flop_of_attention(q: Any, k: Any, v: Any, *others: Any, **_: Any) -> int:
    return flops.additive_attention_forward(q, k, v, others[7])  # value


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
    _flop_of_attention,
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
    batch, queries, keys, _ = check_pairs(q, k, v)
    check_sizes(value=(value, (batch, keys, "D")))
    context, weights = _attention_fake(*scores, mask, value, need_weights)
    scores_out = torch.empty_like(weights, dtype=accumulation_dtype(q.dtype)) if need_weights else None
    config = _scores_config(ATTENTION, batch, queries, keys)
    splits = _splits(config, batch, queries, keys)
    parts = context.new_empty(batch, queries, splits, value.shape[2], dtype=torch.float32) if splits > 1 else context
    maxima, sums = parts.new_empty(2, batch, queries, splits) if splits > 1 else (None, None)
    attended = _broadcast(mask, (batch, queries, keys))
    pairs, constants = _pairs(*scores)
    grid = (batch, triton.cdiv(queries, config.blocks["BLOCK_S"]), splits)
    block_d = max(16, _power_of_two(value.shape[2]))
    launch(
        attention_kernel, grid, config, pairs, scores_out, attended, strided(value), parts, maxima, sums,
        **constants, D=value.shape[2], BLOCK_D=block_d, SPLITS=splits, PRECISION=precision(value),
    )  # fmt: skip
    if splits > 1:
        sizes = {"D": value.shape[2], "BLOCK_D": block_d, "SPLITS": splits}
        launch(combine_kernel, (batch * queries,), COMBINE, parts, maxima, sums, context, **sizes)
    if need_weights:
        launch(softmax_kernel, (batch * queries,), SOFTMAX, scores_out, attended, weights, queries, keys)
    return context, weights


def _scores_backward_fake(grad, q, k, v, activation, negative_slope):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))


@op(
    "scores_backward(Tensor grad, Tensor q, Tensor k, Tensor v, str activation, float negative_slope) -> "
    "(Tensor, Tensor, Tensor)",
    _scores_backward_fake,
    flops.additive_scores_backward,
)
def _scores_backward(
    grad: Tensor,  # (B,S,T) acc
    q: Tensor,  # (B,S,A)
    k: Tensor,  # (B,T,A)
    v: Tensor,  # (A,)
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv. Each pair is computed twice; in return no sum needs atomics, so sums always have the same order."""
    check_sizes(grad=(grad, check_pairs(q, k, v)[:3]))
    dq, dk, _ = _scores_backward_fake(grad, q, k, v, activation, negative_slope)
    act: dict[str, Any] = {"ACTIVATION": activation, "SLOPE": negative_slope}
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
    act: dict[str, Any],
) -> Any:
    """Writes the gradient of one side. Returns that of v in parts (B,blocks,A), one for each block of rows."""
    (batch, rows, width), others = x.shape, y.shape[1]
    config = _gradients_config(grad.dtype, batch, rows, width)
    grid = _gradients_grid(config, batch, rows, width)
    dv = grad.new_empty(batch, grid[1], width) if with_dv else None
    launch(
        gradients_kernel, grid, config,
        strided(grad), strided(x), strided(y), v, v.stride(0), strided(dx), dv, rows, others,
        A=width, RANGE=QUOTIENT_RANGE[grad.dtype], **act,
    )  # fmt: skip
    return dv


# -------------------------------------------------------------------------------------------------------- choices


def _scores_config(table: dict[str, Config], batch: int, queries: int, keys: int) -> Config:
    if queries == 1:
        return table["one query"]
    blocks = table["many pairs"].blocks
    programs = batch * triton.cdiv(queries, blocks["BLOCK_S"]) * triton.cdiv(keys, blocks["BLOCK_T"])
    return table["many pairs" if programs >= MIN_PROGRAMS_LARGE else "few pairs"]


def _splits(config: Config, batch: int, queries: int, keys: int) -> int:
    """How many programs split the keys of a block of queries: a power of two."""
    programs = max(1, batch * triton.cdiv(queries, config.blocks["BLOCK_S"]))
    blocks = triton.cdiv(keys, config.blocks["BLOCK_T"])
    splits = 1
    while 2 * splits <= min(blocks, MAX_SPLITS) and splits * programs < TARGET_PROGRAMS:
        splits *= 2
    return splits


def _fits_registers(value: Tensor) -> bool:
    """Whether a program accumulates the context in registers, of which float64 would need twice as many."""
    return 0 < value.shape[2] <= MAX_VALUE_CHANNELS and value.dtype != torch.float64


def _gradients_config(acc: torch.dtype, batch: int, rows: int, width: int) -> Config:
    programs = math.prod(_gradients_grid(GRADIENTS["many rows"], batch, rows, width))
    return GRADIENTS["many rows" if programs >= MIN_PROGRAMS_LARGE and acc == torch.float32 else "few rows"]


def _gradients_grid(config: Config, batch: int, rows: int, width: int) -> tuple[int, int, int]:
    return batch, triton.cdiv(rows, config.blocks["BLOCK_X"]), triton.cdiv(width, config.blocks["BLOCK_A"])


def _broadcast(tensor: Tensor | None, shape: tuple[int, ...]) -> Strided:
    """The tensor, with its strides in that shape."""
    return strided(None if tensor is None else tensor.expand(shape))


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _power_of_two(size: int) -> int:
    return triton.next_power_of_2(max(size, 1))
