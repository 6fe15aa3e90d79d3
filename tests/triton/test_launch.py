"""The grids that CUDA is given: up to 2^31 - 1 blocks along the first axis, and 65535 along the others."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

pytest.importorskip("triton")
from hybridops.contract import Activation, AttentionInputs
from hybridops.triton import additive_attention

MANY = 2**23  # more than 65535 of any block


def test_grids(monkeypatch):
    """Of each kernel, with many queries, keys or sequences; none is run."""
    grids = defaultdict(list)

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]):
            grids[self.name].append(grid)
            return lambda *_, **__: None

    names = {name for name in vars(additive_attention) if name.endswith("_kernel")}
    for name in names:
        monkeypatch.setattr(additive_attention, name, Kernel(name))
    tanh = Activation("tanh", 0.0)
    for batch, queries, keys in ((1, MANY, 1), (1, 1, MANY), (2**17, 1, 1)):
        q, k, v, grad = (torch.empty(*s) for s in ((batch, queries, 1), (batch, keys, 1), (1,), (batch, queries, keys)))
        additive_attention.additive_scores_forward(q, k, v, tanh)
        additive_attention.additive_attention_forward(AttentionInputs(q, k, v, k, None, None), tanh, 1.0)
        additive_attention.additive_scores_backward(grad, q, k, v, tanh)
    assert grids.keys() == names
    for name, of_kernel in grids.items():
        for first, *others in of_kernel:
            assert first < 2**31, name
            assert all(size < 2**16 for size in others), name
