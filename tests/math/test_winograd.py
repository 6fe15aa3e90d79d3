"""The matrices of csrc/math/winograd.h, in exact arithmetic."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import ROOT

FILTERS = [(2, 3), (4, 3), (2, 5), (2, 3, 2)]  # outputs, and the taps of each part
TILES = [
    ((2, 3), (2, 3)), ((2, 3), (4, 3)), ((4, 3), (4, 3)), ((2, 3, 2), (2, 5)), ((2, 5), (2, 5))
]  # fmt: skip
DENOMINATOR = 100  # larger than that of any coefficient: products of up to five differences of 0, ±1, 1/2 and -2

Vector = list[Fraction]
Matrix = list[Vector]

NUMBERS = st.integers(-(10**6), 10**6)


def rational(numbers: Matrix) -> Matrix:
    """The fractions whose nearest float64 these are."""
    fractions = [[Fraction(number).limit_denominator(DENOMINATOR) for number in row] for row in numbers]
    assert [[float(fraction) for fraction in row] for row in fractions] == numbers
    return fractions


def times(matrix: Matrix, vector: Vector) -> Vector:
    return [sum(a * x for a, x in zip(row, vector, strict=True)) for row in matrix]


def multiply(first: Matrix, second: Matrix) -> Matrix:
    return transposed([times(first, column) for column in transposed(second)])


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def elementwise(first: Vector, second: Vector) -> Vector:
    return [a * b for a, b in zip(first, second, strict=True)]


def correlation(taps: Vector, inputs: Vector) -> Vector:
    """The sum over the taps g_k d_(m+k), for every m where all of them have an input."""
    count = len(inputs) - len(taps) + 1
    return [sum(tap * inputs[m + k] for k, tap in enumerate(taps)) for m in range(count)]


def correlation_2d(taps: Matrix, inputs: Matrix) -> Matrix:
    rows, cols = len(inputs) - len(taps) + 1, len(inputs[0]) - len(taps[0]) + 1
    return [
        [sum(correlation(row, inputs[y + k])[x] for k, row in enumerate(taps)) for x in range(cols)]
        for y in range(rows)
    ]


def unit_vectors(count: int) -> list[list[int]]:
    return [[int(i == k) for i in range(count)] for k in range(count)]


Filter = dict[str, Matrix]  # by the names in csrc/math/winograd.h


@pytest.fixture(scope="module")
def filters(compiled) -> dict[tuple[int, ...], Filter]:
    return {
        name: {key: rational(matrix) for key, matrix in numbers.items()} for name, numbers in compiled.filters.items()
    }


@pytest.fixture(scope="module", params=FILTERS, ids=str)
def matrices(request, filters) -> Filter:
    return filters[request.param]


def forward(m: Filter, taps: Vector, inputs: Vector) -> Vector:
    return times(m["output"], elementwise(times(m["kernel"], taps), times(m["input"], inputs)))


def gradient_of_taps(m: Filter, of_outputs: Vector, inputs: Vector) -> Vector:
    products = elementwise(times(m["output_gradient"], of_outputs), times(m["input"], inputs))
    return times(m["kernel_gradient"], products)


def sizes(m: Filter) -> tuple[int, int, int]:
    """Outputs, taps and inputs."""
    return len(m["output"]), len(m["kernel"][0]), len(m["input"][0])


def test_every_filter_and_tile_in_use_is_tested(compiled):
    text = (ROOT / "csrc" / "cpu" / "winograd_kernels.h").read_text()
    part = r"MinimalFilter<([\d, ]+)>"
    numbers = [[tuple(map(int, found.split(","))) for found in pair] for pair in re.findall(f"{part}, {part}", text)]
    assert {tuple(pair) for pair in numbers} == set(TILES) == set(compiled.tiles)
    assert {name for pair in numbers for name in pair} == set(FILTERS) == set(compiled.filters)


@pytest.mark.parametrize("name", FILTERS, ids=str)
def test_sizes(compiled, name):
    outputs, *parts = name
    taps = sum(parts)
    products = sum(outputs + part - 1 for part in parts)
    shapes = {key: (len(matrix), len(matrix[0])) for key, matrix in compiled.filters[name].items()}
    assert shapes == {
        "input": (products, outputs + taps - 1),
        "kernel": (products, taps),
        "output": (outputs, products),
        "kernel_gradient": (taps, products),
        "output_gradient": (products, outputs),
    }


def test_every_pair_of_unit_vectors(matrices):
    """Which by linearity is every filter and every input."""
    _, taps, inputs = sizes(matrices)
    for g in unit_vectors(taps):
        for d in unit_vectors(inputs):
            assert forward(matrices, g, d) == correlation(g, d)


def test_every_gradient_of_unit_vectors(matrices):
    outputs, _, inputs = sizes(matrices)
    for dy in unit_vectors(outputs):
        for d in unit_vectors(inputs):
            assert gradient_of_taps(matrices, dy, d) == correlation(dy, d)


@given(data=st.data())
def test_outputs(matrices, data):
    _, taps, inputs = sizes(matrices)
    g = data.draw(st.lists(NUMBERS, min_size=taps, max_size=taps))
    d = data.draw(st.lists(NUMBERS, min_size=inputs, max_size=inputs))
    assert forward(matrices, g, d) == correlation(g, d)


@given(data=st.data())
def test_gradient_of_the_taps(matrices, data):
    """The sum over the outputs dy_m d_(m+k)."""
    outputs, _, inputs = sizes(matrices)
    dy = data.draw(st.lists(NUMBERS, min_size=outputs, max_size=outputs))
    d = data.draw(st.lists(NUMBERS, min_size=inputs, max_size=inputs))
    assert gradient_of_taps(matrices, dy, d) == correlation(dy, d)


def test_gradients_are_transposed(matrices):
    assert matrices["kernel_gradient"] == transposed(matrices["kernel"])
    assert matrices["output_gradient"] == transposed(matrices["output"])


@pytest.mark.parametrize("name", TILES, ids=str)
@given(data=st.data())
def test_tiles(filters, name, data):
    """Nested: the column's filter on the left, the row's on the right, for outputs and the kernel's gradient."""
    y, x = (filters[part] for part in name)

    def draw(rows: int, cols: int) -> Matrix:
        row = st.lists(st.integers(-99, 99), min_size=cols, max_size=cols)
        return data.draw(st.lists(row, min_size=rows, max_size=rows))

    def nested(key: str, matrix: Matrix) -> Matrix:
        return multiply(multiply(y[key], matrix), transposed(x[key]))

    (rows, taps, inputs_y), (cols, _, inputs_x) = sizes(y), sizes(x)
    g, d, dy = draw(taps, taps), draw(inputs_y, inputs_x), draw(rows, cols)
    patch = nested("input", d)
    products = [elementwise(*pair) for pair in zip(nested("kernel", g), patch, strict=True)]
    assert nested("output", products) == correlation_2d(g, d)
    products = [elementwise(*pair) for pair in zip(nested("output_gradient", dy), patch, strict=True)]
    assert nested("kernel_gradient", products) == correlation_2d(dy, d)


@pytest.mark.parametrize(("name", "points"), list(zip(TILES, [16, 24, 36, 42, 36], strict=True)), ids=str)
def test_multiplications_of_a_tile(compiled, name, points):
    """As docs/numerics.md has them: 2.25, 3, 4, 2.38 and 2.78 times fewer than there are taps."""
    (rows, *taps_y), (cols, *taps_x) = name
    assert compiled.tiles[name] == {
        "rows": rows,
        "cols": cols,
        "taps": sum(taps_x),
        "inputs": (rows + sum(taps_y) - 1) * (cols + sum(taps_x) - 1),
        "points": points,
    }
