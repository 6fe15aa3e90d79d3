"""How the additive attentions of other projects are called.

A form takes `Pairs`, gives of attention weights (B, S, T), and makes its arguments of query, keys and a mask (B, T).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.interop.adapters import Form, register, turned
from hybridops.interop.additive_attention import LAYOUTS, Weights, live_weights


class Pairs(NamedTuple):
    query: Tensor  # (B, S, Q)
    keys: Tensor  # (B, T, K), or (B, T, A) where they were projected beforehand
    masked: Tensor | None = None  # broadcastable to (B, S, T)
    fill: float = -torch.inf  # the score of what is masked: a row of which nothing is left may be uniform, or NaN
    scale: float = 1.0


def _call(form: Form, module: nn.Module, weights: Any, *arguments: Any) -> Any:
    pairs = form.take(module, *arguments) if isinstance(arguments[0], Tensor) else NotImplemented
    if pairs is NotImplemented or not isinstance(pairs.keys, Tensor) or not pairs.query.dim() == pairs.keys.dim() == 3:
        return NotImplemented
    got = len(pairs.query), pairs.query.shape[2], pairs.keys.shape[2]
    if got != (len(pairs.keys), *_widths(form, weights)):
        return NotImplemented
    query = F.linear(pairs.query, weights.query_weight, weights.query_bias)
    keys = pairs.keys if form.projected else F.linear(pairs.keys, weights.key_weight, weights.key_bias)
    scores = HF.additive_scores(query, keys, weights.v)
    scores = scores if weights.v_bias is None else scores + weights.v_bias.to(scores.dtype)
    scores = scores if pairs.masked is None else scores.masked_fill(pairs.masked, pairs.fill)
    return form.give(module, torch.softmax(scores if pairs.scale == 1 else pairs.scale * scores, -1), *arguments)


def _widths(form: Form, weights: Any) -> tuple[int, int]:
    """Of query and keys, as they come."""
    return weights.query_weight.shape[1], len(weights.v) if form.projected else weights.key_weight.shape[1]


def _examples(form: Form, module: nn.Module, weights: Weights, batch: int, steps: int) -> Iterable[tuple[Any, ...]]:
    """The mask (B, T) is True where keys may be attended: in the first entry nowhere."""
    query_width, key_width = _widths(form, weights)
    mask = (torch.rand(batch, steps) > 0.4) & (torch.arange(batch) > 0)[:, None]
    count = len(inspect.signature(type(module).forward).parameters) - 1  # some were written without a mask
    query, keys = torch.randn(batch, 2, query_width), torch.randn(batch, steps, key_width)
    for arguments in form.make(module, query.to(weights.v), keys.to(weights.v), mask.to(weights.v.device)):
        yield arguments[:count]


def _beyond(lengths: Tensor | None, keys: Tensor) -> Tensor | None:
    """(B, 1, T), or (B, S, T) of lengths (B, S)"""
    if lengths is None:
        return None
    lengths = lengths[:, None, None] if lengths.dim() == 1 else lengths[:, :, None]
    return torch.arange(keys.shape[1], device=keys.device) >= lengths


def _keep(module: nn.Module, value: Any, **kept: Any) -> Any:
    """The value, and what the module's forward would leave behind."""
    for name, tensor in kept.items():
        setattr(module, name, tensor)
    return value


def _behind(module: Any, attention: Tensor, source: Tensor, memory: Tensor, *_: Any) -> Any:
    """OpenNMT's last layer, over context and query."""
    query = source if source.dim() == 3 else source[:, None]
    hidden = module.linear_out(torch.cat([torch.bmm(attention, memory), query], 2))
    return (hidden, attention) if source.dim() == 3 else (hidden[:, 0], attention[:, 0])


CONCAT = Form(
    lambda _, query, keys: Pairs(query[:, None], keys),
    lambda _, attention, *__: attention[:, 0],
    lambda _, query, keys, mask: [(query[:, 0], keys)],
)
BENTREVETT = Form(  # keys time first
    lambda _, query, keys, mask=None: Pairs(
        query[:, None], keys.transpose(0, 1), None if mask is None else (mask == 0)[:, None], -1e10
    ),
    CONCAT.give,
    lambda _, query, keys, mask: [(query[:, 0], keys.transpose(0, 1), m) for m in (None, mask, mask.long())],
)

FORMS = {
    "textbook.Attention": CONCAT,
    "bentrevett": BENTREVETT,
    "bentrevett_fc": BENTREVETT,
    "allennlp": Form(
        lambda module, query, keys, mask=None: (
            Pairs(query[:, None], keys) if mask is None and getattr(module, "_normalize", True) else NotImplemented
        ),
        CONCAT.give,
        lambda _, query, keys, mask: [(query[:, 0], keys, None)],
    ),
    "pytorch_tutorial": Form(
        lambda _, query, keys: Pairs(query, keys) if query.shape[1] == 1 else NotImplemented,
        lambda _, attention, query, keys: (torch.bmm(attention, keys), attention),
        lambda _, query, keys, mask: [(query[:, :1], keys)],
    ),
    "gnmt": Form(  # the mask is set beforehand
        lambda module, query, keys: Pairs(
            turned(module, query),
            turned(module, keys),
            None if module.mask is None else module.mask[:, None],
            -65504.0,
        ),
        lambda module, attention, _, keys: (
            turned(module, torch.bmm(attention, turned(module, keys))).contiguous(),
            attention,
        ),
        lambda module, query, keys, mask: (
            _keep(module, (turned(module, query), turned(module, keys)), mask=m) for m in (None, ~mask)
        ),
        varies=("mask",),
    ),
    "opennmt": Form(
        lambda module, query, keys, lengths, coverage: (
            Pairs(query if query.dim() == 3 else query[:, None], keys, _beyond(lengths, keys))
            if coverage is None and getattr(module, "attn_func", "softmax") == "softmax"
            else NotImplemented
        ),
        _behind,
        lambda _, query, keys, mask: [
            (query, keys, None, None),
            (query[:, 0], keys, torch.randint(1, keys.shape[1] + 1, (len(keys),)), None),
        ],
    ),
    "joeynmt": Form(  # keys are projected beforehand, and the projected query is kept
        lambda module, query, mask, values: Pairs(query, module.proj_keys, ~(mask > 0)),
        lambda module, attention, query, mask, values: _keep(
            module, (attention @ values, attention), proj_query=module.query_layer(query)
        ),
        lambda module, query, keys, mask: _keep(
            module, [(query[:, :1], mask[:, None], torch.randn(*keys.shape[:2], 3))], proj_keys=keys
        ),
        projected=True,
        varies=("proj_keys", "proj_query"),
    ),
    "d2l": Form(  # the weights are kept
        lambda module, query, keys, values, lengths: (
            NotImplemented if module.training and module.dropout.p else Pairs(query, keys, _beyond(lengths, keys), -1e6)
        ),
        lambda module, attention, query, keys, values, lengths: _keep(
            module, torch.bmm(attention, values), attention_weights=attention
        ),
        lambda _, query, keys, mask: [
            (query, keys, torch.randn(*keys.shape[:2], 3), lengths)
            for lengths in (None, mask.sum(1), torch.randint(0, keys.shape[1] + 1, query.shape[:2]))
        ],
        varies=("attention_weights",),
    ),
    "speechbrain": Form(  # its own forward projects the keys, at the first call after a reset
        lambda module, states, lengths, query: (
            NotImplemented
            if module.precomputed_enc_h is None
            else Pairs(
                query[:, None], module.precomputed_enc_h, (module.mask == 0)[:, None], scale=float(module.scaling)
            )
        ),
        lambda module, attention, states, *_: (module.mlp_out(torch.bmm(attention, states)[:, 0]), attention[:, 0]),
        lambda module, query, keys, mask: _keep(
            module,
            [(torch.randn(*keys.shape[:2], module.mlp_enc.in_features), mask.sum(1), query[:, 0])],
            precomputed_enc_h=keys,
            mask=mask,
        ),
        projected=True,
        varies=("enc_len", "precomputed_enc_h", "mask"),
    ),
    "espnet": Form(  # so does this one's
        lambda module, states, lengths, query, previous, scaling: (
            NotImplemented
            if module.pre_compute_enc_h is None or module.mask is None or query is None or module.han_mode
            else Pairs(
                query.reshape(len(states), 1, -1), module.pre_compute_enc_h, module.mask[:, None], scale=float(scaling)
            )
        ),
        lambda module, attention, *_: (torch.bmm(attention, module.enc_h)[:, 0], attention[:, 0]),
        lambda module, query, keys, mask: _keep(
            module,
            [(torch.randn(*keys.shape[:2], module.mlp_enc.in_features), None, query[:, 0], None, 2.0)],
            pre_compute_enc_h=keys,
            enc_h=torch.randn(*keys.shape[:2], 3).to(keys),
            mask=~mask,
        ),
        projected=True,
        varies=("pre_compute_enc_h", "enc_h", "mask", "h_length"),
    ),
}

for _name, _form in FORMS.items():
    register(_name, _form, partial(live_weights, LAYOUTS[_name]), _call, _examples)
