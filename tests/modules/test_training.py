"""A training step as training scripts have it: mixed precision with a GradScaler, clipping, accumulation."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from tests import tolerances
from tests.modules.agreement import examples, pair


@pytest.mark.parametrize("kind", examples())
def test_grad_scaler(kind):
    """float16 under autocast: the gradients come back from their scale, and a step with an overflow is left out."""
    arguments, inputs = examples()[kind]
    inputs = tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, inputs)
    steps = {}
    for scale in (1.0, 8.0, 2.0**60):
        _, module = pair(kind, **arguments, dtype=torch.float32)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        before = [p.clone() for p in module.parameters()]
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with torch.autocast("cpu", torch.float16):
            outputs = [out for out in tree_leaves(module(*inputs)) if out is not None]
        scaler.scale(sum(out.float().square().sum() for out in outputs)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        steps[scale] = [p - b for p, b in zip(module.parameters(), before, strict=True)]
        assert (scaler.get_scale() < scale) == (scale == 2.0**60)
    assert all(step.any() for step in steps[1.0])
    assert not any(step.any() for step in steps[2.0**60])
    for got, want in zip(steps[8.0], steps[1.0], strict=True):
        assert tolerances.largest(got - want) <= tolerances.allowed_error(want, want.double(), torch.float16)


@pytest.mark.parametrize("kind", examples())
def test_accumulation(kind):
    """Two backwards add up in .grad, also where the forward of the second comes before the backward of the first."""
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments)
    first, second = (
        sum(out.square().sum() for out in tree_leaves(module(*inputs)) if out is not None) for _ in range(2)
    )
    first.backward()
    once = [p.grad.clone() for p in module.parameters()]
    second.backward()
    torch.testing.assert_close([p.grad for p in module.parameters()], [2 * grad for grad in once], **tolerances.EXACT)
