"""The ConvLSTM's formulas against the plain modules and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybridops.autograd.conv_lstm import inside, outside
from hybridops.checks import accumulation_dtype
from hybridops.contract import ConvLSTMInputs, ConvLSTMStates, Save, StateGradients
from hybridops.formulas.conv_lstm import conv_lstm_backward, conv_lstm_forward
from hybridops.layouts import image_outside, sequence_inside, sequence_outside
from tests import tolerances
from tests.reference.test_conv_lstm import CLOSE, case, make_problem, run_module


def inputs_of(module, x, h0, c0) -> ConvLSTMInputs:
    """As a back end gets them."""
    c0 = None if c0 is None else c0.to(accumulation_dtype(x.dtype))
    return inside(x, h0, c0, *module.cell_list[0].canonical_weights())


def make_inputs(*args, **sizes) -> tuple[ConvLSTMInputs, ConvLSTMStates]:
    inputs = inputs_of(*make_problem(*args, **sizes))
    return inputs, conv_lstm_forward(inputs, Save.GATES)


def random_gradients(states: ConvLSTMStates) -> StateGradients:
    return StateGradients(*(torch.randn_like(t) for t in (states.hs, states.hs[0], states.cs[0])))


@case
def test_forward_is_the_plain_module(space, kernel, peephole, bias):
    module, *given = make_problem(space, kernel, peephole, bias)
    states = conv_lstm_forward(inputs_of(module, *given), Save.GATES)
    torch.testing.assert_close(outside(states, len(space)), run_module(module, *given), **CLOSE)
    assert states.gates.shape == (*states.hs.shape[:-1], 8)


@case
def test_backward_is_autograd(space, kernel, peephole, bias):
    module, x, h0, c0 = make_problem(space, kernel, peephole, bias)
    cell, a = module.cell_list[0], []
    cell.conv.register_forward_hook(lambda conv, args, out: a.append(out))
    outputs = run_module(module, x, h0, c0)
    grads = [torch.randn_like(out) for out in outputs]
    *da, dh0, dc0 = torch.autograd.grad(outputs, [*a, h0, c0], grads)

    inputs = inputs_of(module, x, h0, c0)
    given = StateGradients(sequence_inside(grads[0]), *inside(x, *grads[1:], *[cell.conv.weight] * 2, None, None)[1:3])
    got = conv_lstm_backward(given, inputs, conv_lstm_forward(inputs, Save.GATES), True)
    dims = len(space)
    got = (sequence_outside(got[0], dims).transpose(0, 1), *(image_outside(state, dims) for state in got[1:]))
    torch.testing.assert_close(got, (torch.stack(da), dh0, dc0), **CLOSE)


@pytest.mark.parametrize("given", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
def test_backward_takes_none_for_a_zero_gradient(given):
    inputs, states = make_inputs((4, 3), (3, 3), "channel")
    grads = StateGradients(*(grad * used for grad, used in zip(random_gradients(states), given, strict=True)))
    nones = StateGradients(*(grad if used else None for grad, used in zip(grads, given, strict=True)))
    want = conv_lstm_backward(grads, inputs, states, True)
    torch.testing.assert_close(conv_lstm_backward(nones, inputs, states, True), want, **tolerances.EXACT)
    da, dh0, dc0 = conv_lstm_backward(nones, inputs, states, False)
    assert dh0 is None
    torch.testing.assert_close((da, dc0), (want[0], want[2]), **tolerances.EXACT)


def test_states_of_none_are_zeros():
    module, x, h0, _ = make_problem((4, 3), (3, 3), "spatial")
    zeros = torch.zeros_like(h0)
    none, zero = inputs_of(module, x, None, None), inputs_of(module, x, zeros, zeros)
    states = conv_lstm_forward(none, Save.GATES)
    torch.testing.assert_close(states, conv_lstm_forward(zero, Save.GATES), **tolerances.EXACT)
    torch.testing.assert_close(module(x), module(x, (zeros[None], zeros[None])), **tolerances.EXACT)
    grads = random_gradients(states)
    from_none, from_zero = (conv_lstm_backward(grads, inputs, states, True) for inputs in (none, zero))
    torch.testing.assert_close(from_none, from_zero, **tolerances.EXACT)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_backward_in_chunks_is_the_whole_backward(cut):
    inputs, states = make_inputs((4, 3), (3, 3), "channel", steps=5)
    grads = random_gradients(states)
    whole = conv_lstm_backward(grads, inputs, states, True)

    def part(steps: slice, grads: StateGradients, inputs: ConvLSTMInputs) -> tuple[Tensor, ...]:
        states_of_part = ConvLSTMStates(*(t[steps] for t in states))
        return conv_lstm_backward(grads, inputs._replace(x=inputs.x[steps]), states_of_part, True)

    before = inputs._replace(h0=states.hs[cut - 1], c0=states.cs[cut - 1])
    da_late, dh, dc = part(slice(cut, None), grads._replace(hs=grads.hs[cut:]), before)
    da_early, dh0, dc0 = part(slice(cut), StateGradients(grads.hs[:cut], dh, dc), inputs)
    torch.testing.assert_close((torch.cat([da_early, da_late]), dh0, dc0), whole, **tolerances.EXACT)


@case
def test_gates_come_back_from_the_states(space, kernel, peephole, bias):
    inputs, states = make_inputs(space, kernel, peephole, bias)
    grads = random_gradients(states)
    want = conv_lstm_backward(grads, inputs, states, True)
    got = conv_lstm_backward(grads, inputs, states._replace(gates=None), True)
    torch.testing.assert_close(got, want, **CLOSE)


def test_save_says_what_is_kept():
    inputs, (hs, cs, _) = make_inputs((4, 3), (3, 3))
    for save, cells in ((Save.CELLS, cs), (Save.NOTHING, cs[-1:])):
        states = conv_lstm_forward(inputs, save)
        torch.testing.assert_close(states[:2], (hs, cells), **tolerances.EXACT)
        assert states.gates is None


@pytest.mark.parametrize(("batch", "steps"), [(2, 0), (0, 3), (0, 0), (1, 1)])
@pytest.mark.parametrize("kernel", [(3,), (3, 1), (1, 3, 3)])
def test_empty_and_single(batch, steps, kernel):
    space = (3, 4, 2)[: len(kernel)]
    module, x, h0, c0 = make_problem(space, kernel, "channel", batch=batch, steps=steps)
    output, (h_n, c_n) = module(x)
    assert output.shape == (batch, steps, 2, *space)
    assert h_n.shape == c_n.shape == (1, batch, 2, *space)

    inputs = inputs_of(module, x, h0, c0)
    states = conv_lstm_forward(inputs, Save.GATES)
    assert states.hs.shape == states.cs.shape == (steps, *inputs.h0.shape)
    assert states.gates.shape == (steps, *inputs.h0.shape[:-1], 8)
    last = states.cs[-1] if steps else inputs.c0
    torch.testing.assert_close(conv_lstm_forward(inputs, Save.NOTHING).cs, last[None], **tolerances.EXACT)

    grads = StateGradients(states.hs, inputs.h0, inputs.c0)
    da, dh0, dc0 = conv_lstm_backward(grads, inputs._replace(c0=None), states, True)
    assert da.shape == states.gates.shape
    assert dh0.shape == dc0.shape == inputs.h0.shape
    if steps == 0:
        torch.testing.assert_close((dh0, dc0), (inputs.h0, inputs.c0), **tolerances.EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("space", [(6, 5), (3, 4, 5)])
@pytest.mark.parametrize("differentiable", [True, False])
def test_half_precision_keeps_a_float32_cell(dtype, space, differentiable):
    """With a graph and without one, where bfloat16 is convolved as it is."""
    module, x, h0, c0 = make_problem(space, (3,) * len(space), "channel", dtype=dtype)
    plain = run_module(module, x, h0, c0)[0].detach()
    inputs = inputs_of(module, x, h0, c0)
    with torch.set_grad_enabled(differentiable):
        states = conv_lstm_forward(inputs, Save.GATES)
    no_steps = conv_lstm_forward(inputs_of(module, x[:, :0], None, None), Save.NOTHING).cs
    da, dh0, dc0 = conv_lstm_backward(StateGradients(states.hs, None, None), inputs, states, True)
    assert [t.dtype for t in (states.hs, states.gates, da)] == [dtype] * 3
    assert [t.dtype for t in (states.cs, no_steps, dh0, dc0)] == [torch.float32] * 4

    exact = run_module(module.double(), x.double(), h0.double(), c0.double())[0]
    # The usual judgement of half precision: at most twice what PyTorch loses in the same dtype.
    error = outside(states, len(space))[0] - exact
    assert tolerances.largest(error) <= tolerances.TIMES_PLAIN * tolerances.largest(plain - exact)


@pytest.mark.slow
@pytest.mark.parametrize("peephole", [None, "spatial"])
def test_formulas_are_differentiable(peephole):
    """Double backward runs both formulas again under autograd."""
    inputs = inputs_of(*make_problem((2,), (3,), peephole, batch=1, steps=2))

    def forward_and_backward(grad_hs, *tensors):
        inputs = ConvLSTMInputs(*(tensors if peephole else (*tensors, None)))
        states = conv_lstm_forward(inputs, Save.GATES)
        return conv_lstm_backward(StateGradients(grad_hs, None, None), inputs, states, True)

    grad_hs = torch.randn(2, 1, 1, 2, 2, dtype=torch.float64)
    leaves = [grad_hs, *(t for t in inputs if t is not None)]
    assert torch.autograd.gradcheck(forward_and_backward, [leaf.detach().requires_grad_() for leaf in leaves])
