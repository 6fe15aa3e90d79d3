"""fuse(model): the plain modules of a model become fused ones."""

from __future__ import annotations

from torch import nn

from hybridops import modules, reference

FUSED: dict[type[nn.Module], type[nn.Module]] = {
    reference.ConvLSTMCell: modules.FusedConvLSTMCell,
    reference.ConvLSTM: modules.FusedConvLSTM,
    reference.ConcatAttention: modules.FusedConcatAttention,
    reference.AdditiveAttention: modules.FusedAdditiveAttention,
}


def fuse(model: nn.Module) -> nn.Module:
    """Turn every module of `model` that is exactly one of `hybridops.reference`'s into its fused class; return `model`.

    It happens in place: the module objects stay the same ones with another class, so parameters, buffers, hooks,
    training mode and whatever else refers to them are kept. A subclass is left alone: it may compute something else.

    Raises:
        TypeError: `model` is not an `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        module.__class__ = FUSED.get(type(module), type(module))
    return model
