"""The public functions of additive attention, and what decoding prepares and runs at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridops import autograd, backends
from hybridops.autograd.shared_gradients import Share, SharedGradients
from hybridops.checks import (
    ACTIVATIONS,
    accumulation_dtype,
    autocast_is_on,
    broadcast_mask,
    check_broadcastable,
    check_choice,
    check_dtypes,
    check_number,
    check_shape,
)
from hybridops.contract import Activation, AttentionInputs
from hybridops.formulas.additive_attention import masked_logsumexp, masked_softmax
from hybridops.functional.attended_keys import attended_keys
from hybridops.functional.autocast import cast_by_autocast, without_autocast


@dataclass(frozen=True, eq=False)
class PreparedExponentials:
    """What `prepare_exponentials` gave; opaque."""

    backend: str
    key_shape: torch.Size
    tensors: tuple[Tensor, Tensor]

    def index_select(self, index: Tensor) -> PreparedExponentials:
        """Of the keys at `index` of the batch."""
        exponentials, bounds = (t.index_select(0, index) for t in self.tensors)
        shape = torch.Size([index.shape[0], *self.key_shape[1:]])
        return PreparedExponentials(self.backend, shape, (exponentials, bounds))


def prepare_exponentials(
    key: Tensor, *, activation: str = "tanh", backend: str | None = None
) -> PreparedExponentials | None:
    """For decoding, where the same key (B, T, A) meets one query at a time: what `additive_attention` computes of the
    key alone, once. None where the back end has no use for it.
    """
    check_shape("key", key, ("B", "T", "A"))
    check_choice("activation", activation, ACTIVATIONS)
    key = cast_by_autocast(key)[0]
    check_dtypes(key=key)
    impl = backends.choose("additive_attention", backend, key)
    tensors = impl.prepare_keys(key, activation)
    return None if tensors is None else PreparedExponentials(impl.__name__, key.shape, tensors)


class SharedKeys(NamedTuple):
    """What `share_keys` gave."""

    key: Tensor  # (B, T, A)
    value: Tensor  # (B, T, D)
    gradients: SharedGradients


def share_keys(key: Tensor, value: Tensor) -> SharedKeys | None:
    """For training in a loop over steps that all attend to the same projected key (B, T, A) and value (B, T, D).

    Given to each `additive_attention` as `shared`, beside its key and value, their gradients are put together once for
    all steps, not made anew and added up at each. None where there is no gradient to share (or a transform, or
    `torch.compile`, does without).
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or autograd.under_transform():
        return None
    if not (key.requires_grad or value.requires_grad):
        return None
    gradients = SharedGradients()
    key, value = Share.apply(gradients, key, value)
    return SharedKeys(key, value, gradients)


def additive_scores(
    query: Tensor,
    key: Tensor,
    v: Tensor,
    *,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """Additive scores (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473) without a (B, S, T, A) tensor.

        score[b,s,t] = Σ_a v_a act(query[b,s,a] + key[b,t,a])

    Args:
        query: (B, S, A), projected.
        key: (B, T, A), projected.
        v: (A,).
        activation: "tanh", "relu" or "leaky_relu".
        negative_slope: of leaky_relu.
        backend: "reference", "native", "triton", or None for the fastest that takes these arguments.

    Returns:
        (B, S, T) in the dtype of query.
    """
    _check_pairs(query, key, v, activation, negative_slope)
    query, key, v = cast_by_autocast(query, key, v)
    check_dtypes(query=query, key=key, v=v)
    impl = backends.choose("additive_attention", backend, query)
    with without_autocast(query):
        scores = autograd.additive_attention.scores(impl, query, key, v, Activation(activation, float(negative_slope)))
    return scores.to(query.dtype)


@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: Literal[False] = False,
    return_lse: Literal[False] = False,
    prepared: PreparedExponentials | None = None,
    shared: SharedKeys | None = None,
    backend: str | None = None,
) -> Tensor: ...
@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: Literal[True],
    return_lse: Literal[False] = False,
    prepared: PreparedExponentials | None = None,
    shared: SharedKeys | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: Literal[False] = False,
    return_lse: Literal[True],
    prepared: PreparedExponentials | None = None,
    shared: SharedKeys | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: Literal[True],
    return_lse: Literal[True],
    prepared: PreparedExponentials | None = None,
    shared: SharedKeys | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    return_lse: bool = False,
    prepared: PreparedExponentials | None = None,
    shared: SharedKeys | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]: ...
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    return_lse: bool = False,
    prepared: PreparedExponentials | None = None,
    shared: SharedKeys | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Additive attention (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473) without a (B, S, T, A) tensor.

        score[b,s,t] = scale Σ_a v_a act(query[b,s,a] + key[b,t,a]) + score_bias[b,s,t]
        α = softmax_t(score) where mask is True, 0 elsewhere          context[b,s] = Σ_t α[b,s,t] value[b,t]
        lse[b,s] = log Σ_t exp(score[b,s,t]) where mask is True

    Args:
        query, key, v, activation, negative_slope, backend: as in `additive_scores`.
        value: (B, T, D).
        mask: boolean, True = may be attended, (B, T) or broadcastable to (B, S, T). A row that may attend nothing has a
            zero context, zero weights and zero gradients; its lse is -inf.
        score_bias: broadcastable to (B, S, T).
        scale: multiplies the scores, not the bias.
        dropout_p: probability with which a weight is zeroed, the others being scaled up; 0 in evaluation.
        return_weights: whether to return α too: after dropout, the weights that made the context.
        return_lse: whether to return lse too, which dropout does not change. What stands beside the keys joins their
            softmax by it: another score e has the weight β = σ(e - lse), and α is to be multiplied by 1 - β
            (the sentinel of Lu et al. 2017, https://arxiv.org/abs/1612.01887).
        prepared: what `prepare_exponentials` gave for this very key, to save computing it at every step of decoding.
        shared: what `share_keys` gave for this very key and value, for training in a loop over steps.

    Returns:
        context (B, S, D) in the dtype of value, or a tuple of it, α (B, S, T) and lse (B, S) as far as they are asked
        for. lse is float32, or float64 where query is.
    """
    _check_pairs(query, key, v, activation, negative_slope)
    pairs = (*query.shape[:2], key.shape[1])
    check_shape("value", value, (pairs[0], pairs[2], "D"))
    if shared is not None:
        if (shared.key.shape, shared.value.shape) != (key.shape, value.shape):
            raise ValueError(f"shared must be of this key and value, got shapes {shared.key.shape, shared.value.shape}")
        key, value = shared.key, shared.value
    as_given = key, value
    query, key, value, v = cast_by_autocast(query, key, value, v)
    check_dtypes(query=query, key=key, value=value, v=v)
    # one that is cast has a gradient of another dtype, which goes by way of the cast
    gradients = shared.gradients if shared is not None and key is as_given[0] and value is as_given[1] else None
    mask = broadcast_mask(mask, *pairs)
    if mask is not None and mask.device != query.device:
        raise ValueError(f"mask must be on the device of query, {query.device}, got {mask.device}")
    if score_bias is not None:
        check_broadcastable("score_bias", score_bias, query, pairs)
    check_number("scale", scale)
    check_number("dropout_p", dropout_p, 0.0, 1.0)
    impl = backends.choose("additive_attention", backend, query)
    exponentials = check_prepared(prepared, key, impl.__name__)
    attended = None
    if prepared is None and shared is None and dropout_p == 0:
        attended = attended_keys(impl, mask, query, key, value, v)
    if attended is not None:
        key, value, mask = attended.of_keys(key), attended.of_keys(value), attended.mask
        score_bias = None if score_bias is None else attended.of_pairs(score_bias)
    act = Activation(activation, float(negative_slope))
    with without_autocast(query):
        if dropout_p == 0:
            inputs = AttentionInputs(query, key, v, value, mask, score_bias)
            context, weights, lse = autograd.additive_attention.attend(
                impl, inputs, act, float(scale), exponentials, return_weights, return_lse, gradients
            )
        else:  # between the weights and the context stands what only PyTorch's generator knows
            scores = scale * autograd.additive_attention.scores(impl, query, key, v, act)
            if score_bias is not None:
                scores = scores + score_bias.to(scores.dtype)
            weights = F.dropout(masked_softmax(scores, mask), dropout_p).to(value.dtype)
            context = torch.matmul(weights, value)
            lse = masked_logsumexp(scores, mask) if return_lse else None
        if attended is not None and weights is not None:
            weights = attended.all_pairs(weights)
    results = (context, weights if return_weights else None, lse if return_lse else None)
    wanted = tuple(result for result in results if result is not None)
    return context if len(wanted) == 1 else wanted


def location_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    history: Tensor,
    weight: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A step of additive attention that sees what was attended to before, in training without a (B, S, T, A) tensor.

        score[b,s,t] = scale Σ_a v_a act(query[b,s,a] + key[b,t,a] + (weight * history[b])[a,t])

    The rest is as in `additive_attention`. With `*` a convolution over t, of zeros beyond both ends, this is the
    attention of Shen et al. 2018 (https://arxiv.org/abs/1712.05884), whose history is the weights of the step before
    and the sum of those of all steps, and whose convolution and projection are one here, `weight`; and with K = 1, and
    the sum alone, the coverage of See et al. 2017 (https://arxiv.org/abs/1704.04368).

    A backward makes the moved keys (B, T, A) again: kept, those of S steps would be a (B, S, T, A) tensor.

    Args:
        query, key, value, v: (B, S, A), (B, T, A), (B, T, D), (A,); a step of decoding has S = 1, and T is not 0.
        history: (B, C, T).
        weight: (A, C, K), K odd.
        mask: boolean, True = may be attended, (B, T) or broadcastable to it.
        scale, activation, negative_slope, backend: as in `additive_attention`.

    Returns:
        context (B, S, D), α (B, S, T).
    """
    _check_pairs(query, key, v, activation, negative_slope)
    batch, keys, width = key.shape
    check_shape("value", value, (batch, keys, "D"))
    check_shape("history", history, (batch, "C", keys))
    check_shape("weight", weight, (width, history.shape[1], "K"))
    if weight.shape[2] % 2 == 0:
        raise ValueError(f"weight must have an odd kernel, got {weight.shape[2]}")
    if keys == 0:
        raise ValueError("key must have a position at least, got none")
    query, key, value, v, history, weight = cast_by_autocast(query, key, value, v, history, weight)
    check_dtypes(query=query, key=key, value=value, v=v, history=history, weight=weight)
    mask = broadcast_mask(mask, batch, 1, keys)
    if mask is not None and mask.device != query.device:
        raise ValueError(f"mask must be on the device of query, {query.device}, got {mask.device}")
    check_number("scale", scale)
    impl = backends.choose("additive_attention", backend, query)
    inputs = AttentionInputs(query, key, v, value, mask, None)
    with without_autocast(query):
        return autograd.additive_attention.attend_by_location(
            impl, inputs, history, weight, Activation(activation, float(negative_slope)), float(scale)
        )


# Of more queries PyTorch's product is as fast, and it knows the matrix units of processors that have them.
MAX_STEP_QUERIES = 512


def additive_attention_step(
    query: Tensor,  # (m·B, Q) or (m·B, S, Q), not projected
    projection: Tensor,  # (A, Q)
    projection_bias: Tensor | None,  # (A)
    key: Tensor,  # (B, T, A)
    value: Tensor,  # (B, T, D)
    v: Tensor,  # (1, A)
    *,
    mask: Tensor | None,  # boolean, three dimensions, broadcastable to (B, m·S, T)
    scale: float,
    activation: str,
    negative_slope: float,
    return_weights: bool,
    prepared: PreparedExponentials | None,
    backend: str | None,
) -> tuple[Tensor, Tensor | None] | None:
    """A step of decoding without gradients as one op: `additive_attention` of a query that is yet to be projected,

        q = projection query + projection_bias

    Gives context (m·B, D) or (m·B, S, D), and weights with T in place of D or None; or None where the back end has no
    such op, or there is more to do than it does (gradients, autocast, a transform, tensors that are not alike).
    """
    tensors = (query, projection, key, value, v, projection_bias)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or autograd.under_transform():
        return None
    rows, batch = query.shape[:-1].numel(), key.shape[0]  # not before: `numel` makes a number of a symbol
    if not 0 < rows <= MAX_STEP_QUERIES or autocast_is_on(query):
        return None
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.dtype is not query.dtype
            or tensor.device != query.device
        ):
            return None
    width = key.shape[2]
    if projection.shape != (width, query.shape[-1]) or v.shape != (1, width):
        return None
    if projection_bias is not None and projection_bias.shape != (width,):
        return None
    impl = backends.choose("additive_attention", backend, query)
    step = getattr(impl, "additive_attention_step", None)
    if step is None or query.device.type != "cpu":  # there is no such op on a GPU
        return None
    autograd.refuse_forward_mode(query)
    exponentials = check_prepared(prepared, key, impl.__name__)
    mask = None if mask is None else mask.expand(batch, rows // batch, key.shape[1])
    inputs = AttentionInputs(query, key, v, value, mask, None)
    act = Activation(activation, negative_slope)
    context, weights = step(query, (projection, projection_bias), inputs, act, scale, exponentials, return_weights)
    return context, weights if return_weights else None


def _check_pairs(query: Tensor, key: Tensor, v: Tensor, activation: str, negative_slope: float) -> None:
    check_shape("query", query, ("B", "S", "A"))
    batch, _, width = query.shape
    check_shape("key", key, (batch, "T", width))
    check_shape("v", v, (width,))
    check_choice("activation", activation, ACTIVATIONS)
    check_number("negative_slope", negative_slope)


def check_prepared(prepared: PreparedExponentials | None, key: Tensor, backend: str) -> tuple[Tensor, Tensor] | None:
    """What was prepared; None if by another back end, for it is of no use then."""
    if prepared is None:
        return None
    if not isinstance(prepared, PreparedExponentials):
        raise TypeError(f"prepared must be what prepare_exponentials gave, got {type(prepared).__name__}")
    wanted = (key.shape, accumulation_dtype(key.dtype), key.device)
    came = (prepared.key_shape, prepared.tensors[0].dtype, prepared.tensors[0].device)
    if came != wanted:
        raise ValueError("prepared must be of a key like {}, {}, {}, got {}, {}, {}".format(*wanted, *came))
    return prepared.tensors if prepared.backend == backend else None
