"""torch.compile(fullgraph=True) of forward and training: the numbers of eager, by the same compiled ops."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from hybridops import native
from tests import tolerances
from tests.modules.agreement import examples, pair, randn, results

pytestmark = pytest.mark.slow

kinds = pytest.mark.parametrize("kind", examples())
here = pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("kind", "backend"),
    [*((kind, None) for kind in examples()), ("ConvLSTMCell", "reference"), ("AdditiveAttention", "reference")],
)
def test_training(kind, backend):
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments)
    module.backend = backend
    want = results(module, inputs)
    module.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(module, inputs), want, **tolerances.FLOAT64)


@kinds
def test_inference(kind):
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), module(*inputs), **tolerances.FLOAT64)


def counting_backend(ops: dict[str, Counter]):
    """A torch.compile backend that runs the graphs as they are, and counts the compiled ops in them."""

    def compiler(phase: str):
        def compile_graph(graph, example_inputs):
            targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
            ops[phase].update(op.name() for op in targets if getattr(op, "namespace", None) == "hybridops")
            return make_boxed_func(graph.forward)

        return compile_graph

    return aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward"))


@here
@pytest.mark.parametrize(
    ("kind", "forward", "backward", "layers"),
    [
        ("ConvLSTMCell", "conv_lstm_forward", "recurrence_gradients", 1),
        ("ConvLSTM", "conv_lstm_forward", "recurrence_gradients", 2),
        ("ConcatAttention", "additive_scores_forward", "additive_scores_backward", 1),
        ("AdditiveAttention", "additive_attention_forward", "additive_scores_backward", 1),
    ],
)
def test_the_compiled_backward_is_the_compiled_op(kind, forward, backward, layers):
    """Not the reference formula, which is for second derivatives: a tracer may take gradients to be enabled there."""
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments)
    ops = {"forward": Counter(), "backward": Counter()}
    results(torch.compile(module, backend=counting_backend(ops), fullgraph=True), inputs)
    assert ops["forward"] == {f"hybridops::{forward}": layers}
    assert ops["backward"] == {f"hybridops::{backward}": layers}


def of_size(kind: str, batch: int, length: int) -> tuple[torch.Tensor, ...]:
    """`length` is the number of steps, of keys, or, of a cell, the height."""
    shapes = {
        "ConvLSTMCell": [(batch, 3, length, 6)],
        "ConvLSTM": [(batch, length, 3, 7, 6)],
        "ConcatAttention": [(batch, 16), (batch, length, 16)],
        "AdditiveAttention": [(batch, 4, 10), (batch, length, 12)],
        "AttentionDecoder": [(batch, 4, 3), (batch, length, 12)],
    }
    return tuple(randn(*shape) for shape in shapes[kind])


@here
@pytest.mark.parametrize("kind", examples())
def test_one_more_graph_for_all_other_sizes(kind):
    """The second sizes become symbols, and then whatever comes runs: the backward too, though it goes by chunks."""
    assert_no_recompiling(kind, warm_up=2, training=True, backend="aot_eager")


@here
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("kind", examples())
def test_inductor(kind, training):
    """Symbols from the start, since it compiles for seconds."""
    assert_no_recompiling(kind, warm_up=1, training=training, backend="inductor", dynamic=True)


def assert_no_recompiling(kind: str, warm_up: int, training: bool, **options: Any) -> None:
    """The numbers of eager for some sizes, without compiling anew after the first ones."""
    arguments, _ = examples()[kind]
    _, module = pair(kind, **arguments | ({"num_layers": 1} if kind == "ConvLSTM" else {}))
    twin = copy.deepcopy(module)
    twin.compile(fullgraph=True, **options)
    for i, sizes in enumerate([(2, 5), (3, 6), (4, 2), (2, 40), (7, 5)]):
        inputs = of_size(kind, *sizes)
        with torch._dynamo.config.patch(error_on_recompile=i >= warm_up), torch.set_grad_enabled(training):
            got, want = (results(m, inputs) if training else m(*inputs) for m in (twin, module))
        torch.testing.assert_close(got, want, **tolerances.FLOAT64)


@here
@pytest.mark.parametrize("kind", ["ConvLSTM", "AdditiveAttention"])
def test_float32(kind):
    """The graph calls the same ops: the same bits, and again once the precision of products is set otherwise."""
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments, dtype=torch.float32)
    inputs = torch.utils._pytree.tree_map(lambda t: t.float() if t.is_floating_point() else t, inputs)
    twin = copy.deepcopy(module)
    twin.compile(backend="aot_eager", fullgraph=True)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        torch.testing.assert_close(results(twin, inputs), results(module, inputs), **tolerances.EXACT)


def test_decoding():
    """A loop over steps that reuses prepared keys, in one graph."""
    _, module = pair("AdditiveAttention", 4, 6, 8)

    def decode(queries, key):
        prepared = module.prepare(key)
        return torch.stack([module(query, prepared)[0] for query in queries.unbind(1)], 1)

    compiled = torch.compile(decode, backend="aot_eager", fullgraph=True)
    inputs = (randn(2, 3, 4).requires_grad_(), randn(2, 5, 6).requires_grad_())
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            got, want = compiled(*inputs), decode(*inputs)
        torch.testing.assert_close(got, want, **tolerances.FLOAT64)
    grads = [torch.autograd.grad(out.square().sum(), (*inputs, *module.parameters())) for out in (got, want)]
    torch.testing.assert_close(*grads, **tolerances.FLOAT64)


def test_autocast():
    _, module = pair("ConvLSTM", 3, 4, 3, dtype=torch.float32)
    x = randn(2, 3, 3, 5, 6, dtype=torch.float32)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = compiled(x), module(x)
    torch.testing.assert_close(got, want, **tolerances.EXACT)
    assert (got[0].dtype, got[1][1].dtype) == (torch.bfloat16, torch.float32)
