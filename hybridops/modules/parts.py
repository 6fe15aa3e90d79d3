"""What a fused module asks of a part before it reads the part's weights in place of calling it.

A part that is more than its weights (another class, as LoRA and quantisation put there; hooks; a forward of its own;
another padding; a weight of another class, as quantisation puts there too) has to be called: the fused module then runs
the plain forward, through its parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hybridops import backends
from hybridops.autograd import under_transform
from hybridops.checks import autocast_is_on

# Hooks before a forward that compute a weight and look at no input: `recompute_weights` runs them.
RECOMPUTING_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Of what class a weight may be that is read, exactly: numbers, or what PyTorch has in their place while it traces. What
# another stands for only its own operations know.
TENSORS = (Tensor, nn.Parameter, FakeTensor, FunctionalTensor)


def check_backend(backend: str | None) -> str | None:
    """The name, as it came; whether that back end is here is asked at a call.

    Raises:
        ValueError: no back end has it.
    """
    return None if backend is None else backends.get(backend).name


def settings(text: str, **settings: object) -> str:
    """`text` and `name=value` of all that are not None, for `extra_repr`."""
    return ", ".join([text, *(f"{name}={value!r}" for name, value in settings.items() if value is not None)]).lstrip(
        ", "
    )


def recompute_weights(*parts: nn.Module) -> None:
    """Run the hooks that compute a weight, of parts whose forward is not called.

    Parametrizations need nothing: they compute the weight where it is read.
    """
    for part in parts:
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, RECOMPUTING_HOOKS):
                hook(part, ())


def reason_not_plain(part: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS)) -> str | None:
    """None where calling `part` is what its class does with its weights, and no more; else why not.

    Args:
        part: what a module would read the weights of.
        kinds: the classes it may be, exactly; a parametrized one of them is its own class.
    """
    kind = type(part)
    if kind not in kinds and not (parametrize.is_parametrized(part) and kind.__base__ in kinds):
        return f"is a {kind.__name__}, not a {' or '.join(each.__name__ for each in kinds)}"
    if "forward" in part.__dict__:
        return "has a forward of its own"
    if has_hooks(part):
        return "has hooks"
    return reason_not_numbers(part) or (_reason_not_same(part) if isinstance(part, CONVOLUTIONS) else None)


def reason_not_numbers(part: nn.Module) -> str | None:
    """None where the part's own parameters are plain tensors; else what one of them is."""
    own = part.parameters() if parametrize.is_parametrized(part) else part._parameters.values()
    for weight in own:
        if weight is not None and type(weight) not in TENSORS:
            return f"has a parameter that is a {type(weight).__name__}"
        if weight is not None and weight.layout is not torch.strided:
            return f"has a parameter of the layout {weight.layout}"
    return None


def runs_plain(
    family: str, backend: str | None, x: Tensor, reasons: Mapping[str, str | None], spatial_dims: int = 0
) -> bool:
    """Whether a fused module has to run the plain forward, or does so in less time.

    - A part that is more than its weights has to be called.
    - Where nothing compiled takes tensors like x, the plain forward does the same in less time than the explicit
      formulas. Those stay where dtypes would differ (autocast), gradients be wrong (volumes in bfloat16), or a
      transform (`torch.func.vmap`) has no rule for PyTorch's own layers.

    Args:
        family, backend, x, spatial_dims: as in `backends.choose`.
        reasons: for each part whose weights would be read, its name and what `reason_not_plain` says of it.

    Raises:
        RuntimeError: a part has to be called, and a compiled back end was named, which runs or raises.
    """
    for name, reason in reasons.items():
        if reason is not None:
            named = backends.named(backend)
            if named not in (None, "reference"):
                raise RuntimeError(f"backend {named!r} was asked for, but {name} {reason}: it has to be called")
            return True
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        return False
    if autocast_is_on(x) or under_transform():
        return False
    return backends.fallback(family, backend, x, spatial_dims)


def has_hooks(part: nn.Module) -> bool:
    """Whether a call of the part runs hooks, its own or those of all modules, that do more than compute a weight."""
    if not all(isinstance(hook, RECOMPUTING_HOOKS) for hook in part._forward_pre_hooks.values()):
        return True
    return any(
        (
            part._forward_hooks,
            part._backward_hooks,
            part._backward_pre_hooks,
            nn_module._global_forward_pre_hooks,
            nn_module._global_forward_hooks,
            nn_module._global_backward_hooks,
            nn_module._global_backward_pre_hooks,
        )
    )


def _reason_not_same(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> str | None:
    """Whether it is more than a convolution with 'same' zero padding."""
    kernel = conv.kernel_size
    same, ones = tuple(size // 2 for size in kernel), (1,) * len(kernel)
    if 0 in [size % 2 for size in kernel]:
        return f"has a kernel of {kernel}, which is not odd"
    weight = conv._parameters.get("weight")  # a parametrized one has the shape of before
    if weight is not None and weight.shape[2:] != kernel:
        return f"has a weight with a kernel of {tuple(weight.shape[2:])}, not {kernel}"
    if conv.padding not in (same, "same"):
        return f"has padding {conv.padding}, not {same}"
    if conv.padding_mode != "zeros":
        return f"has padding_mode {conv.padding_mode!r}, not 'zeros'"
    if conv.stride != ones:
        return f"has stride {conv.stride}, not 1"
    if conv.dilation != ones:
        return f"has dilation {conv.dilation}, not 1"
    return None if conv.groups == 1 else f"has {conv.groups} groups, not 1"
