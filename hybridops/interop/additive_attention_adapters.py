"""How the additive attentions of other projects are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.interop.adapters import register
from hybridops.interop.additive_attention import LAYOUTS, Weights, live_weights


def scores(weights: Weights, query: Any, keys: Any, *, projected: bool = False) -> Tensor | Any:
    """Scores (B, S, T) of a query (B, S, Q) over keys (B, T, K), or (B, T, A) where they are projected already.

    NotImplemented where the shapes do not fit, so that the module's own forward says so.
    """
    if not isinstance(query, Tensor) or not isinstance(keys, Tensor) or query.dim() != 3 or keys.dim() != 3:
        return NotImplemented
    width = len(weights.v) if projected else weights.key_weight.shape[1]
    if query.shape[0] != keys.shape[0] or query.shape[2] != weights.query_weight.shape[1] or keys.shape[2] != width:
        return NotImplemented
    query = F.linear(query, weights.query_weight, weights.query_bias)
    keys = keys if projected else F.linear(keys, weights.key_weight, weights.key_bias)
    out = HF.additive_scores(query, keys, weights.v)
    return out if weights.v_bias is None else out + weights.v_bias.to(out.dtype)


def _one(weights: Weights, query: Any, keys: Any) -> Tensor | Any:
    """Scores (B, T) of one query (B, Q)."""
    if not isinstance(query, Tensor) or query.dim() != 2:
        return NotImplemented
    out = scores(weights, query.unsqueeze(1), keys)
    return out if out is NotImplemented else out.squeeze(1)


def random_pairs(weights: Weights, batch: int, queries: int, keys: int) -> tuple[Tensor, Tensor]:
    """A query (B, S, Q) and keys (B, T, K)."""
    return torch.randn(batch, queries, weights.query_weight.shape[1]), torch.randn(
        batch, keys, weights.key_weight.shape[1]
    )


def random_mask(batch: int, keys: int, empty: bool = True) -> Tensor:
    """(B, T), True = may be attended; of the first entry nothing may be, where that is wanted."""
    mask = torch.rand(batch, keys) > 0.4
    mask[0] = not empty
    mask[1:, 0] = True
    return mask


def takes(module: nn.Module, count: int) -> bool:
    """Whether its forward has so many arguments, besides itself."""
    return len(inspect.signature(type(module).forward).parameters) > count


# ------------------------------------------------------------------------------------------------------------ calls


def call_document(module: nn.Module, weights: Weights, hidden: Any, encoder_outputs: Any) -> Any:
    out = _one(weights, hidden, encoder_outputs)
    return out if out is NotImplemented else torch.softmax(out, 1)


def document_examples(module: nn.Module, weights: Weights, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    query, keys = random_pairs(weights, batch, 1, steps)
    yield query[:, 0], keys


def call_bentrevett(module: nn.Module, weights: Weights, hidden: Any, outputs: Any, mask: Any = None) -> Any:
    """Keys time first; after a mask, a row of which nothing may be attended is uniform."""
    if not isinstance(outputs, Tensor) or outputs.dim() != 3 or not (mask is None or isinstance(mask, Tensor)):
        return NotImplemented
    out = _one(weights, hidden, outputs.transpose(0, 1))
    if out is NotImplemented:
        return out
    return torch.softmax(out if mask is None else out.masked_fill(mask == 0, -1e10), 1)


def bentrevett_examples(module: nn.Module, weights: Weights, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    query, keys = random_pairs(weights, batch, 1, steps)
    pair = query[:, 0], keys.transpose(0, 1)
    if not takes(module, 3):
        yield pair
        return
    yield *pair, None
    yield *pair, random_mask(batch, steps)
    yield *pair, random_mask(batch, steps).long()


def call_context(module: nn.Module, weights: Weights, query: Any, keys: Any) -> Any:
    """(context, weights) of queries (B, S, Q); GNMT's mask is set beforehand, True = masked."""
    out = scores(weights, query, keys)
    if out is NotImplemented:
        return out
    mask = getattr(module, "mask", None)
    out = out if mask is None else out.masked_fill(mask.unsqueeze(1), -65504.0)
    attention = torch.softmax(out, dim=-1)
    return torch.bmm(attention, keys), attention


def tutorial_examples(module: nn.Module, weights: Weights, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    yield random_pairs(weights, batch, 1, steps)


def call_tutorial(module: nn.Module, weights: Weights, query: Any, keys: Any) -> Any:
    if not isinstance(query, Tensor) or query.dim() != 3 or query.shape[1] != 1:
        return NotImplemented
    return call_context(module, weights, query, keys)


def gnmt_examples(module: nn.Module, weights: Weights, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    for mask in (None, ~random_mask(batch, steps).to(weights.v.device)):
        module.mask = mask
        yield random_pairs(weights, batch, 2, steps)


def call_allennlp(module: nn.Module, weights: Weights, vector: Any, matrix: Any, mask: Any = None) -> Any:
    if mask is not None or not getattr(module, "_normalize", True):
        return NotImplemented
    return call_document(module, weights, vector, matrix)


def allennlp_examples(module: nn.Module, weights: Weights, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    query, keys = random_pairs(weights, batch, 1, steps)
    yield (query[:, 0], keys, None) if takes(module, 3) else (query[:, 0], keys)


def call_opennmt(module: nn.Module, weights: Weights, source: Any, memory: Any, lengths: Any, coverage: Any) -> Any:
    """Context and query go through a layer behind the attention."""
    if coverage is not None or getattr(module, "attn_func", "softmax") != "softmax" or not isinstance(source, Tensor):
        return NotImplemented
    query = source.unsqueeze(1) if source.dim() == 2 else source
    out = scores(weights, query, memory)
    if out is NotImplemented:
        return out
    if lengths is not None:
        positions = torch.arange(out.shape[-1], device=out.device)
        out = out.masked_fill((positions >= lengths[:, None])[:, None], -torch.inf)
    attention = torch.softmax(out, -1)
    hidden = module.linear_out(torch.cat([torch.bmm(attention, memory), query], 2))
    return (hidden.squeeze(1), attention.squeeze(1)) if source.dim() == 2 else (hidden, attention)


def opennmt_examples(module: nn.Module, weights: Weights, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    query, keys = random_pairs(weights, batch, 2, steps)
    yield query, keys, None, None
    yield query[:, 0], keys, torch.randint(1, steps + 1, (batch,)), None


def call_joeynmt(module: nn.Module, weights: Weights, query: Any, mask: Any, values: Any) -> Any:
    """The keys are projected beforehand; the projected query is kept."""
    if not isinstance(module.proj_keys, Tensor) or not isinstance(mask, Tensor) or query.shape[1:2] != (1,):
        return NotImplemented
    out = scores(weights, query, module.proj_keys, projected=True)
    if out is NotImplemented:
        return out
    module.proj_query = F.linear(query, weights.query_weight, weights.query_bias)
    attention = torch.softmax(torch.where(mask > 0, out, -torch.inf), dim=-1)
    return attention @ values, attention


def joeynmt_examples(module: nn.Module, weights: Weights, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    query, values = random_pairs(weights, batch, 1, steps)
    module.proj_keys = torch.randn(batch, steps, len(weights.v)).to(weights.v)
    yield query, random_mask(batch, steps).unsqueeze(1), values


def call_d2l(module: nn.Module, weights: Weights, queries: Any, keys: Any, values: Any, valid_lens: Any) -> Any:
    """Keys beyond a length, one an entry or one a query, are masked; the weights are kept."""
    if not isinstance(values, Tensor) or (module.training and module.dropout.p):
        return NotImplemented
    out = scores(weights, queries, keys)
    if out is NotImplemented:
        return out
    if valid_lens is not None:
        lengths = valid_lens[:, None, None] if valid_lens.dim() == 1 else valid_lens[:, :, None]
        out = out.masked_fill(torch.arange(out.shape[-1], device=out.device) >= lengths, -1e6)
    module.attention_weights = torch.softmax(out, dim=-1)
    return torch.bmm(module.attention_weights, values)


def d2l_examples(module: nn.Module, weights: Weights, batch: int, steps: int) -> Iterator[tuple[Any, ...]]:
    query, keys = random_pairs(weights, batch, 2, steps)
    values = torch.randn(batch, steps, 3)
    for lengths in (None, torch.randint(0, steps + 1, (batch,)), torch.randint(0, steps + 1, (batch, 2))):
        yield query, keys, values, lengths


# ---------------------------------------------------------------------------------------------------------- sources

_CALLS = {
    "documents.Attention": (call_document, document_examples),
    "bentrevett": (call_bentrevett, bentrevett_examples),
    "bentrevett_fc": (call_bentrevett, bentrevett_examples),
    "opennmt": (call_opennmt, opennmt_examples),
    "joeynmt": (call_joeynmt, joeynmt_examples),
    "allennlp": (call_allennlp, allennlp_examples),
    "d2l": (call_d2l, d2l_examples),
    "pytorch_tutorial": (call_tutorial, tutorial_examples),
    "gnmt": (call_context, gnmt_examples),
}
_VARIES = {"joeynmt": ("proj_keys", "proj_query"), "d2l": ("attention_weights",), "gnmt": ("mask",)}

for _source, _call in _CALLS.items():
    register(_source, partial(live_weights, LAYOUTS[_source]), *_call, varies=_VARIES.get(_source, ()))
