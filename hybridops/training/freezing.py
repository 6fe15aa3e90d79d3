"""Frozen and gradually unfrozen parts of a model: a pretrained encoder stays as it is while the rest learns, and is
then trained too, part by part (Howard & Ruder 2018, https://arxiv.org/abs/1801.06146).

    parts = [model.decoder, model.encoder.layer4, model.encoder.layer3]    # in the order they are to be unfrozen
    optimizer = torch.optim.AdamW(parameter_groups(model, parts, lr=1e-3, decay=0.3))
    for epoch in range(10):
        unfreeze_first(parts, epoch // 2)                                  # 0: all frozen ... 3: all trained
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from hybridops.checks import check_number


def freeze(module: nn.Module) -> None:
    """Nothing in the module changes any more, to the bit, until `unfreeze`.

    Its parameters get no gradient, so that every optimizer passes them by, weight decay and momentum included. What has
    buffers (running statistics) is run as in `eval()`, even after `model.train()`. Dropout follows the model's mode.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # an old one would still be stepped with
    for part in module.modules():
        if next(part.buffers(recurse=False), None) is not None and not _hooks(part):
            part.register_forward_pre_hook(_evaluate)


def unfreeze(module: nn.Module) -> None:
    """Undoes `freeze`, and puts into training mode what was kept out of it."""
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    for part in module.modules():
        for key in _hooks(part):
            del part._forward_pre_hooks[key]
            part.training = True


def unfreeze_first(parts: Sequence[nn.Module], count: int) -> None:
    """The first `count` parts train, the others are frozen. What parts share is frozen if one of them is."""
    if not 0 <= count <= len(parts):
        raise ValueError(f"count must be from 0 to the {len(parts)} parts, got {count}")
    for part in parts[:count]:
        unfreeze(part)
    for part in parts[count:]:
        freeze(part)


def parameter_groups(
    model: nn.Module, parts: Sequence[nn.Module], lr: float, decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for any optimizer, each parameter in one: those in no part with `lr`, those of part i with lr·decayⁱ⁺¹.

    Frozen parameters are included: one optimizer serves all stages.
    """
    check_number("lr", lr, low=0)
    check_number("decay", decay, low=0)
    owner = {parameter: i for i in reversed(range(len(parts))) for parameter in parts[i].parameters()}
    groups: list[dict[str, Any]] = [{"params": [], "lr": lr * decay**i} for i in range(len(parts) + 1)]
    for parameter in model.parameters():
        groups[owner.pop(parameter, -1) + 1]["params"].append(parameter)
    if owner:
        raise ValueError(f"parts must be parts of the model, got {len(owner)} parameters that are not in it")
    return groups


def _evaluate(module: nn.Module, inputs: object) -> None:
    module.training = False


def _hooks(module: nn.Module) -> list[int]:
    """Found by the function: so a copied or unpickled model can be unfrozen too."""
    return [key for key, hook in module._forward_pre_hooks.items() if hook is _evaluate]
