"""Additive attention that was written elsewhere: which of its parameters is what, and how it is called."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import hybridops.functional as HF
from hybridops.interop.calls import Tensors, randn

Shapes = Mapping[str, torch.Size]

ARGUMENTS = [("query", "keys"), ("keys", "query"), ("query", "keys", "values"), ("query", "keys", "mask")]
MOST_PARAMETERS = 7  # two matrices and their biases, v and its bias, and a bias of the sum
QUERIES = ("BQ", "BSQ", "SBQ", "B1Q", "1BQ")
KEYS = ("BTK", "TBK")
# What True means in a mask, and the score of what is masked: after it, a row that may attend nothing is uniform or NaN.
MASKS = tuple(product(("attend", "masked"), ("finite", "infinite")))


class Inputs(NamedTuple):
    query: Tensor  # (B, S, Q)
    keys: Tensor  # (B, T, K)
    values: Tensor  # (B, T, D)
    mask: Tensor | None  # (B, T)


@dataclass(frozen=True)
class Widths:
    query: int
    key: int


@dataclass(frozen=True)
class AttentionReading:
    family = "additive attention"

    query_weight: str
    key_weight: str  # the same as query_weight: one over their concatenation
    transposed: tuple[bool, bool]  # whether they are (in, A)
    query_first: bool  # in the concatenation
    biases: tuple[str, ...]  # (A), which are added up
    v: str
    v_bias: str | None
    g: str | None  # v = g·V/‖V‖
    activation: str
    widths: Widths
    mask: tuple[str, str] = MASKS[0]

    def __str__(self) -> str:
        return f"additive attention with {self.activation}"

    @property
    def names(self) -> tuple[str, ...]:
        others = (name for name in (self.v_bias, self.g) if name is not None)
        return (self.query_weight, self.key_weight, *self.biases, self.v, *others)

    def uses(self) -> Iterator[tuple[AttentionForm, AttentionReading]]:
        for keys, query, arguments in product(KEYS, QUERIES, ARGUMENTS):
            form = AttentionForm(arguments, query, keys, self.widths)
            for mask in MASKS if "mask" in arguments else [self.mask]:
                yield form, replace(self, mask=mask)

    def results(self, parameters: Tensors, inputs: Inputs, wanted: Collection[str] | None = None) -> Tensors:
        w_query, w_key = self._projections(parameters)
        bias = sum(parameters[name] for name in self.biases) if self.biases else None
        v = parameters[self.v].reshape(-1)
        v = v if self.g is None else parameters[self.g].reshape(()) * v / torch.linalg.vector_norm(v)
        query, key = F.linear(inputs.query, w_query, bias), F.linear(inputs.keys, w_key)
        scores = HF.additive_scores(query, key, v, activation=self.activation)  # (B, S, T)
        scores = scores if self.v_bias is None else scores + parameters[self.v_bias].to(scores.dtype)
        masked = scores if inputs.mask is None else self._fill(scores, inputs.mask[:, None])
        weights = torch.softmax(masked, dim=-1)
        results = {"scores": masked, "weights": weights}
        if wanted is None or any(name.startswith("context") for name in wanted):
            results["context"] = torch.matmul(weights, inputs.values)
        return {
            f"{name} {arrangement}": view
            for name, tensor in results.items()
            for arrangement, view in _arrangements(tensor).items()
        }

    def _projections(self, parameters: Tensors) -> tuple[Tensor, Tensor]:
        """w_query (A, Q), w_key (A, K)"""
        names, transposed = (self.query_weight, self.key_weight), self.transposed
        first, second = (
            parameters[name].T if t else parameters[name] for name, t in zip(names, transposed, strict=True)
        )
        if self.query_weight != self.key_weight:
            return first, second
        query = self.widths.query
        return (first[:, :query], first[:, query:]) if self.query_first else (first[:, -query:], first[:, :-query])

    def _fill(self, scores: Tensor, mask: Tensor) -> Tensor:
        true_means, score = self.mask
        fill = torch.finfo(scores.dtype).min if score == "finite" else -torch.inf
        return scores.masked_fill(~mask if true_means == "attend" else mask, fill)


def _arrangements(tensor: Tensor) -> Tensors:
    """(B, S, X) as the one or other returns it."""
    arrangements = {"(B, S, X)": tensor, "(S, B, X)": tensor.transpose(0, 1), "(B, X, S)": tensor.transpose(1, 2)}
    if tensor.shape[1] == 1:
        one = tensor.squeeze(1)
        arrangements |= {"(B, X)": one, "(X, B)": one.t()}
    return arrangements


@dataclass(frozen=True)
class AttentionForm:
    arguments: tuple[str, ...]
    query: str  # one of QUERIES
    keys: str  # one of KEYS
    widths: Widths

    def __str__(self) -> str:
        return f"({', '.join(self.arguments)}) with query ({', '.join(self.query)}), keys ({', '.join(self.keys)})"

    def example(self, size: int, like: Tensor) -> tuple[Any, ...]:
        batch, steps, keys = ((2, 3, 5), (3, 2, 4))[size]
        shape = {"B": batch, "S": steps, "1": 1, "Q": self.widths.query}
        key = randn(batch, keys, self.widths.key, like=like)
        value = randn(batch, keys, self.widths.key, like=like)
        lengths = torch.arange(keys - 1, keys - 1 - batch, -1, device=like.device)
        mask = torch.arange(keys, device=like.device) < lengths[:, None]
        mask[-1] = size == 1  # a row that may attend nothing, or everything
        values = {
            "query": randn(*(shape[dim] for dim in self.query), like=like),
            "keys": key if self.keys == "BTK" else key.transpose(0, 1),
            "values": value if self.keys == "BTK" else value.transpose(0, 1),
            "mask": mask,
        }
        return tuple(values[argument] for argument in self.arguments)

    def bind(self, values: tuple[Any, ...]) -> Inputs | None:
        given = dict(zip(self.arguments, values, strict=True))
        if not all(isinstance(value, Tensor) for value in values):
            return None
        query, keys, mask = given["query"], given["keys"], given.get("mask")
        if query.dim() != len(self.query) or keys.dim() != 3:
            return None
        if "1" in self.query and query.shape[self.query.index("1")] != 1:
            return None
        if self.query == "BQ":
            query = query.unsqueeze(1)
        elif self.query in ("SBQ", "1BQ"):
            query = query.transpose(0, 1)
        batch_first = self.keys == "BTK"
        keys, value = (
            given.get(name, keys) if batch_first else given.get(name, keys).transpose(0, 1)
            for name in ("keys", "values")
        )
        fits = (
            (query.shape[2], keys.shape[2]) == (self.widths.query, self.widths.key)
            and query.shape[0] == keys.shape[0]
            and value.shape[:2] == keys.shape[:2]
            and (mask is None or (mask.dtype == torch.bool and mask.shape == keys.shape[:2]))
        )
        return Inputs(query, keys, value, mask) if fits else None

    def excludes(self, other: AttentionForm) -> bool:
        """A batch of keys looks the same in both layouts; several queries include one."""
        return self.keys != other.keys or (self.query != other.query and len(self.query) == len(other.query))


# ------------------------------------------------------------------------------------------------------- parameters


def readings(shapes: Shapes) -> list[AttentionReading]:
    """All that parameters of these shapes may mean; their names do not matter.

    Two matrices with a side A, or one over the concatenation of query and key; v of A; biases of A, which are added up;
    a single number: the bias of v, or the g of g·V/‖V‖.
    """
    if len(shapes) > MOST_PARAMETERS:
        return []
    numbers = [name for name, shape in shapes.items() if shape.numel() == 1]
    found = []
    for v, shape in shapes.items():
        width = shape.numel()
        if tuple(shape) not in ((width,), (1, width), (width, 1)) or width == 1 or len(numbers) > 1:
            continue
        others = [name for name in shapes if name != v and name not in numbers]
        biases = tuple(name for name in others if tuple(shapes[name]) == (width,))
        matrices = [name for name in others if name not in biases]
        if all(len(shapes[name]) == 2 for name in matrices):
            found += [
                AttentionReading(*projections, biases, v, v_bias, g, activation, widths)
                for *projections, widths in _projections(matrices, shapes, width)
                for v_bias, g in ([(numbers[0], None), (None, numbers[0])] if numbers else [(None, None)])
                for activation in ("tanh", "relu")
            ]
    return found


def _projections(
    matrices: list[str], shapes: Shapes, width: int
) -> Iterator[tuple[str, str, tuple[bool, bool], bool, Widths]]:
    """query_weight, key_weight, transposed, query_first, widths"""
    if len(matrices) == 2:
        for query, key in permutations(matrices):
            for of_query, of_key in product(*(_orientations(shapes[name], width) for name in (query, key))):
                widths = Widths(shapes[query][0 if of_query else 1], shapes[key][0 if of_key else 1])
                yield query, key, (of_query, of_key), True, widths
    if len(matrices) == 1:
        (joint,) = matrices
        for transposed in _orientations(shapes[joint], width):
            both = shapes[joint][0 if transposed else 1]
            for query, key in dict.fromkeys([(width, both - width), (both - width, width)]):
                for query_first in (True, False) if min(query, key) > 0 else ():
                    yield joint, joint, (transposed, transposed), query_first, Widths(query, key)


def _orientations(shape: torch.Size, width: int) -> list[bool]:
    """Whether it is (in, A): there may be two answers, or none."""
    return [transposed for transposed in (False, True) if shape[1 if transposed else 0] == width]
