"""csrc/math/lstm_gates.h, forward and backward, on plain numbers and on vectors, against PyTorch in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tolerances

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
PEEPHOLE = pytest.mark.parametrize("peephole", [False, True], ids=["plain", "peephole"])
COUNT = 10_007  # no whole vectors


class Bounded(NamedTuple):
    """Numbers in float64, and how far off the same computed with roundings to `eps` can be, to first order."""

    value: Tensor
    error: Tensor


class Rounding:
    """Arithmetic that adds up what each operation's rounding can cost: half a unit, three for sigmoid and tanh."""

    def __init__(self, dtype: torch.dtype):
        self.eps, self.tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny

    def given(self, value: Tensor) -> Bounded:
        return Bounded(value, torch.zeros_like(value))

    def rounded(self, value: Tensor, error: Tensor) -> Bounded:
        return Bounded(value, error + self.eps / 2 * value.abs())

    def times(self, first: Bounded, *others: Bounded) -> Bounded:
        for x in others:
            product = first.value * x.value
            first = self.rounded(product, first.error * x.value.abs() + x.error * first.value.abs())
        return first

    def plus(self, first: Bounded, *others: Bounded) -> Bounded:
        for x in others:
            first = self.rounded(first.value + x.value, first.error + x.error)
        return first

    def one_minus(self, x: Bounded) -> Bounded:
        return self.rounded(1 - x.value, x.error)

    def sigmoid(self, x: Bounded) -> Bounded:
        value = x.value.sigmoid()
        own = tolerances.NONLINEARITY_ULPS * self.eps * value
        own = own.where(value >= self.tiny, self.tiny)  # a subnormal one may be zero: test_simd.py
        return Bounded(value, x.error * value * (1 - value) + own)

    def tanh(self, x: Bounded) -> Bounded:
        value = x.value.tanh()
        return Bounded(value, x.error * (1 - value**2) + tolerances.NONLINEARITY_ULPS * self.eps * value.abs())


def draw(*names: str, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Numbers of dtype, as float64: from small ones to some that saturate."""
    generator = torch.Generator().manual_seed(seed)
    numbers = {}
    for name in names:
        size = torch.logspace(-3, 1, COUNT, dtype=torch.float64)[torch.randperm(COUNT, generator=generator)]
        drawn = torch.randn(COUNT, dtype=torch.float64, generator=generator)
        numbers[name] = (drawn * size).to(dtype).double()
    return numbers


def call(function, dtype: torch.dtype, *arrays: Tensor) -> tuple[Tensor, ...]:
    """The compiled function in dtype, its results as float64."""
    return tuple(torch.from_numpy(result).double() for result in function(*(x.to(dtype).numpy() for x in arrays)))


def assert_within(got: Tensor, expected: Bounded, dtype: torch.dtype) -> None:
    """In float64 what is compared with is rounded too, in the same places."""
    allowed = expected.error * (2 if dtype == torch.float64 else 1)
    # second-order terms are eps times the others, and subnormal numbers are rounded to the smallest of them
    allowed = allowed * 1.001 + torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    assert torch.isfinite(got).all()
    excess = (got - expected.value).abs() / allowed
    assert excess.max() <= 1


def functions(numbers, name: str, peephole: bool):
    return getattr(numbers, f"{name}_peephole" if peephole else name)


@DTYPES
@PEEPHOLE
def test_cell(numbers, dtype, peephole):
    x = draw("a_f", "a_i", "a_g", "c_prev", dtype=dtype)
    p = draw("f", "i", "o", dtype=dtype, seed=1) if peephole else {}
    got = call(functions(numbers, "lstm_cell", peephole), dtype, *x.values(), *p.values())

    r = Rounding(dtype)
    a_f, a_i, a_g, c_prev = (r.given(value) for value in x.values())
    if peephole:
        a_f = r.plus(a_f, r.times(r.given(p["f"]), c_prev))
        a_i = r.plus(a_i, r.times(r.given(p["i"]), c_prev))
    f, i, g = r.sigmoid(a_f), r.sigmoid(a_i), r.tanh(a_g)
    c = r.plus(r.times(f, c_prev), r.times(i, g))
    for result, expected in zip(got, (f, i, g, c), strict=True):
        assert_within(result, expected, dtype)


@DTYPES
@PEEPHOLE
def test_output(numbers, dtype, peephole):
    x = draw("a_o", "c", dtype=dtype)
    p = draw("f", "i", "o", dtype=dtype, seed=1) if peephole else {}
    got = call(functions(numbers, "lstm_output", peephole), dtype, *x.values(), *p.values())

    r = Rounding(dtype)
    a_o, c = (r.given(value) for value in x.values())
    if peephole:
        a_o = r.plus(a_o, r.times(r.given(p["o"]), c))
    o = r.sigmoid(a_o)
    for result, expected in zip(got, (o, r.times(o, r.tanh(c))), strict=True):
        assert_within(result, expected, dtype)


def bounded_backward(r: Rounding, dh, dc, f, i, g, o, c, c_prev, p: dict[str, Bounded]) -> dict[str, Bounded]:
    t = r.tanh(c)
    da_o = r.times(dh, t, o, r.one_minus(o))
    dc = r.plus(dc, r.times(dh, o, r.one_minus(r.times(t, t))))
    if p:
        dc = r.plus(dc, r.times(p["o"], da_o))
    da_f = r.times(dc, c_prev, f, r.one_minus(f))
    da_i = r.times(dc, g, i, r.one_minus(i))
    da_g = r.times(dc, i, r.one_minus(r.times(g, g)))
    dc_prev = r.times(dc, f)
    if p:
        dc_prev = r.plus(dc_prev, r.times(p["f"], da_f), r.times(p["i"], da_i))
    return {"da_f": da_f, "da_i": da_i, "da_g": da_g, "da_o": da_o, "dc_prev": dc_prev}


class Step(NamedTuple):
    """What a forward step gave, and the gradients by autograd of the sum of h dh + c dc."""

    gates: tuple[Tensor, ...]  # f, i, g, o
    c: Tensor
    h: Tensor
    gradients: tuple[Tensor, ...]  # of a_f, a_i, a_g, a_o, c_prev


def step(a_f, a_i, a_g, a_o, c_prev, dh, dc, p: dict[str, Tensor]) -> Step:
    leaves = [x.clone().requires_grad_() for x in (a_f, a_i, a_g, a_o, c_prev)]
    a_f, a_i, a_g, a_o, c_prev = leaves
    if p:
        a_f, a_i = a_f + p["f"] * c_prev, a_i + p["i"] * c_prev
    f, i, g = a_f.sigmoid(), a_i.sigmoid(), a_g.tanh()
    c = f * c_prev + i * g
    o = (a_o + p["o"] * c if p else a_o).sigmoid()
    h = o * c.tanh()
    gradients = torch.autograd.grad((h, c), leaves, (dh, dc))
    return Step(tuple(x.detach() for x in (f, i, g, o)), c.detach(), h.detach(), gradients)


@PEEPHOLE
def test_backward_is_that_of_autograd(numbers, peephole):
    x = draw("a_f", "a_i", "a_g", "a_o", "c_prev", "dh", "dc", dtype=torch.float64)
    p = draw("f", "i", "o", dtype=torch.float64, seed=1) if peephole else {}
    forward = step(**x, p=p)
    arguments = (x["dh"], x["dc"], *forward.gates, forward.c, x["c_prev"])
    got = call(functions(numbers, "lstm_backward", peephole), torch.float64, *arguments, *p.values())

    r = Rounding(torch.float64)
    given = {name: r.given(value) for name, value in p.items()}
    bounds = bounded_backward(r, *(r.given(value) for value in arguments), given)
    for result, expected, bound in zip(got, forward.gradients, bounds.values(), strict=True):
        assert_within(result, Bounded(expected, bound.error), torch.float64)


@PEEPHOLE
def test_backward_in_float32(numbers, peephole):
    """For what a float32 step saved, the numbers that the same formula gives in float64."""
    dtype = torch.float32
    x = draw("a_f", "a_i", "a_g", "a_o", "c_prev", "dh", "dc", dtype=dtype)
    p = draw("f", "i", "o", dtype=dtype, seed=1) if peephole else {}
    forward = step(**x, p=p)
    saved = (*forward.gates, forward.c)
    arguments = (x["dh"], x["dc"], *(value.float().double() for value in saved), x["c_prev"])
    got = call(functions(numbers, "lstm_backward", peephole), dtype, *arguments, *p.values())

    r = Rounding(dtype)
    given = {name: r.given(value) for name, value in p.items()}
    bounds = bounded_backward(r, *(r.given(value) for value in arguments), given)
    for result, bound in zip(got, bounds.values(), strict=True):
        assert_within(result, bound, dtype)


@PEEPHOLE
def test_finite_differences(numbers, peephole):
    """The compiled backward is the derivative of the compiled forward pass."""
    x = draw("a_f", "a_i", "a_g", "a_o", "c_prev", dtype=torch.float64)
    p = draw("f", "i", "o", dtype=torch.float64, seed=1) if peephole else {}
    x = {name: value.clamp(-2, 2) for name, value in x.items()}
    p = {name: value.clamp(-2, 2) for name, value in p.items()}
    weights = draw("dh", "dc", dtype=torch.float64, seed=2)
    dh, dc = (value.clamp(-2, 2) for value in weights.values())

    def forward(a_f, a_i, a_g, a_o, c_prev) -> tuple[tuple[Tensor, ...], Tensor]:
        cell, output = (functions(numbers, name, peephole) for name in ("lstm_cell", "lstm_output"))
        f, i, g, c = call(cell, torch.float64, a_f, a_i, a_g, c_prev, *p.values())
        o, h = call(output, torch.float64, a_o, c, *p.values())
        return (f, i, g, o, c), h * dh + c * dc

    saved, _ = forward(**x)
    backward = functions(numbers, "lstm_backward", peephole)
    got = call(backward, torch.float64, dh, dc, *saved, x["c_prev"], *p.values())
    step = 1e-5  # rounding costs the difference 1e-16/1e-5, the third derivative 1e-10 times up to 2^3 of a peephole
    for name, gradient in zip(x, got, strict=True):
        up, down = (forward(**x | {name: x[name] + sign * step})[1] for sign in (1, -1))
        torch.testing.assert_close(gradient, (up - down) / (2 * step), rtol=1e-7, atol=1e-7)


INFINITE = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)


@DTYPES
def test_infinite_cells_stay_infinite(numbers, dtype):
    """Without a peephole, and what would be one is NaN here and is not looked at; with one of zero they are NaN."""
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    f, i, g, c = call(numbers.lstm_cell, dtype, one, -one, one, INFINITE)
    torch.testing.assert_close(c, INFINITE, **tolerances.EXACT)
    assert torch.isfinite(torch.stack([f, i, g])).all()
    o, h = call(numbers.lstm_output, dtype, one, INFINITE)
    torch.testing.assert_close(h, o * INFINITE.sign(), **tolerances.EXACT)
    f, i, g, c = call(numbers.lstm_cell_peephole, dtype, one, -one, one, INFINITE, zero, zero, zero)
    assert torch.isnan(torch.stack([f, i, c])).all()
    assert torch.isfinite(g).all()
    assert torch.isnan(torch.stack(call(numbers.lstm_output_peephole, dtype, one, INFINITE, zero, zero, zero))).all()


@DTYPES
@PEEPHOLE
def test_backward_of_infinite_cells(numbers, dtype, peephole):
    """inf, NaN and finite numbers are where they are by autograd."""
    values = {name: torch.full((2,), 0.5, dtype=torch.float64) for name in ("a_f", "a_i", "a_g", "a_o", "dh", "dc")}
    zero = torch.zeros(2, dtype=torch.float64)
    p = {"f": zero, "i": zero, "o": zero} if peephole else {}
    forward = step(**values, c_prev=INFINITE, p=p)
    arguments = (values["dh"], values["dc"], *forward.gates, forward.c, INFINITE)
    got = call(functions(numbers, "lstm_backward", peephole), dtype, *arguments, *p.values())
    for result, expected in zip(got, forward.gradients, strict=True):
        torch.testing.assert_close(result, expected, rtol=16 * torch.finfo(dtype).eps, atol=0, equal_nan=True)


@DTYPES
def test_nan_is_not_lost(numbers, dtype):
    """A NaN of one pre-activation is one of what depends on it, and of nothing else."""
    nan = torch.full((1,), torch.nan, dtype=torch.float64)
    for which, expected in enumerate([(1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1), (0, 0, 0, 1)]):
        arguments = [torch.ones(1, dtype=torch.float64) for _ in range(4)]
        arguments[which] = nan
        got = torch.cat(call(numbers.lstm_cell, dtype, *arguments))
        np.testing.assert_array_equal(got.isnan().numpy(), np.array(expected, bool))
