"""Transforms of functions (`torch.func`) and forward-mode derivatives: what is plain PyTorch under them, and what is
refused.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad


def under_transform() -> bool:
    """Whether a call is under `vmap`, `grad`, `jvp`, `jacrev` or another transform of `torch.func`."""
    return torch._C._are_functorch_transforms_active()


def needs_formulas(impl: object, formulas: ModuleType) -> bool:
    """Whether a forward has to be `formulas`, differentiable as they stand, with no Function around.

    Under a transform, whatever the back end: a Function refuses `grad` and `jvp`, and the compiled ops have no rule for
    a batch of problems. While exporting to ONNX, which has none of the ops. Where tensors may carry tangents
    (`torch.autograd.forward_ad`), for the reference back end; the others refuse a tangent.
    """
    return under_transform() or torch.onnx.is_in_onnx_export() or (impl is formulas and forward_ad._current_level >= 0)


def needs_differentiable_gradients(*grads: Tensor | None) -> bool:
    """Whether a backward, given these gradients, has to be made of PyTorch's own operations: under create_graph=True,
    or where the gradients are a batch of them (`is_grads_batched`, `jacobian(vectorize=True)`).
    """
    if torch.is_grad_enabled() or under_transform():
        return True
    if torch.compiler.is_compiling():
        return False
    return any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)


def refuse_forward_mode(*tensors: Tensor | None) -> None:
    """Compiled code has no forward-mode derivative, and would drop a tangent without a word."""
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError("the compiled ops have no forward-mode derivative: use backend='reference'")
