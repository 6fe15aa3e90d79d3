"""Additive attention checkpoints of other projects: where their weights stand, and how a fused module takes them.

Sources, each read from its files: bentrevett/pytorch-seq2seq, OpenNMT-py, Joey NMT, AllenNLP, ESPnet, NVIDIA Tacotron2,
SpeechBrain, d2l, NVIDIA GNMT, TensorFlow Addons, Keras, and PyTorch's own sequence to sequence tutorial.
"documents.Attention" is the attention of text books, over the concatenation of hidden state and encoder output.
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

_BIASES = ("query_bias", "key_bias", "bias")


@dataclass(frozen=True, kw_only=True)
class AttentionLayout(Layout):
    """Roles: query_weight (A, Q) and key_weight (A, K), or both in joint_weight (A, Q+K), or neither, where query and
    key are not projected; query_bias, key_bias, or bias, of their sum (A); v; v_bias (1), which no softmax sees; g, for
    v = g·V/‖V‖.
    """

    joint: str | None = None  # "AdditiveAttention" | "ConcatAttention": what joint_weight becomes
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
_PROJECTED = {"query_weight": "query_layer.linear_layer.weight", "key_weight": "memory_layer.linear_layer.weight"}
_NORM = ("g", "bias")


def _linears(query: str, key: str, v: str, *biased: str) -> dict[str, str]:
    """Keys of three nn.Linear, of which the roles in `biased` have a bias."""
    names = {"query": query, "key": key, "v": v}
    weights = {"query_weight": f"{query}.weight", "key_weight": f"{key}.weight", "v": f"{v}.weight"}
    return weights | {f"{role}_bias": f"{names[role]}.bias" for role in biased}


LAYOUTS: dict[str, AttentionLayout] = {
    "documents.Attention": AttentionLayout(
        keys={"joint_weight": "attn.weight", "query_bias": "attn.bias", "v": "v.weight"}, joint="ConcatAttention"
    ),
    "bentrevett": AttentionLayout(
        keys={"joint_weight": "attn.weight", "query_bias": "attn.bias", "v": "v.weight"},
        joint="AdditiveAttention",
        square_query=True,
    ),
    "bentrevett_fc": AttentionLayout(
        keys={"joint_weight": "attn_fc.weight", "query_bias": "attn_fc.bias", "v": "v_fc.weight"},
        joint="AdditiveAttention",
        square_query=True,
    ),
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
        keys=_PROJECTED | {"v": "v.linear_layer.weight"}, refused={"location_layer.*": _LOCATION}
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
    options = {"device": v.device, "dtype": v.dtype} | options
    if layout.joint == "ConcatAttention":
        joint = tensors["joint_weight"]
        check_shape(keys["joint_weight"], joint, (attn_dim, 2 * attn_dim))
        module = FusedConcatAttention(attn_dim, **options)
        state = {"attn.weight": joint, "attn.bias": weights.query_bias, "v.weight": v[None]}
        module.load_state_dict(state, strict=True)
        return module

    eye, zeros = torch.eye(attn_dim, dtype=v.dtype, device=v.device), torch.zeros_like(v)
    state = {"query_proj.weight": (weights.query_weight, eye), "key_proj.weight": (weights.key_weight, eye)}
    biased = weights.query_bias is not None or weights.key_bias is not None
    if biased:
        state |= {"query_proj.bias": (weights.query_bias, zeros), "key_proj.bias": (weights.key_bias, zeros)}
    state["v.weight"] = (v[None], None)
    sizes = [default.shape[1] if weight is None else weight.shape[1] for weight, default in list(state.values())[:2]]
    module = FusedAdditiveAttention(*sizes, attn_dim, **{"bias": biased, "scale": layout.scale} | options)
    module.load_state_dict({name: default if t is None else t for name, (t, default) in state.items()}, strict=True)
    for name, (tensor, _) in state.items():
        module.get_parameter(name).requires_grad_(tensor is not None)
    if weights.g is not None:
        _normalise(module.v, weights.g)
    return module


def take_apart(layout: AttentionLayout, module: nn.Module, source: str) -> list[dict[str, Tensor]]:
    """The tensors by their roles."""
    weights = _weights_of(module, with_g="g" in layout.keys)
    if not isinstance(module, reference.ConcatAttention):
        if module.activation != "tanh":
            raise ValueError(f"module must have activation 'tanh', as {source!r} has, got {module.activation!r}")
        if module.scale != layout.scale and not layout.free_scale:
            raise ValueError(f"module must have scale {layout.scale:g}, as {source!r} has, got {module.scale:g}")
    projections = {"query_weight": weights.query_weight, "key_weight": weights.key_weight}
    if layout.square_query and weights.query_weight.shape[1] != len(weights.v):
        width, came = len(weights.v), weights.query_weight.shape[1]
        raise ValueError(f"module must take a query as wide as the sum, {width}, got {came}: {source!r} does")
    tensors: dict[str, Tensor] = {}
    if "joint_weight" in layout.keys:
        tensors["joint_weight"] = torch.cat(list(projections.values()), dim=1)
        if layout.joint == "ConcatAttention":
            check_shape("W of module", tensors["joint_weight"], (len(weights.v), 2 * len(weights.v)))
    elif "query_weight" in layout.keys:
        tensors |= {role: weight.T if layout.transposed else weight for role, weight in projections.items()}
    else:
        eye = torch.eye(len(weights.v)).to(weights.v)
        if not all(torch.equal(weight, eye) for weight in projections.values()):
            raise ValueError(f"module must project by the identity: there are no projections in {source!r}")
    tensors |= _write_biases(layout, weights, source)
    tensors["v"] = weights.v.reshape(layout.v_shape)
    if "g" in layout.keys and (weights.g is not None or "bias" in tensors):
        tensors["g"] = (weights.v.norm() if weights.g is None else weights.g).reshape(layout.g_shape)
        tensors.setdefault("bias", torch.zeros_like(weights.v))
    if "v_bias" in layout.keys:
        tensors["v_bias"] = weights.v.new_zeros(1)
    return [tensors]


def live_weights(layout: AttentionLayout, module: nn.Module) -> Weights:
    """The module's own tensors, or views of them, but for v, which is normalised here where it is to be."""
    weights = _read(layout, *layout.live(module)[0])
    if weights.g is None:
        return weights
    return weights._replace(v=weights.g.reshape(()) * weights.v / torch.linalg.vector_norm(weights.v), g=None)


def _read(layout: AttentionLayout, tensors: dict[str, Tensor], keys: dict[str, str]) -> Weights:
    """Checked, and as `nn.Linear` keeps them."""
    v, attn_dim = tensors["v"], tensors["v"].numel()
    check_shape(keys["v"], v, [attn_dim if size == -1 else size for size in layout.v_shape])
    if "joint_weight" in tensors:
        joint = tensors["joint_weight"]
        check_shape(keys["joint_weight"], joint, (attn_dim, "Q+K"))
        if joint.shape[1] <= attn_dim:
            raise ValueError(f"{keys['joint_weight']} must have more than {attn_dim} columns, got {joint.shape[1]}")
        query_weight, key_weight = joint[:, :attn_dim], joint[:, attn_dim:]  # the query is as wide as the sum
    else:
        for role in {"query_weight", "key_weight"} & tensors.keys():
            check_shape(keys[role], tensors[role], ("in", attn_dim) if layout.transposed else (attn_dim, "in"))
        query_weight, key_weight = tensors.get("query_weight"), tensors.get("key_weight")
        if layout.transposed:
            query_weight, key_weight = query_weight.T, key_weight.T
    for role in {*_BIASES} & tensors.keys():
        check_shape(keys[role], tensors[role], (attn_dim,))
    if "v_bias" in tensors:
        check_shape(keys["v_bias"], tensors["v_bias"], (1,))
    if "g" in tensors:
        check_shape(keys["g"], tensors["g"], layout.g_shape)
    query_bias = tensors.get("query_bias", tensors.get("bias"))
    others = tensors.get("g"), tensors.get("v_bias")
    return Weights(query_weight, key_weight, query_bias, tensors.get("key_bias"), v.reshape(-1), *others)


def _weights_of(module: nn.Module, *, with_g: bool) -> Weights:
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
    biases = [bias for bias in (weights.query_bias, weights.key_bias) if bias is not None]
    if not places and any(bias.any() for bias in biases):
        raise ValueError(f"module must have no bias, or zeros: there is none in {source!r}")
    zeros = torch.zeros_like(weights.v)
    if len(places) == 2:
        query_bias, key_bias = (zeros if bias is None else bias for bias in (weights.query_bias, weights.key_bias))
        return {"query_bias": query_bias, "key_bias": key_bias}
    if not places or (not biases and layout.optional):
        return {}
    return {places[0]: sum(biases) if biases else zeros}


def _normalise(v: nn.Linear, g: Tensor) -> None:
    """v = g·V/‖V‖, as a parametrization, so that it is trained as in the source."""
    direction = v.weight.detach().clone()
    parametrizations.weight_norm(v, dim=0)
    with torch.no_grad():
        v.parametrizations.weight.original0.fill_(g.item())
        v.parametrizations.weight.original1.copy_(direction)
