"""What the tests share: inputs, the plain PyTorch they are held against, and the comparison.

Inputs are float64 dictionaries, keyed by the names of the functions' arguments; a missing argument is None. Results are
dictionaries too: the outputs by name, and for every differentiable input its gradient, as "d <name>".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

import hybridops.functional as HF
from hybridops.reference import ConvLSTMCell
from tests import tolerances

Tensors = dict[str, Tensor | None]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = ["tanh", "relu", "leaky_relu"]
SLOPE = 0.3  # of leaky_relu: far from 0, 1 and the default


# ------------------------------------------------------------------------------------------------------- ConvLSTM


def conv_lstm_inputs(
    *, batch=2, steps=3, channels=3, hidden=4, space=(4, 5), kernel=(3, 3), bias=True, peephole=None, states=True
) -> Tensors:
    """Weights are scaled so that pre-activations are of order one, whatever the sizes."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    fan_in = (channels + hidden) * torch.Size(kernel).numel()
    state = (batch, hidden, *space)
    return {
        "x": randn(batch, steps, channels, *space),
        "h0": randn(*state) if states else None,
        "c0": randn(*state) if states else None,
        "weight_ih": randn(4 * hidden, channels, *kernel, scale=fan_in**-0.5),
        "weight_hh": randn(4 * hidden, hidden, *kernel, scale=fan_in**-0.5),
        "bias": randn(4 * hidden) if bias else None,
        "peephole": randn(3, hidden, *(space if peephole == "spatial" else ())) if peephole else None,
    }


def plain_conv_lstm(x, h0, c0, weight_ih, weight_hh, bias, peephole) -> Tensors:
    """The plain cell, step by step: any dtype, differentiable."""
    hidden, channels, *kernel = weight_hh.shape[1], *weight_ih.shape[1:]
    kind = None if peephole is None else "channel" if peephole.dim() == 2 else "spatial"
    cell = ConvLSTMCell(
        channels, hidden, tuple(kernel), bias=bias is not None, peephole=kind, spatial_size=x.shape[3:], device="meta"
    )
    parameters = {"conv.weight": torch.cat([weight_ih, weight_hh], 1), "conv.bias": bias, "peephole": peephole}
    parameters = {name: tensor for name, tensor in parameters.items() if tensor is not None}
    h, c = (x.new_zeros(x.shape[0], hidden, *x.shape[3:]) if s is None else s.to(x.dtype) for s in (h0, c0))
    output = [h[:, None][:, :0]]
    for x_t in x.unbind(1):
        h, c = functional_call(cell, parameters, (x_t, (h, c)))
        output.append(h[:, None])
    return {"output": torch.cat(output, 1), "h_n": h, "c_n": c}


def fused_conv_lstm(x, h0, c0, weight_ih, weight_hh, bias, peephole, **options) -> Tensors:
    hx = None if h0 is None else (h0, c0)
    output, (h_n, c_n) = HF.conv_lstm(x, hx, weight_ih, weight_hh, bias, peephole=peephole, **options)
    return {"output": output, "h_n": h_n, "c_n": c_n}


# ---------------------------------------------------------------------------------------------- additive attention


def attention_inputs(*, batch=2, queries=3, keys=5, width=7, values=4, score_bias=False) -> Tensors:
    """v is scaled so that scores are of order one."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (batch, queries, width), "key": (batch, keys, width), "value": (batch, keys, values)}
    shapes |= {"v": (width,)} | ({"score_bias": (batch, queries, keys)} if score_bias else {})
    inputs = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {"score_bias": None, **inputs, "v": inputs["v"] / max(width, 1) ** 0.5}


def plain_scores(query, key, v, activation="tanh", slope=SLOPE) -> Tensor:
    act = {"tanh": torch.tanh, "relu": F.relu, "leaky_relu": partial(F.leaky_relu, negative_slope=slope)}[activation]
    return F.linear(act(query[:, :, None] + key[:, None]), v[None]).squeeze(-1)


def plain_attention(query, key, value, v, score_bias=None, mask=None, scale=1.0, activation="tanh") -> Tensors:
    """As it stands in text books; a row that may attend nothing is left out by hand."""
    scores = scale * plain_scores(query, key, v, activation)
    scores = scores if score_bias is None else scores + score_bias
    mask = torch.ones((), dtype=torch.bool, device=scores.device) if mask is None else mask
    mask = (mask[:, None] if mask.dim() == 2 else mask).expand(scores.shape)
    empty = ~mask.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~mask & ~empty, -torch.inf), -1).masked_fill(empty, 0.0)
    return {"context": weights @ value, "weights": weights}


def fused_attention(query, key, value, v, score_bias=None, **options) -> Tensors:
    context, weights = HF.additive_attention(
        query, key, value, v, score_bias=score_bias, negative_slope=SLOPE, return_weights=True, **options
    )
    return {"context": context, "weights": weights}


# ------------------------------------------------------------------------------------------------------ comparison


def cast(tensors: Tensors, dtype: torch.dtype, device: str = "cpu") -> Tensors:
    return {name: None if t is None else t.to(device, dtype) for name, t in tensors.items()}


def far_apart(values: Tensor, dim: int) -> Tensor:
    """The same values, from one to the next along `dim` 2^30 elements and some: the third is beyond 32 bits.

    Memory that is not written to takes no room.
    """
    strides = list(values.contiguous().stride())
    strides[dim] = 2**30 + 64
    last = sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    memory = torch.UntypedStorage((last + 1) * values.element_size())
    return values.new_empty(0).set_(memory, 0, values.shape, strides).copy_(values)


def with_gradients(function: Callable[..., Tensors], inputs: Tensors, **options) -> Tensors:
    """The function's outputs, and the inputs' gradients under random gradients of all outputs."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in inputs.items()}
    outputs = function(**leaves, **options)
    generator = torch.Generator().manual_seed(1)
    given = {  # with bfloat16's few digits, so that in every dtype they are the same
        name: torch.randn(out.shape, generator=generator).bfloat16().to(out) for name, out in outputs.items()
    }
    names = [name for name, leaf in leaves.items() if leaf is not None]
    reached = [name for name, out in outputs.items() if out.requires_grad]
    grads = torch.autograd.grad(
        [outputs[name] for name in reached], [leaves[name] for name in names], [given[name] for name in reached],
        materialize_grads=True, allow_unused=True,
    )  # fmt: skip
    return {name: out.detach() for name, out in outputs.items()} | {
        f"d {name}": grad for name, grad in zip(names, grads, strict=True)
    }


def assert_parity(plain, fused, inputs: Tensors, dtype=torch.float64, device="cpu", **options) -> None:
    """`fused` against `plain` in float64 on the same inputs, values and gradients; see tolerances.py.

    `options` go to `fused`; `plain` is to be given its own beforehand.
    """
    inputs = cast(inputs, dtype, device)
    exact = with_gradients(plain, cast(inputs, torch.float64, device))
    got = with_gradients(fused, inputs, **options)
    if dtype == torch.float64:
        torch.testing.assert_close(got, exact, **tolerances.FLOAT64)
        return
    baseline = with_gradients(plain, inputs)
    for name, want in exact.items():
        assert got[name].shape == want.shape
        error = tolerances.largest(got[name].double() - want)
        scale = options.get("scale", 1.0)
        assert error <= tolerances.allowed_error(baseline[name], want, dtype, scale), name


def assert_captured(function, inputs: Tensors, **options) -> None:
    """A CUDA graph of `function` and its gradients gives what they give themselves."""

    def run() -> tuple[list[Tensor], tuple[Tensor, ...]]:
        # leaves of its own: autograd would wait for the stream on which a leaf was first used, which a graph must not
        leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in inputs.items()}
        outputs = tree_leaves(function(**leaves, **options))
        wanted = [leaf for leaf in leaves.values() if leaf is not None]
        grads = torch.autograd.grad(outputs, wanted, [torch.ones_like(out) for out in outputs])
        return [out.detach() for out in outputs], grads

    want = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    graph.replay()
    torch.testing.assert_close(got, want, **tolerances.EXACT)
