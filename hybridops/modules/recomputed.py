"""Weights that torch.nn.utils.weight_norm, .spectral_norm and .prune compute in a hook before a module's forward."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

RECOMPUTING_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)


def recompute_weights(*modules: nn.Module) -> None:
    """Run those hooks of modules whose weights are used without their forward; they look at no input.

    Parametrizations need nothing: they compute the weight where it is read.
    """
    for module in modules:
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, RECOMPUTING_HOOKS):
                hook(module, ())
