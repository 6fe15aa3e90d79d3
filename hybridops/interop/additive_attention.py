"""Additive attention checkpoints of other projects: where their weights stand, and how a fused module takes them.

Sources, each read from its files: bentrevett/pytorch-seq2seq, OpenNMT-py, Joey NMT, AllenNLP, ESPnet, NVIDIA Tacotron2,
SpeechBrain, d2l, NVIDIA GNMT, TensorFlow Addons, Keras, and PyTorch's own sequence to sequence tutorial.
"textbook.Attention" is the attention of text books, over the concatenation of hidden state and encoder output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from hybridops import reference
from hybridops.checks import check_shape
from hybridops.interop.layouts import Layer, Layout
from hybridops.modules import FusedAdditiveAttention, FusedConcatAttention

_PROJECTIONS = ("query_weight", "key_weight")
_BIASES = ("query_bias", "key_bias", "bias")


@dataclass(frozen=True, kw_only=True)
class AttentionLayout(Layout):
    """Roles: query_weight (A, Q) and key_weight (A, K), or both in joint_weight (A, Q+K), or neither, where query and
    key are not projected; query_bias, key_bias, or bias, of their sum (A); v; v_bias (1), which no softmax sees; g, for
    v = g·V/‖V‖.
    """

    concat: bool = False  # Q = K = A: it becomes a FusedConcatAttention
    square_query: bool = False  # Q = A
    transposed: bool = False  # the projections are (in, A), for x W
    v_shape: tuple[int, ...] = (1, -1)
    g_shape: tuple[int, ...] = (1,)
    scale: float = 1.0
    free_scale: bool = False  # it is an argument of the source, so that no state dict tells it


class Weights(NamedTuple):
    """What the source computes with; None is what it does not have."""

    query_weight: Tensor | None  # (A, Q)
    key_weight: Tensor | None  # (A, K)
    query_bias: Tensor | None  # (A), also that of the sum
    key_bias: Tensor | None  # (A)
    v: Tensor  # (A)
    g: Tensor | None  # ()
    v_bias: Tensor | None = None  # (1)


_LOCATION = "a term of the previous weights (location-aware attention)"
_NORM = ("g", "bias")


def _linears(query: str, key: str, v: str, *biased: str) -> dict[str, str]:
    """Keys of three nn.Linear, of which the roles in `biased` have a bias."""
    names = {"query": query, "key": key, "v": v}
    weights = {"query_weight": f"{query}.weight", "key_weight": f"{key}.weight", "v": f"{v}.weight"}
    return weights | {f"{role}_bias": f"{names[role]}.bias" for role in biased}


def _joint(attn: str, v: str) -> dict[str, str]:
    """Keys of two nn.Linear, the first over query and key with a bias."""
    return {"joint_weight": f"{attn}.weight", "query_bias": f"{attn}.bias", "v": f"{v}.weight"}


LAYOUTS: dict[str, AttentionLayout] = {
    "textbook.Attention": AttentionLayout(keys=_joint("attn", "v"), concat=True),
    "bentrevett": AttentionLayout(keys=_joint("attn", "v"), square_query=True),
    "bentrevett_fc": AttentionLayout(keys=_joint("attn_fc", "v_fc"), square_query=True),
    "opennmt": AttentionLayout(
        keys=_linears("linear_query", "linear_context", "v", "query"),
        outside=("linear_out.*",),  # over context and query, behind the attention
        refused={"linear_cover.*": "coverage"},
    ),
    "joeynmt": AttentionLayout(keys=_linears("query_layer", "key_layer", "energy_layer")),
    "allennlp": AttentionLayout(
        keys={"query_weight": "_w_matrix", "key_weight": "_u_matrix", "v": "_v_vector"},
        transposed=True,
        square_query=True,
        v_shape=(-1, 1),
    ),
    "espnet": AttentionLayout(
        keys=_linears("mlp_dec", "mlp_enc", "gvec", "key", "v"),
        refused={"loc_conv.*": _LOCATION, "mlp_att.*": _LOCATION, "wvec.*": "coverage"},
        scale=2.0,
        free_scale=True,
    ),
    "tacotron2": AttentionLayout(
        keys=_linears("query_layer.linear_layer", "memory_layer.linear_layer", "v.linear_layer"),
        refused={"location_layer.*": _LOCATION},
    ),
    "speechbrain": AttentionLayout(
        keys=_linears("mlp_dec", "mlp_enc", "mlp_attn", "query", "key"),
        outside=("mlp_out.*",),  # over the context, behind the attention
        refused={"conv_loc.*": _LOCATION, "mlp_loc.*": _LOCATION},
        free_scale=True,
    ),
    "d2l": AttentionLayout(keys=_linears("W_q", "W_k", "w_v")),
    "pytorch_tutorial": AttentionLayout(keys=_linears("Wa", "Ua", "Va", "query", "key", "v")),
    "gnmt": AttentionLayout(
        keys={"query_weight": "linear_q.weight", "key_weight": "linear_k.weight", "v": "linear_att"}
        | {"g": "normalize_scalar", "bias": "normalize_bias"},
        optional=(_NORM,),
        v_shape=(-1,),
    ),
    "tfa": AttentionLayout(
        keys={"query_weight": "query_layer/kernel", "key_weight": "memory_layer/kernel", "v": "attention_v"}
        | {"g": "attention_g", "bias": "attention_b"},
        optional=(_NORM,),
        transposed=True,
        v_shape=(-1,),
        g_shape=(),
    ),
    "keras.AdditiveAttention": AttentionLayout(keys={"v": "scale"}, v_shape=(-1,)),
}


def build(
    layout: AttentionLayout, layers: list[Layer], **options: Any
) -> FusedAdditiveAttention | FusedConcatAttention:
    """The fused module with these weights. What the source does not have is set to do nothing, and not trained."""
    ((tensors, keys),) = layers
    weights = _read(layout, tensors, keys)
    v, attn_dim = weights.v, len(weights.v)
    options.setdefault("device", v.device)
    options.setdefault("dtype", v.dtype)
    if layout.concat:
        check_shape(keys["joint_weight"], tensors["joint_weight"], (attn_dim, 2 * attn_dim))
        concat = FusedConcatAttention(attn_dim, **options)
        joint = {"attn.weight": tensors["joint_weight"], "attn.bias": weights.query_bias, "v.weight": v[None]}
        concat.load_state_dict(joint, strict=True)
        return concat

    state: dict[str, Any] = {
        "query_proj.weight": weights.query_weight,
        "key_proj.weight": weights.key_weight,
        "v.weight": v[None],
    }
    biases = {"query_proj.bias": weights.query_bias, "key_proj.bias": weights.key_bias}
    biased = any(bias is not None for bias in biases.values())
    state |= biases if biased else {}
    trained = {name for name, tensor in state.items() if tensor is not None}
    eye, zeros = torch.eye(attn_dim, dtype=v.dtype, device=v.device), torch.zeros_like(v)
    for name in state.keys() - trained:
        state[name] = zeros if name in biases else eye
    sizes = state["query_proj.weight"].shape[1], state["key_proj.weight"].shape[1]
    options.setdefault("bias", biased)
    options.setdefault("scale", layout.scale)
    module = FusedAdditiveAttention(*sizes, attn_dim, **options)
    module.load_state_dict(state, strict=True)
    for name in state:
        module.get_parameter(name).requires_grad_(name in trained)
    if weights.g is not None:  # v = g·V/‖V‖, as a parametrization, so that it is trained as in the source
        scores: Any = parametrizations.weight_norm(module.v, dim=0)
        originals = {"original0": weights.g.reshape(1, 1), "original1": v[None]}
        scores.parametrizations.weight.load_state_dict(originals)
    return module


def take_apart(layout: AttentionLayout, module: nn.Module, source: str) -> list[dict[str, Tensor]]:
    """The tensors by their roles."""
    weights = _weights_of(module, with_g="g" in layout.keys)
    projections: list[Any] = [weights.query_weight, weights.key_weight]
    attn_dim = len(weights.v)
    if not isinstance(module, reference.ConcatAttention):
        if module.activation != "tanh":
            raise ValueError(f"module must have activation 'tanh', as {source!r} has, got {module.activation!r}")
        if module.scale != layout.scale and not layout.free_scale:
            raise ValueError(f"module must have scale {layout.scale:g}, as {source!r} has, got {module.scale:g}")
    query_dim = projections[0].shape[1]
    if layout.square_query and query_dim != attn_dim:
        raise ValueError(f"module must take a query as wide as the sum, {attn_dim}, got {query_dim}: {source!r} does")
    joint = torch.cat(projections, dim=1)
    if layout.concat:
        check_shape("W of module", joint, (attn_dim, 2 * attn_dim))
    if layout.keys.keys().isdisjoint(("joint_weight", *_PROJECTIONS)):
        eye = torch.eye(attn_dim).to(weights.v)
        if not all(torch.equal(weight, eye) for weight in projections):
            raise ValueError(f"module must project by the identity: there are no projections in {source!r}")
    query_weight, key_weight = [weight.T for weight in projections] if layout.transposed else projections
    tensors = {"joint_weight": joint, "query_weight": query_weight, "key_weight": key_weight}
    tensors |= {"v": weights.v.reshape(layout.v_shape), "v_bias": weights.v.new_zeros(1)}
    tensors |= _write_biases(layout, weights, source)
    if weights.g is not None or "bias" in tensors:
        tensors["g"] = (weights.v.norm() if weights.g is None else weights.g).reshape(layout.g_shape)
        tensors.setdefault("bias", torch.zeros_like(weights.v))
    return [{role: tensors[role] for role in layout.keys if role in tensors}]


def live_weights(layout: AttentionLayout, module: nn.Module) -> Weights:
    """The module's own tensors, or views of them, but for v, which is normalised here where it is to be."""
    weights = _read(layout, *layout.live(module)[0])
    if weights.g is None:
        return weights
    return weights._replace(v=weights.g.reshape(()) * weights.v / torch.linalg.vector_norm(weights.v), g=None)


def _read(layout: AttentionLayout, tensors: dict[str, Tensor], keys: dict[str, str]) -> Weights:
    """Checked, and as `nn.Linear` keeps them."""
    v, attn_dim = tensors["v"], tensors["v"].numel()
    projection = ("in", attn_dim) if layout.transposed else (attn_dim, "in")
    shapes: dict[str, tuple[int | str, ...]] = dict.fromkeys(_BIASES, (attn_dim,))
    shapes |= dict.fromkeys(_PROJECTIONS, projection)
    shapes |= {"joint_weight": (attn_dim, "Q+K"), "v_bias": (1,), "g": layout.g_shape}
    shapes["v"] = tuple(attn_dim if size == -1 else size for size in layout.v_shape)
    for role, tensor in tensors.items():
        check_shape(keys[role], tensor, shapes[role])
    query: Tensor | None
    key: Tensor | None
    if "joint_weight" in tensors:
        joint = tensors["joint_weight"]
        if joint.shape[1] <= attn_dim:
            raise ValueError(f"{keys['joint_weight']} must have more than {attn_dim} columns, got {joint.shape[1]}")
        query, key = joint[:, :attn_dim], joint[:, attn_dim:]  # the query is as wide as the sum
    else:
        query, key = (tensors.get(role) for role in _PROJECTIONS)
        if layout.transposed:
            query, key = tensors["query_weight"].T, tensors["key_weight"].T
    query_bias = tensors.get("query_bias", tensors.get("bias"))
    others = tensors.get("g"), tensors.get("v_bias")
    return Weights(query, key, query_bias, tensors.get("key_bias"), v.reshape(-1), *others)


def _weights_of(module: Any, *, with_g: bool) -> Weights:
    g = None
    v = module.v.weight[0]
    if with_g and parametrize.is_parametrized(module.v, "weight"):
        originals = module.v.parametrizations.weight
        if hasattr(originals, "original1"):  # those of weight_norm: g and V
            g, v = originals.original0, originals.original1[0]
    if isinstance(module, reference.ConcatAttention):
        query_weight, key_weight = module.attn.weight.split(module.hidden_dim, dim=1)
        return Weights(query_weight, key_weight, module.attn.bias, None, v, g)
    query, key = module.query_proj, module.key_proj
    return Weights(query.weight, key.weight, query.bias, key.bias, v, g)


def _write_biases(layout: AttentionLayout, weights: Weights, source: str) -> dict[str, Tensor]:
    """Only the sum of the biases counts: where there is one place, it is put there."""
    places = [role for role in _BIASES if role in layout.keys]
    zeros, given = torch.zeros_like(weights.v), (weights.query_bias, weights.key_bias)
    biases = [bias for bias in given if bias is not None]
    if not places and any(bias.any() for bias in biases):
        raise ValueError(f"module must have no bias, or zeros: there is none in {source!r}")
    if len(places) == 2:
        return {role: zeros if bias is None else bias for role, bias in zip(places, given, strict=True)}
    if not places or (not biases and layout.optional):
        return {}
    return {places[0]: sum(biases, start=zeros)}
