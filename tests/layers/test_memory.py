"""The Neural Turing Machine, against its equations in loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from hybridops.layers.memory import (
    NTMCell,
    NTMEncoder,
    NTMState,
    circular_convolution,
    content_weights,
    sharpen,
)
from tests.tolerances import EXACT, FLOAT64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def draw_weights(*shape: int) -> torch.Tensor:
    return torch.softmax(draw(*shape), -1)


def test_a_kernel_of_plus_one_moves_the_focus_on():
    weights = torch.eye(5, dtype=torch.float64)  # row i is at i
    ahead, stay, back = torch.eye(3, dtype=torch.float64).flip(0).expand(5, 3, 3).unbind(1)
    torch.testing.assert_close(circular_convolution(weights, ahead), weights[[1, 2, 3, 4, 0]], **EXACT)
    torch.testing.assert_close(circular_convolution(weights, stay), weights, **EXACT)
    torch.testing.assert_close(circular_convolution(weights, back), weights[[4, 0, 1, 2, 3]], **EXACT)


@given(st.integers(1, 3), st.integers(0, 5))
def test_circular_convolution(reach, more):
    size = 2 * reach + 1 + more
    weights, kernel = draw_weights(2, 3, size), draw_weights(2, 3, 2 * reach + 1)
    found = circular_convolution(weights, kernel)
    for i in range(size):
        expected = sum(kernel[..., d + reach] * weights[..., (i - d) % size] for d in range(-reach, reach + 1))
        torch.testing.assert_close(found[..., i], expected, **FLOAT64)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, dtype=torch.float64), **FLOAT64)


def test_content_weights():
    memory, keys, strengths = draw(2, 4, 3), draw(2, 2, 3), draw(2, 2).exp()
    found = content_weights(memory, keys, strengths)
    for b in range(2):
        for k in range(2):
            cos = torch.stack([m @ keys[b, k] / (m.norm() * keys[b, k].norm()) for m in memory[b]])
            torch.testing.assert_close(found[b, k], torch.softmax(strengths[b, k] * cos, 0), **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_content_of_a_memory_that_is_almost_empty(dtype):
    """A row of 1e-6 has a direction, also where its square is no number of the dtype."""
    memory = torch.full((1, 3, 2), 1e-6, dtype=dtype)
    memory[0, 1] *= -1.0
    memory[0, 2] = 0.0
    found = content_weights(memory, torch.ones(1, 1, 2, dtype=dtype), torch.ones(1, 1, dtype=dtype))
    expected = torch.softmax(torch.tensor([1.0, -1.0, 0.0]), 0).to(dtype)
    torch.testing.assert_close(found[0, 0], expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    assert found.dtype == dtype


def test_sharpen():
    weights, power = draw_weights(2, 3, 5), 1.0 + draw(2, 3).exp()
    raised = weights ** power[..., None]
    torch.testing.assert_close(sharpen(weights, power), raised / raised.sum(-1, keepdim=True), **FLOAT64)
    torch.testing.assert_close(sharpen(weights, torch.ones(2, 3, dtype=torch.float64)), weights, **FLOAT64)
    assert gradcheck(sharpen, (weights.requires_grad_(), power.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sharpening_zeros_and_great_powers(dtype):
    """0.02^40 is 0 in float32: the plain quotient is 0 / 0."""
    even = torch.full((50,), 0.02, dtype=dtype)
    at = torch.zeros(50, dtype=dtype)
    at[7] = 1.0
    weights = torch.stack([even, at]).requires_grad_()
    power = torch.tensor([40.0, 40.0], dtype=dtype, requires_grad=True)
    found = sharpen(weights, power)
    torch.testing.assert_close(found, torch.stack([even, at]), rtol=2 * torch.finfo(dtype).eps, atol=0.0)
    found[:, 7].sum().backward()
    assert weights.grad.isfinite().all()
    assert power.grad.isfinite().all()


def loop(cell: NTMCell, x: torch.Tensor, state: NTMState) -> NTMState:
    """The equations, a row, a head, a place of the memory at a time."""
    reads, writes, size, dim = cell.reads, cell.writes, *state.memory.shape[1:]
    rows = []
    for b in range(len(x)):
        gates = cell.input_proj.weight @ x[b] + cell.input_proj.bias
        gates = gates + cell.state_proj.weight @ torch.cat([state.read[b].flatten(), state.hidden[b]])
        i, f, g, o = gates.view(4, -1)
        c = f.sigmoid() * state.cell[b] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        params = cell.head_proj.weight @ h + cell.head_proj.bias
        key, strength, sharpness, gate, shift, erase, add = params.split(cell.sizes)
        weights, read, memory = [], [], state.memory[b]
        for k in range(reads + writes):
            cos = torch.cosine_similarity(key.view(-1, dim)[k], memory, dim=1)
            content = torch.softmax(torch.log(1 + strength[k].exp()) * cos, 0)
            gated = gate[k].sigmoid() * content + (1 - gate[k].sigmoid()) * state.weights[b, k]
            kernel = torch.softmax(shift.view(reads + writes, -1)[k], 0)
            reach = len(kernel) // 2
            moved = torch.stack(
                [sum(kernel[d + reach] * gated[(n - d) % size] for d in range(-reach, reach + 1)) for n in range(size)]
            )
            sharp = moved ** (1 + torch.log(1 + sharpness[k].exp()))
            weights.append(sharp / sharp.sum())
            if k < reads:
                read.append(sum(weights[k][n] * memory[n] for n in range(size)))
        kept, added = memory, torch.zeros_like(memory)
        for k in range(writes):
            w, e, a = weights[reads + k][:, None], erase.view(writes, dim)[k].sigmoid(), add.view(writes, dim)[k].tanh()
            kept, added = kept * (1 - w * e), added + w * a
        rows.append(NTMState(kept + added, torch.stack(weights), torch.stack(read), h, c))
    return NTMState(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


@pytest.mark.parametrize(("reads", "writes", "reach"), [(1, 1, 1), (2, 1, 2), (1, 3, 1)])
def test_a_step_is_its_equations(reads, writes, reach):
    cell = NTMCell(3, 4, 6, 2, num_read_heads=reads, num_write_heads=writes, max_shift=reach).double()
    state = NTMState(draw(2, 6, 2), draw_weights(2, reads + writes, 6), draw(2, reads, 2), draw(2, 4), draw(2, 4))
    x, params = draw(2, 3), [*cell.parameters()]
    found, expected = cell(x, state), loop(cell, x, state)
    torch.testing.assert_close(found, expected, **FLOAT64)
    factors = [draw(*part.shape) for part in found]
    grads = []
    for result in found, expected:
        total = sum((factor * part).sum() for factor, part in zip(factors, result, strict=True))
        grads.append(torch.autograd.grad(total, params, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*grads, **FLOAT64)


def test_what_is_written_can_be_read():
    """Heads at one place each: the one that writes erases all and adds, the one that reads finds it a step later."""
    cell = NTMCell(1, 1, 3, 2).double()
    names = ("key", "strength", "sharpness", "gate", "shift", "erase", "add")
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        bias = dict(zip(names, cell.head_proj.bias.split(cell.sizes), strict=True))
        bias["gate"].fill_(-50.0)  # stay
        bias["shift"].view(2, 3)[:, 1] = 50.0
        bias["erase"].fill_(50.0)
        bias["add"].copy_(torch.tensor([50.0, -50.0]))
    at = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    state = cell.start(1)._replace(weights=at, memory=draw(1, 3, 2))
    first = cell(torch.zeros(1, 1, dtype=torch.float64), state)
    torch.testing.assert_close(first.weights, at, **FLOAT64)
    torch.testing.assert_close(first.read[0, 0], state.memory[0, 1], **FLOAT64)
    torch.testing.assert_close(first.memory[0, [0, 2]], state.memory[0, [0, 2]], **FLOAT64)
    torch.testing.assert_close(first.memory[0, 1].tolist(), [1.0, -1.0], **FLOAT64)
    second = cell(torch.zeros(1, 1, dtype=torch.float64), first)
    torch.testing.assert_close(second.read[0, 0].tolist(), [1.0, -1.0], **FLOAT64)


@pytest.mark.parametrize("learned", [False, True])
def test_the_start(learned):
    cell = NTMCell(3, 4, 6, 2, learned_memory=learned).double()
    state = cell.start(5)
    assert [tuple(part.shape) for part in state] == [(5, 6, 2), (5, 2, 6), (5, 1, 2), (5, 4), (5, 4)]
    assert ("memory" in dict(cell.named_parameters())) == learned
    torch.testing.assert_close(state.read[0], state.weights[0, :1] @ cell.memory, **FLOAT64)
    if not learned:
        torch.testing.assert_close(cell.memory, torch.full_like(cell.memory, 1e-6), rtol=1e-6, atol=0.0)


def test_an_encoder_is_the_cell_at_every_step():
    encoder, x = NTMEncoder(3, 4, 6, 2, num_read_heads=2).double(), draw(2, 5, 3)
    memory, states, state = encoder(x), encoder.states(x), None
    for t in range(5):
        state = encoder.cell(x[:, t], state)
        torch.testing.assert_close(states[t], state, **FLOAT64)
        torch.testing.assert_close(memory.values[:, t], torch.cat([state.read.flatten(1), state.hidden], 1), **FLOAT64)
    assert encoder.dim == memory.values.shape[2] == 2 * 2 + 4
    torch.testing.assert_close(memory.pooled, memory.values[:, 4], **EXACT)
    torch.testing.assert_close(encoder.states(x[:, 3:], states[2])[-1], states[-1], **FLOAT64)


def test_rows_end_where_they_end():
    encoder, x, lengths = NTMEncoder(3, 4, 6, 2).double(), draw(3, 5, 3), torch.tensor([2, 5, 0])
    x[torch.arange(5) >= lengths[:, None]] = torch.nan
    memory = encoder(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(x[row : row + 1, :length])
        torch.testing.assert_close(memory.values[row, :length], alone.values[0], **FLOAT64)
        torch.testing.assert_close(memory.pooled[row], alone.pooled[0], **FLOAT64)
        assert not memory.values[row, length:].any()
        assert memory.mask[row].sum() == length
    memory.values.sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NTMCell(0), "input_dim must be a positive int, got 0"),
        (lambda: NTMCell(3, memory_size=4, max_shift=2), r"max_shift must be at most \(memory_size - 1\) / 2, got 2"),
        (lambda: NTMCell(3, learned_memory=1), "learned_memory must be a bool, got 1"),
        (lambda: NTMCell(3)(torch.ones(2, 4)), r"x must have shape \(B, 3\), got \(2, 4\)"),
        (
            lambda: NTMCell(3)(torch.ones(2, 3), NTMCell(3).start(4)),
            r"memory of state must have shape \(2, 128, 20\), got \(4, 128, 20\)",
        ),
        (
            lambda: NTMEncoder(3).states(torch.ones(2, 1, 3), NTMCell(3, num_read_heads=2).start(2)),
            r"weights of state must have shape \(2, 2, 128\), got \(2, 3, 128\)",
        ),
        (lambda: NTMEncoder(3, num_read_heads=0), "num_read_heads must be a positive int, got 0"),
        (lambda: NTMEncoder(3)(torch.ones(2, 3)), r"x must have shape \(B, T, 3\), got \(2, 3\)"),
        (lambda: NTMEncoder(3)(torch.ones(2, 5, 3), torch.ones(3)), r"lengths must have shape \(2\), got \(3\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
