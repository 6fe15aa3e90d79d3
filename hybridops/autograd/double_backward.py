"""Gradients through PyTorch's own operations: of a backward that has to be differentiated again, or has no kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def formula_gradients(
    formula: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
    create_graph: bool = True,
) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs` through `formula(*inputs)`, a plain PyTorch restatement of the forward; None = not needed,
    or not reached.

    A compiled backward has no derivative of its own: where one is wanted, the gradients are taken through PyTorch's.
    The formula gets tensors of their own: where one input was made from another, the gradient of the other would go
    through both, and autograd would add the second part once more.
    """
    with torch.enable_grad():
        inputs = [
            _own(t, create_graph) if t is not None and need else t for t, need in zip(inputs, needed, strict=True)
        ]
        outputs = formula(*inputs)
    pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if g is not None and o is not None]
    pairs = [(o, g.to(o.dtype)) for o, g in pairs if o.requires_grad]
    wanted = [t for t, need in zip(inputs, needed, strict=True) if t is not None and need]
    if not pairs or not wanted:
        return (None,) * len(needed)
    outputs, grads = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=create_graph, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)


def _own(t: Tensor, create_graph: bool) -> Tensor:
    return t.view_as(t) if create_graph else t.detach().requires_grad_()
