"""torch.export of inference: every size a symbol, saved, and run again in a process that only imports the package."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_map, tree_map_only

from hybridops import native
from tests.modules.agreement import examples, pair
from tests.processes import run_python

pytestmark = pytest.mark.slow

RUN_AGAIN = """
import sys, torch, hybridops
from tests import tolerances
for kind in {kinds!r}:
    module = torch.export.load(f"{folder}/{{kind}}.pt2").module()
    for inputs, want in torch.load(f"{folder}/{{kind}}.pt", weights_only=True):
        torch.testing.assert_close(module(*inputs), want, **tolerances.FLOAT64)
        print(kind)
"""


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))
def test_saved_and_loaded(tmp_path):
    for kind, (arguments, inputs) in examples().items():
        _, module = pair(kind, **arguments)
        fewer = tree_map_only(torch.Tensor, lambda t: t[:, :2] if t.dim() == 5 and t.shape[0] == 2 else t[:2], inputs)
        sizes = tree_map(lambda t: dict.fromkeys(range(t.dim()), torch.export.Dim.AUTO), inputs)
        with torch.no_grad():
            program = torch.export.export(module.eval(), inputs, dynamic_shapes=sizes)
            cases = [(some, module(*some)) for some in (inputs, fewer)]
        called = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert any(op.name().startswith("hybridops::") for op in called if isinstance(op, torch._ops.OpOverload))
        torch.export.save(program, tmp_path / f"{kind}.pt2")
        torch.save(cases, tmp_path / f"{kind}.pt")
    ran = run_python(RUN_AGAIN.format(kinds=list(examples()), folder=tmp_path)).split()
    assert ran == [kind for kind in examples() for _ in range(2)]
