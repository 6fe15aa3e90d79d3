"""The derivatives of the ops themselves: what was captured without the library's Functions loses no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from hybridops import native
from hybridops.autograd import conv_lstm
from tests import tolerances
from tests.modules.agreement import examples, pair, results
from tests.native.test_sizes import GRU, OPS, arguments, run, schema
from tests.problems import cast, conv_lstm_inputs

pytestmark = pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))
FUNCTIONS = [
    "additive_scores_forward", "additive_attention_forward", "conv_lstm_forward", "attention_decoder_forward",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", examples())
@pytest.mark.parametrize("training", [False, True])
def test_exported(kind, training):
    """Exported in training or not, a program has the gradients of the plain module: of all outputs, for all inputs."""
    options, inputs = examples()[kind]
    plain, fused = pair(kind, **options)
    with torch.set_grad_enabled(training):
        program = torch.export.export(fused, inputs)
    called = {str(node.target).split(".")[1] for node in program.graph.nodes if "hybridops" in str(node.target)}
    assert called
    assert called <= {*FUNCTIONS, "additive_prepare_keys"}  # the latter of keys that are cut off from their gradient
    torch.testing.assert_close(results(program.module(), inputs), results(plain, inputs), **tolerances.FLOAT64)


def in_float64(op: str, **options) -> tuple[dict, dict[str, Tensor]]:
    """The arguments, and those of them that have a gradient, as leaves."""
    given = arguments(op, torch.float64) | options
    # else keys and weights would have no part in the results
    given |= {name: None for name in given if name in ("key_exponentials", "key_bounds", "packed")}
    leaves = {n: t.requires_grad_() for n, t in given.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return given, leaves


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("activation", [0, 2])
def test_attention(activation, need_weights):
    given, leaves = in_float64("additive_attention_forward", activation=activation, need_weights=need_weights)
    assert_derivatives("additive_attention_forward", given, leaves)


@pytest.mark.parametrize("activation", [0, 2])
def test_scores(activation):
    assert_derivatives("additive_scores_forward", *in_float64("additive_scores_forward", activation=activation))


@pytest.mark.slow
@pytest.mark.parametrize("save", [0, 1, 2])
@pytest.mark.parametrize("peephole", ["none", "channel", "spatial"])
def test_conv_lstm(save, peephole):
    """Of the saved cells and gates too."""
    given, leaves = in_float64("conv_lstm_forward", save=save)
    if peephole != "spatial":
        spatial = leaves.pop("peephole")
        given["peephole"] = None
    if peephole == "channel":
        given["peephole"] = leaves["peephole"] = spatial[:, 0, 0].detach().clone().requires_grad_()
    assert_derivatives("conv_lstm_forward", given, leaves)


@pytest.mark.slow
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("query", [0, 1])
@pytest.mark.parametrize("kind", ["", GRU])
def test_attention_decoder(kind, query, save):
    """Of what is saved too."""
    op = "attention_decoder_forward" + kind
    given, leaves = in_float64(op, query=query, save=save)
    if query == 0:
        given["context0"] = leaves.pop("context0").detach()
    assert_derivatives(op, given, leaves)


def assert_derivatives(op: str, given: dict, leaves: dict[str, Tensor]) -> None:
    """First and second, by differences."""

    def function(*values: Tensor) -> list[Tensor]:
        outputs = run(op, given | dict(zip(leaves, values, strict=True)))
        return [out for out in outputs if out.numel()]

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()), fast_mode=True, atol=1e-4)


def test_one_made_from_another():
    """A gradient that goes by way of another argument counts once, in second derivatives too."""
    given, leaves = in_float64("additive_scores_forward")
    x = leaves["q"]

    def gradient(create_graph: bool) -> Tensor:
        scores = run("additive_scores_forward", given | {"k": leaves["k"] + x.sin().sum()})
        return torch.autograd.grad(scores[0].square().sum(), x, create_graph=create_graph)[0]

    torch.testing.assert_close(gradient(True).detach(), gradient(False), **tolerances.FLOAT64)


@pytest.mark.parametrize(
    "op", [op for op in OPS if op not in (*FUNCTIONS, "attention_decoder_pack", "linear_pack")]
)  # which gives bytes
def test_no_derivative(op):
    """Asked for, it is refused; an op that writes into its arguments cannot wait until then."""
    given = arguments(op)
    written = {a.name for a in schema(op).arguments if a.alias_info is not None and a.alias_info.is_write}
    name = next(n for n, t in given.items() if isinstance(t, Tensor) and t.is_floating_point() and n not in written)
    with torch.no_grad():
        want = run(op, arguments(op) | {name: given[name].clone().requires_grad_()})
    given[name].requires_grad_()
    refused = pytest.raises(RuntimeError, match=f"hybridops::{op} has no derivative")
    if written:
        with refused:
            run(op, given)
        return
    outputs = run(op, given)
    torch.testing.assert_close([out.detach() for out in outputs], want, **tolerances.EXACT)
    with refused:
        sum(out.sum() for out in outputs).backward()


@pytest.mark.parametrize("op", OPS)
def test_forward_mode(op):
    given = arguments(op)
    name = next(n for n, t in given.items() if isinstance(t, Tensor) and t.is_floating_point())
    with forward_ad.dual_level():
        given[name] = forward_ad.make_dual(given[name], torch.ones_like(given[name]))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            run(op, given)


def test_the_op_of_compiled_graphs_has_none():
    """Its tensors come in a list, which a Function does not look into: it raises at once."""
    inputs = cast(conv_lstm_inputs(), torch.float32)
    backend = native.__name__ + ".conv_lstm"
    hs, cs, gates = torch.zeros(3, 2, 4, 5, 4), torch.zeros(3, 2, 4, 5, 4), torch.zeros(3, 2, 4, 5, 16)
    op = torch.ops.hybridops.recurrence_gradients.default
    states, grads = [hs, cs, gates], [torch.ones(2, 3, 4, 4, 5), None, None]
    arguments = (conv_lstm.__name__, backend, list(inputs.values()), [True] + [False] * 6, states, grads)
    assert len(op(*arguments)) == 1
    inputs["x"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"^hybridops::recurrence_gradients has no derivative"):
        op(*arguments)
    with torch.no_grad():
        assert len(op(*arguments)) == 1
