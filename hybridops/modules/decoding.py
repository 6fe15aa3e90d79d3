"""A step of decoding as one op: the projection of the query, and attention over prepared keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _every_module

from hybridops import backends
from hybridops.modules.recomputed import recompute_weights
from hybridops.reference.additive_attention import AdditiveAttention, PreparedKeys

# Of more queries PyTorch's product is as fast, and it knows the matrix units of processors that have them.
MOST_ROWS = 512


@dataclass(frozen=True, eq=False)
class DecodingStep:
    """The same at every step: the keys, and the query's weight, as the back end takes it, in its present state."""

    backend: str
    keys: PreparedKeys
    exponentials: tuple[Tensor, Tensor] | None  # of the keys
    weight: nn.Parameter
    state: tuple[int, int]
    projection: Tensor

    def __call__(
        self, module: AdditiveAttention, query: Tensor, keys: PreparedKeys, need_weights: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """context and weights as `module` gives them; None where it has more to do than this op, or other things."""
        linear, mine = module.query_proj, self.keys
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or (module.training and module.dropout):
            return None
        if keys.key is not mine.key or keys.value is not mine.value or keys.mask is not mine.mask:
            return None
        if not _is_plain(linear) or linear.weight is not self.weight or _state(self.weight) != self.state:
            return None
        recompute_weights(module.v)
        v, bias, batch = module.v.weight, linear.bias, mine.key.shape[0]
        outputs, inputs = self.weight.shape
        if type(query) is not Tensor or not _are_like(self.weight, query, v, bias):
            return None
        if v.shape != (1, outputs) or (bias is not None and bias.shape != (outputs,)):
            return None
        shape = query.shape
        if len(shape) not in (2, 3) or shape[-1] != inputs or shape[0] == 0 or shape[0] % batch:
            return None
        rows = shape.numel() // inputs
        if rows > MOST_ROWS:
            return None
        run = backends.choose("additive_attention", module.backend, query)
        if run.__name__ != self.backend or torch.is_autocast_enabled(query.device.type):
            return None
        mask = mine.mask
        if mask is not None:
            mask = mask.expand(batch, rows // batch, -1)
        context, weights = run.additive_attention_step(
            query, self.projection, bias, mine.key, v, mine.value, mask,
            module.scale, module.activation, module.negative_slope, self.exponentials, need_weights,
        )  # fmt: skip
        return context, weights if need_weights else None


def prepare_step(
    module: AdditiveAttention, keys: PreparedKeys, exponentials: tuple[Tensor, Tensor] | None
) -> DecodingStep | None:
    """None where the back end has no such op, or there will be more to do than it does."""
    linear, key = module.query_proj, keys.key
    weight = linear.weight
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(key.device.type):
        return None
    if not _is_plain(linear) or type(weight) is not nn.Parameter or weight.is_inference():
        return None
    if key.shape[0] == 0 or weight.shape != (key.shape[2], module.query_dim) or not _are_like(key, weight, keys.value):
        return None
    if keys.mask is not None and keys.mask.shape[1] != 1:  # for each query its own
        return None
    run = backends.choose("additive_attention", module.backend, key)
    projection = run.prepare_projection(weight)
    if projection is None:
        return None
    return DecodingStep(run.__name__, keys, exponentials, weight, _state(weight), projection)


def _state(weight: Tensor) -> tuple[int, int]:
    """Another one after a change in place, and where other memory was put under the parameter."""
    return weight._version, weight.data_ptr()


def _is_plain(linear: nn.Module) -> bool:
    """A call of it is a product and no more: no subclass, no forward put over its own, no hooks, no global ones."""
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear):
        return False
    return not (_every_module._global_forward_hooks or _every_module._global_forward_pre_hooks)


def _are_like(like: Tensor, *tensors: Tensor | None) -> bool:
    dtype, device = like.dtype, like.device
    return all(t is None or (t.dtype is dtype and t.device == device) for t in tensors)
