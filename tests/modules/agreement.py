"""A fused module beside the plain one it stands for: same state_dict, same calls, same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hybridops import modules, reference
from tests import tolerances


def pair(kind: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """plain, fused: with the same random parameters, those that start as zeros included; float64 unless told."""
    torch.manual_seed(0)
    kwargs = {"dtype": torch.float64} | kwargs
    plain, fused = getattr(reference, kind)(*args, **kwargs), getattr(modules, f"Fused{kind}")(*args, **kwargs)
    for name, parameter in plain.named_parameters():
        if "peephole" in name:
            nn.init.normal_(parameter)
    fused.load_state_dict(plain.state_dict(), strict=True)
    return plain, fused


def results(module: nn.Module, inputs: Any, seed: int | None = None) -> tuple[list[Tensor], dict[str, Tensor]]:
    """All output tensors; the gradients of parameters and inputs under a loss that sees every element of them."""
    leaves = [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    if seed is not None:
        torch.manual_seed(seed)
    outputs = [out for out in tree_leaves(module(*inputs)) if out is not None]
    loss = sum((out.double() * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum() for out in outputs)
    named = dict(module.named_parameters()) | {f"input {i}": leaf for i, leaf in enumerate(leaves)}
    grads = torch.autograd.grad(loss, list(named.values()), materialize_grads=True, allow_unused=True)
    return [out.detach() for out in outputs], dict(zip(named, grads, strict=True))


def examples() -> dict[str, tuple[dict[str, Any], tuple[Any, ...]]]:
    """Of each kind of module: arguments of its constructor, and inputs of its forward."""
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    layer = {"input_dim": 3, "hidden_dim": 8, "kernel_size": 3, "peephole": "channel"}
    states = (randn(3, 8, 7, 6), randn(1, 3, 8, 7, 6)[0])
    stacked = (randn(2, 3, 8, 7, 6), randn(1, 2, 3, 8, 7, 6)[0])
    dims = {"query_dim": 10, "key_dim": 12, "attn_dim": 20, "bias": True}
    return {
        "ConvLSTMCell": (layer, (randn(3, 3, 7, 6), states)),
        "ConvLSTM": (layer | {"num_layers": 2}, (randn(3, 6, 3, 7, 6), stacked)),
        "ConcatAttention": ({"hidden_dim": 16}, (randn(3, 16), randn(3, 5, 16), mask)),
        "AttentionDecoder": (
            {"input_dim": 3, "hidden_dim": 6, "memory_dim": 12, "attn_dim": 20, "context_gate": True},
            (randn(3, 4, 3), randn(1, 3, 5, 12)[0], (randn(3, 6), randn(1, 3, 6)[0])),
        ),
        "AdditiveAttention": (dims, (randn(3, 4, 10), randn(3, 5, 12), randn(1, 3, 5, 9)[0], mask)),
    }


def assert_agree(plain: nn.Module, fused: nn.Module, *inputs: Any, **options: Any) -> None:
    torch.testing.assert_close(
        results(fused, inputs, **options), results(plain, inputs, **options), **tolerances.FLOAT64
    )


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)
