"""Transforms of functions (`torch.func`): what runs under them is plain PyTorch, which they can take apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def under_transform(*grads: Tensor | None) -> bool:
    """Whether a call is under `vmap`, `grad`, `jvp`, `jacrev` or another transform of `torch.func`; in a backward,
    whether the gradients given to it are a batch of them (`is_grads_batched`, `jacobian(vectorize=True)`).

    An autograd Function refuses `grad` and `jvp` there, and the compiled ops have no rule for a batch of problems: the
    formulas of hybridops.reference, which are differentiable as they stand, are run in their place.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling():
        return False
    return any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)


def in_forward_mode() -> bool:
    """Whether tensors may carry tangents (`torch.autograd.forward_ad`)."""
    return forward_ad._current_level >= 0
