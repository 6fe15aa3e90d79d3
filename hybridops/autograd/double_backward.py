"""Gradients that can be differentiated again: the backward of a Function under create_graph=True."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiable_gradients(
    formula: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs` through `formula(*inputs)`, a plain PyTorch restatement of the forward.

    A compiled backward has no derivative of its own: where one is wanted, the gradients are taken through PyTorch's.
    The formula gets tensors of their own, still in the graph: where one input was made from another, the gradient of
    the other would go through both, and autograd would add the second part once more.
    """
    with torch.enable_grad():
        inputs = [t.view_as(t) if need else t for t, need in zip(inputs, needed, strict=True)]
        outputs = formula(*inputs)
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
