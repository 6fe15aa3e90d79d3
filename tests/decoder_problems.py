"""The attention decoder beside problems.py: inputs, and the loop over PyTorch's own cells that it is held against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hybridops.functional as HF
from hybridops.formulas.attention_decoder import GATES
from tests import tolerances
from tests.problems import SLOPE, Tensors, assert_captured, assert_parity, cast, plain_attention, with_gradients

CELLS, QUERIES = ("lstm", "gru"), ("previous", "current")
MASK = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
LENGTHS = torch.tensor([4, 0, 2])

# What a decoder may be told beside its cell and its query: by name, of `decoder_inputs` and of the function itself.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "no biases": ({"bias": False}, {}),
    "zero states": ({"states": False}, {}),
    "gate": ({"gate": True}, {}),
    "relu": ({}, {"activation": "relu"}),
    "leaky_relu": ({}, {"activation": "leaky_relu"}),
    "score_bias, scale": ({"score_bias": True}, {"scale": -0.7}),
    "mask": ({}, {"mask": MASK}),
    "lengths": ({}, {"lengths": LENGTHS}),
    "everything": (
        {"gate": True, "score_bias": True},
        {"mask": MASK, "lengths": LENGTHS, "scale": 0.5, "activation": "leaky_relu"},
    ),
}


def decoder_inputs(
    *,
    batch=3, steps=4, keys=5, inputs=3, hidden=6, width=7, values=4, cell="lstm", query="previous",
    bias=True, gate=False, score_bias=False, states=True,
) -> Tensors:  # fmt: skip
    """By the names of `functional.attention_decoder`, hx as h0 and c0; scaled so that sums are of order one."""
    generator = torch.Generator().manual_seed(0)
    rows = GATES[cell] * hidden

    def randn(*shape: int, fan_in: int = 1) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) / max(fan_in, 1) ** 0.5

    return {
        "x": randn(batch, steps, inputs), "key": randn(batch, keys, width), "value": randn(batch, keys, values),
        "v": 3 * randn(width, fan_in=width),
        "h0": randn(batch, hidden) if states else None,
        "c0": randn(batch, hidden) if states and cell == "lstm" else None,
        "context0": randn(batch, values) if states and query == "current" else None,
        "weight_q": 2 * randn(width, hidden, fan_in=hidden), "bias_q": randn(width) if bias else None,
        "weight_ih": randn(rows, inputs + values, fan_in=inputs + values),
        "weight_hh": 2 * randn(rows, hidden, fan_in=hidden),
        "bias_ih": randn(rows) if bias else None, "bias_hh": randn(rows) if bias else None,
        "weight_gate": randn(values, hidden, fan_in=hidden) if gate else None,
        "bias_gate": randn(values) if gate and bias else None,
        "score_bias": randn(batch, steps, keys) if score_bias else None,
    }  # fmt: skip


def problem(cell: str, query: str, variant: str, **sizes: int) -> tuple[Tensors, dict[str, Any]]:
    """Inputs, and what else the decoder is told."""
    made, told = VARIANTS[variant]
    return decoder_inputs(cell=cell, query=query, **made, **sizes), {"cell": cell, "query": query, **told}


def plain_decoder(
    x, key, value, v, h0, c0, context0, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh, weight_gate,
    bias_gate, score_bias, *, cell="lstm", query="previous", mask=None, lengths=None, keep=None, scale=1.0,
    activation="tanh", location=None,
) -> Tensors:  # fmt: skip
    """Step by step, as it stands in text books, on PyTorch's own cells."""
    before = total = key.new_zeros(key.shape[:2])
    batch, steps, hidden = *x.shape[:2], weight_hh.shape[1]
    h = x.new_zeros(batch, hidden) if h0 is None else h0
    c = x.new_zeros(batch, hidden) if c0 is None else c0
    context = value.new_zeros(batch, value.shape[2]) if context0 is None else context0
    lengths = torch.full((batch,), steps) if lengths is None else lengths

    def attend(h: Tensor, s: int) -> tuple[Tensor, Tensor]:
        bias = None if score_bias is None else score_bias[:, s : s + 1]
        q = torch.nn.functional.linear(h, weight_q, bias_q)[:, None]
        moved = key if location is None else key + shifted_sums(before, total, location)
        weights = plain_attention(q, moved, value, v, bias, mask, scale, activation)["weights"]
        weights = weights if keep is None else weights * keep[:, s : s + 1]
        context = (weights @ value)[:, 0]
        if weight_gate is not None:
            context = context * torch.nn.functional.linear(h, weight_gate, bias_gate).sigmoid()
        return context, weights[:, 0]

    results = []
    for s in range(steps):
        alive = (s < lengths)[:, None].to(h.device)
        fed, weights = attend(h, s) if query == "previous" else (context, None)
        inputs = torch.cat([x[:, s], fed], 1)
        if cell == "lstm":
            new_h, new_c = torch.lstm_cell(inputs, (h, c), weight_ih, weight_hh, bias_ih, bias_hh)
        else:
            new_h, new_c = torch.gru_cell(inputs, h, weight_ih, weight_hh, bias_ih, bias_hh), c
        new_context = fed
        if query == "current":
            new_context, weights = attend(new_h, s)
        before, total = weights, total + weights
        results.append([torch.where(alive, t, torch.zeros_like(t)) for t in (new_h, new_context, weights)])
        h, c, context = (torch.where(alive, *pair) for pair in ((new_h, h), (new_c, c), (new_context, context)))
    output, contexts, weights = (torch.stack(t, 1) for t in zip(*results, strict=True))
    states = {"h_n": h, "c_n": c} if cell == "lstm" else {"h_n": h}
    return {"output": output, **states, "context": contexts, "weights": weights}


def shifted_sums(before: Tensor, total: Tensor, location: Tensor) -> Tensor:
    """(B,T,A): the convolution of the weights of the last step and of all, or of all, as a sum over shifts."""
    history = torch.stack([before, total], 1) if location.shape[1] == 2 else total[:, None]
    reach, keys = location.shape[2] // 2, total.shape[1]
    padded = torch.nn.functional.pad(history, (reach, reach))
    shifted = torch.stack([padded[..., shift : shift + keys] for shift in range(location.shape[2])], -1)
    return torch.einsum("bctk,ack->bta", shifted, location)


def with_location(inputs: Tensors, channels: int = 2, kernel: int = 3) -> Tensors:
    generator = torch.Generator().manual_seed(2)
    shape = (inputs["v"].shape[0], channels, kernel)
    return inputs | {"location": torch.randn(shape, generator=generator, dtype=torch.float64)}


def fused_decoder(
    x, key, value, v, h0, c0, context0, weight_q, bias_q, weight_ih, weight_hh, bias_ih, bias_hh, weight_gate,
    bias_gate, score_bias, **options,
) -> Tensors:  # fmt: skip
    lstm = options.get("cell", "lstm") == "lstm"
    output, state, context, weights = HF.attention_decoder(
        x, key, value, v, (h0, c0) if lstm and h0 is not None else h0, weight_q, weight_ih, weight_hh, bias_ih, bias_hh,
        bias_q=bias_q, weight_gate=weight_gate, bias_gate=bias_gate, context0=context0, score_bias=score_bias,
        negative_slope=SLOPE, return_weights=True, **options,
    )  # fmt: skip
    states = {"h_n": state[0], "c_n": state[1]} if lstm else {"h_n": state}
    return {"output": output, **states, "context": context, "weights": weights}


def assert_decoder_parity(plain, fused, inputs: Tensors, dtype: torch.dtype, device: str, **options: Any) -> None:
    """As `problems.assert_parity`, but of all results together: by the largest error relative to the largest value of a
    result. What one step rounds all later ones and their gradients have, so that it is by luck if one of them, computed
    plainly, is right.
    """
    if dtype == torch.float64:
        assert_parity(plain, fused, inputs, dtype, device, **options)
        return
    inputs = cast(inputs, dtype, device)
    exact = with_gradients(plain, cast(inputs, torch.float64, device))
    got, baseline = with_gradients(fused, inputs, **options), with_gradients(plain, inputs)
    assert {name: t.shape for name, t in got.items()} == {name: t.shape for name, t in exact.items()}
    assert not any(got[name].any() for name, want in exact.items() if not want.any())
    ulps, least = tolerances.FLOOR_ULPS[dtype]

    def error(results: Tensors) -> float:
        return max(
            tolerances.largest(results[name].double() - want) / max(tolerances.largest(want), least)
            for name, want in exact.items()
            if want.any()
        )

    floor = ulps * torch.finfo(dtype).eps * inputs["x"].shape[1]  # each step rounds anew
    assert error(got) <= tolerances.TIMES_PLAIN * error(baseline) + floor


def assert_decoder_captured(cell: str, query: str, backend: str) -> None:
    """Its launches, on a GPU, make a CUDA graph."""
    inputs = cast(decoder_inputs(cell=cell, query=query, gate=True), torch.float32, "cuda")
    options = {"cell": cell, "query": query, "mask": MASK.cuda(), "lengths": LENGTHS.cuda()}
    assert_captured(fused_decoder, inputs, backend=backend, **options)
