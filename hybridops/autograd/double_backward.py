"""Gradients that can be differentiated again: the backward of a Function under create_graph=True."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiable_gradients(
    formula: Callable[[], Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs` through `formula`, a plain PyTorch restatement of the forward that closes over them.

    A compiled backward has no derivative of its own: where one is wanted, the gradients are taken through PyTorch's.
    """
    with torch.enable_grad():
        outputs = formula()
    pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if g is not None and o.requires_grad]
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
    grads = iter(
        torch.autograd.grad(
            [o for o, _ in pairs], wanted, [g.to(o.dtype) for o, g in pairs], create_graph=True, allow_unused=True
        )
        if pairs and wanted
        else [None] * len(wanted)
    )
    return tuple(next(grads) if need else None for need in needed)
