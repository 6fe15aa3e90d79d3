"""Parts of a module whose weights are used without calling them: they have to do what these say, and no more."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as _every_module
from torch.nn.utils import parametrize

from hybridops.modules.recomputed import RECOMPUTING_HOOKS

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def reason_not_plain(child: nn.Module) -> str | None:
    """Why a convolution or linear layer may compute something else than its weights say; None if it cannot.

    Parametrizations, and the hooks of `weight_norm`, `spectral_norm` and `prune`, make weights: they are fine.
    """
    kind = type(child).__bases__[0] if parametrize.is_parametrized(child) else type(child)
    if kind not in (*CONVOLUTIONS, nn.Linear):
        return f"is a {kind.__name__}, and not exactly one of PyTorch's convolutions or a Linear"
    if "forward" in vars(child):
        return "has a forward of its own"
    if has_hooks(child):
        return "has hooks, which would no longer be called"
    if kind is nn.Linear:
        return None
    same = ("same", tuple(size // 2 for size in child.kernel_size))
    if child.padding not in same or child.padding_mode != "zeros" or not all(size % 2 for size in child.kernel_size):
        return "does not pad with zeros to the same size under an odd kernel"
    if {*child.stride, *child.dilation, child.groups} != {1}:
        return "has a stride, a dilation or groups"
    return None


def has_hooks(child: nn.Module) -> bool:
    """Whether a call of it, or of any module, runs hooks that do more than compute a weight."""
    if child._forward_hooks or child._backward_hooks or child._backward_pre_hooks:
        return True
    if not all(isinstance(hook, RECOMPUTING_HOOKS) for hook in child._forward_pre_hooks.values()):
        return True
    return bool(_every_module._global_forward_hooks or _every_module._global_forward_pre_hooks)
