"""The ConvLSTM's autograd Function: chunks, what is saved, which gradients are asked for, second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import hybridops.functional as HF
from hybridops import backends
from hybridops.autograd import recurrence
from hybridops.autograd.conv_lstm import inside, outside
from hybridops.checks import accumulation_dtype
from hybridops.contract import Save
from tests import tolerances
from tests.native.test_ops import SCHEMA_AND_FAKE
from tests.problems import (
    DTYPES,
    assert_parity,
    cast,
    conv_lstm_inputs,
    fused_conv_lstm,
    plain_conv_lstm,
    with_gradients,
)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    """Chunks of four images of 3×2 pixels with 4×4 gates, which the sizes of `test_chunks` are chosen around."""
    monkeypatch.setattr(recurrence, "VALUES_PER_CHUNK", 24 * 16)
    monkeypatch.setattr(recurrence, "VALUES_PER_CHUNK_ON_CPU", 24 * 16)
    monkeypatch.setattr(recurrence, "PIXELS_PER_CHUNK_ON_CPU", 1)


SAVES = ["gates", "recompute"]
saves = pytest.mark.parametrize("save", SAVES)


@saves
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize(
    ("batch", "steps"),
    [(1, 3), (1, 4), (1, 5), (1, 9), (2, 1), (2, 4), (2, 5), (3, 3), (3, 8), (4, 2), (5, 3), (17, 3)],
)
def test_chunks(target, batch, steps, states, save):
    """One chunk, several, with and without a rest, of one step and of many."""
    inputs = conv_lstm_inputs(batch=batch, steps=steps, space=(3, 2), peephole="spatial", states=states)
    options = {"backend": target.backend, "save": save}
    assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, device=target.device, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [{}, {"space": (7,), "kernel": (3,)}, {"peephole": "channel"}], ids=str)
def test_recompute(target, dtype, sizes):
    inputs = conv_lstm_inputs(batch=3, steps=8, channels=5, hidden=7, **sizes)
    options = {"backend": target.backend, "save": "recompute"}
    assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, dtype, target.device, **options)


def test_recompute_gives_the_same_bits():
    """Where the gates come from the same code that they came from before."""
    inputs = cast(conv_lstm_inputs(batch=2, steps=5, channels=9, hidden=17, space=(9, 10)), torch.float32)
    kept, recomputed = (with_gradients(fused_conv_lstm, inputs, save=save, backend="native") for save in SAVES)
    torch.testing.assert_close(recomputed, kept, **tolerances.EXACT)


def test_recompute_keeps_less(target):
    """The gates are two thirds of what is kept."""
    inputs = cast(conv_lstm_inputs(hidden=16), torch.float32, target.device)
    inputs["x"].requires_grad_()
    kept = {}
    for save in SAVES:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            fused_conv_lstm(**inputs, save=save, backend=target.backend)
        kept[save] = sum(sizes)
    batch_steps_pixels = 2 * 3 * 4 * 5
    assert kept["gates"] - kept["recompute"] == 4 * 16 * batch_steps_pixels


@saves
@pytest.mark.parametrize("needed", ["x", "h0", "c0", "weight_ih", "weight_hh", "bias", "peephole"])
@pytest.mark.parametrize("steps", [1, 9])
def test_one_gradient_alone(target, needed, save, steps):
    """As when layers are frozen: no gradient depends on another's being asked for."""
    inputs = cast(conv_lstm_inputs(batch=3, steps=steps, peephole="channel"), torch.float64, target.device)
    options = {"save": save, "backend": target.backend}
    want = with_gradients(fused_conv_lstm, inputs, **options)[f"d {needed}"]
    given = torch.Generator().manual_seed(1)
    inputs[needed].requires_grad_()
    outputs = list(fused_conv_lstm(**inputs, **options).values())
    grads = [torch.randn(out.shape, generator=given).bfloat16().to(out) for out in outputs]
    (got,) = torch.autograd.grad(outputs, inputs[needed], grads)
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)
    assert all(tensor.grad_fn is None and tensor.grad is None for tensor in inputs.values())


@saves
@pytest.mark.parametrize(
    "used",
    [["output"], ["h_n"], ["c_n"], ["h_n", "c_n"], ["output", "c_n"], ["first"], ["last"], ["middle"]],
    ids="-".join,
)
def test_some_outputs_alone(target, used, save):
    """A loss on the last state, on the last frame: the other gradients are absent, not zeros."""

    def some(form, **options):
        def run(**leaves):
            outputs = form(**leaves, **options)
            output = outputs["output"]
            outputs |= {"first": output[:, 0], "last": output[:, -1], "middle": output[:, 3:5]}
            return {name: outputs[name] for name in used}

        return run

    fused = some(fused_conv_lstm, save=save, backend=target.backend)
    inputs = conv_lstm_inputs(batch=3, steps=8, peephole="channel")
    assert_parity(some(plain_conv_lstm), fused, inputs, device=target.device)


def test_backward_twice_gives_the_same(target):
    inputs = cast(conv_lstm_inputs(), torch.float32, target.device)
    leaves = [t.requires_grad_() for t in inputs.values() if t is not None]
    loss = fused_conv_lstm(**inputs, backend=target.backend)["output"].square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), first, **tolerances.EXACT)


def test_no_graph_where_none_is_wanted(target):
    inputs = cast(conv_lstm_inputs(), torch.float32, target.device)
    assert all(out.grad_fn is None for out in fused_conv_lstm(**inputs, backend=target.backend).values())
    inputs["x"].requires_grad_()
    with torch.no_grad():
        outputs = fused_conv_lstm(**inputs, backend=target.backend)
    assert all(out.grad_fn is None for out in outputs.values())


def test_a_changed_input_is_noticed(target):
    inputs = cast(conv_lstm_inputs(), torch.float32, target.device)
    weight = inputs["weight_hh"].clone().requires_grad_()
    output = fused_conv_lstm(**inputs | {"weight_hh": weight * 1}, backend=target.backend)["output"]
    inputs["x"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_changing_the_output_in_place_is_refused(target):
    """The backward needs it as it was: autograd's own error there, as with `nn.LSTM`, never a wrong gradient."""
    inputs = cast(conv_lstm_inputs(), torch.float32, target.device)
    inputs["weight_hh"].requires_grad_()
    output = fused_conv_lstm(**inputs, backend=target.backend)["output"]
    changed = output.mul_(2).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed.backward()


@pytest.mark.parametrize("name", ["h_n", "c_n"])
def test_changing_a_state_in_place(target, name):
    """As people do that start some sequences of a batch anew."""
    inputs = cast(conv_lstm_inputs(), torch.float64, target.device)
    keep = torch.tensor([1.0, 0.0], dtype=torch.float64, device=target.device)[:, None, None, None]
    grads = []
    for change in (lambda t: t.mul_(keep), lambda t: t * keep):
        weight = inputs["weight_hh"].clone().requires_grad_()
        state = fused_conv_lstm(**inputs | {"weight_hh": weight}, backend=target.backend)[name]
        grads += torch.autograd.grad(change(state).square().sum(), weight)
    torch.testing.assert_close(*grads, **tolerances.FLOAT64)


def test_changing_a_cells_state_in_place(target):
    """Both states of a step, between the steps of a loop, and the output by an activation that works in place."""
    inputs = cast(conv_lstm_inputs(), torch.float64, target.device)
    grads = []
    for in_place in (True, False):
        weight = inputs["weight_hh"].clone().requires_grad_()
        h, c, loss = inputs["h0"], inputs["c0"], 0.0
        for x in inputs["x"].unbind(1):
            h, c = HF.conv_lstm_cell(x, (h, c), inputs["weight_ih"], weight, inputs["bias"], backend=target.backend)
            h, c = (h.mul_(0.5), c.mul_(0.25)) if in_place else (h * 0.5, c * 0.25)
            loss = loss + torch.nn.functional.relu(h, inplace=False).sum() + c.sum()
        grads += torch.autograd.grad(loss, weight)
    torch.testing.assert_close(*grads, **tolerances.FLOAT64)


def test_results_made_without_gradients_can_be_changed_with_them(target):
    inputs = cast(conv_lstm_inputs(), torch.float64, target.device)
    with torch.no_grad():
        results = fused_conv_lstm(**inputs, backend=target.backend)
    scale = torch.tensor(2.0, dtype=torch.float64, device=target.device, requires_grad=True)
    for result in results.values():
        want = 2 * result.sum()
        torch.testing.assert_close(result.mul_(scale).sum(), want, **tolerances.FLOAT64)
        assert not result._is_view()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_results_share_no_memory(target, steps):
    """A state that is changed in place, to start some sequences of a batch anew, leaves the output alone."""
    inputs = cast(conv_lstm_inputs(steps=steps), torch.float32, target.device)
    results = fused_conv_lstm(**inputs, backend=target.backend)
    tensors = [*results.values(), *inputs.values()]
    places = [t.untyped_storage().data_ptr() for t in tensors if t is not None and t.numel()]
    assert len(set(places)) == len(places)


NAMES = ("x", "h0", "c0", "weight_ih", "weight_hh", "bias", "peephole")
GRADIENTS = ("output", "h_n", "c_n")


def check_op(target, save="gates", dtype=torch.float32, needed=NAMES, given=GRADIENTS, tests=SCHEMA_AND_FAKE, **sizes):
    """The op of a compiled graph: its results, their shapes, dtypes and strides are as its fake says."""
    inputs = cast(conv_lstm_inputs(**{"batch": 3, "steps": 5} | sizes), dtype, target.device)
    if inputs["c0"] is not None:
        inputs["c0"] = inputs["c0"].to(accumulation_dtype(dtype))
    backend = backends.choose("conv_lstm", target.backend, inputs["x"], inputs["x"].dim() - 3)
    wanted = [name in needed and tensor is not None for name, tensor in inputs.items()]
    states = backend.conv_lstm_forward(inside(*inputs.values()), Save.GATES if save == "gates" else Save.CELLS)
    grads = [torch.ones_like(t) for t in outside(states, inputs["x"].dim() - 3)]
    grads = dict(zip(GRADIENTS, grads, strict=True))
    grads = [grad if name in given else None for name, grad in grads.items()]
    call = (inside.__module__, backend.__name__, [*inputs.values()], wanted, [*states], grads)
    assert len(torch.ops.hybridops.recurrence_gradients.default(*call)) == sum(wanted)
    torch.library.opcheck(torch.ops.hybridops.recurrence_gradients.default, call, test_utils=tests)


@pytest.mark.slow
@saves
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [
        {"peephole": "spatial"}, {"peephole": "channel"}, {"states": False}, {"bias": False},
        {"states": False, "bias": False, "space": (7,), "kernel": (3,)}, {"batch": 0},
    ],
    ids=str,
)  # fmt: skip
def test_the_op_of_a_compiled_graph(target, sizes, dtype, save):
    """Of several chunks, with all that is optional and without."""
    check_op(target, save, dtype, **sizes)


@saves
@pytest.mark.parametrize("needed", [*((name,) for name in NAMES), ("c0", "bias")], ids=" ".join)
def test_the_op_of_a_compiled_graph_with_few_gradients(target, needed, save):
    check_op(target, save, needed=needed, peephole="channel")


@saves
@pytest.mark.parametrize("given", [(name,) for name in GRADIENTS], ids=" ".join)
def test_the_op_of_a_compiled_graph_from_one_output(target, given, save):
    check_op(target, save, given=given)


@pytest.mark.slow
@saves
def test_the_op_of_a_compiled_graph_is_traced(target, save):
    """With sizes that are symbols: they do not end up in the graph as the numbers they were."""
    check_op(target, save, peephole="spatial", tests=(*SCHEMA_AND_FAKE, "test_aot_dispatch_dynamic"))


# ------------------------------------------------------------------------------------------------ second derivatives


def small_problem(target, peephole, space, **sizes):
    kernel = (3,) * len(space)
    sizes = {"batch": 1, "steps": 2, "channels": 2, "hidden": 2, "space": space, "kernel": kernel, **sizes}
    inputs = cast(conv_lstm_inputs(peephole=peephole, **sizes), torch.float64, target.device)
    given = {name: t.requires_grad_() for name, t in inputs.items() if t is not None}

    def function(*leaves, save="gates"):
        arguments = inputs | dict(zip(given, leaves, strict=True))
        return tuple(fused_conv_lstm(**arguments, save=save, backend=target.backend).values())

    return function, tuple(given.values())


@pytest.mark.parametrize(
    ("peephole", "space", "states"),
    [(None, (3,), True), ("channel", (2, 2), False), ("spatial", (2, 2), True)],
)
def test_gradcheck(target, peephole, space, states):
    function, leaves = small_problem(target, peephole, space, states=states)
    for save in SAVES:
        assert torch.autograd.gradcheck(lambda *a, s=save: function(*a, save=s), leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda *a, s=save: function(*a, save=s), leaves, fast_mode=True)


def test_gradient_penalty(target):
    """A second derivative in use: backward through the norm of a gradient."""
    results = []
    for form, options in ((plain_conv_lstm, {}), (fused_conv_lstm, {"backend": target.backend})):
        inputs = cast(conv_lstm_inputs(peephole="channel"), torch.float64, target.device)
        leaves = [t.requires_grad_() for t in inputs.values()]
        (grad,) = torch.autograd.grad(form(**inputs, **options)["h_n"].sum(), inputs["x"], create_graph=True)
        results.append((grad, torch.autograd.grad(grad.square().sum(), leaves)))
    torch.testing.assert_close(*results, **tolerances.FLOAT64)


def test_create_graph_over_some_outputs_and_inputs(target):
    """Only c_n is used and only weight_hh is asked for."""
    results = []
    for form, options in ((plain_conv_lstm, {}), (fused_conv_lstm, {"backend": target.backend})):
        inputs = cast(conv_lstm_inputs(states=False), torch.float64, target.device)
        weight = inputs["weight_hh"].requires_grad_()
        (grad,) = torch.autograd.grad(form(**inputs, **options)["c_n"].square().sum(), weight, create_graph=True)
        results.append((grad, *torch.autograd.grad(grad.square().sum(), weight)))
    torch.testing.assert_close(*results, **tolerances.FLOAT64)


def test_one_cell_in_a_loop_is_one_sequence(target):
    """Gradients through many calls, each with states that have a history."""
    inputs = conv_lstm_inputs(steps=4)

    def loop(x, h0, c0, weight_ih, weight_hh, bias, peephole):
        h, c, output = h0, c0, []
        for x_t in x.unbind(1):
            h, c = HF.conv_lstm_cell(x_t, (h, c), weight_ih, weight_hh, bias, peephole=peephole, backend=target.backend)
            output.append(h)
        return {"output": torch.stack(output, 1), "h_n": h, "c_n": c}

    assert_parity(plain_conv_lstm, loop, inputs, device=target.device)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch itself uses here
def test_forward_mode(target):
    """The reference's operations have it; a compiled op refuses, and does not drop the tangent."""
    inputs = cast(conv_lstm_inputs(), torch.float64, target.device)
    tangent = torch.randn_like(inputs["x"])
    with forward_ad.dual_level():
        dual = inputs | {"x": forward_ad.make_dual(inputs["x"], tangent)}
        want = {name: forward_ad.unpack_dual(out).tangent for name, out in plain_conv_lstm(**dual).items()}
        if target.backend != "reference":
            with pytest.raises((NotImplementedError, RuntimeError), match="forward"):
                fused_conv_lstm(**dual, backend=target.backend)
        else:
            results = fused_conv_lstm(**dual, backend=target.backend)
            got = {name: forward_ad.unpack_dual(out).tangent for name, out in results.items()}
            torch.testing.assert_close(got, want, **tolerances.FLOAT64)
