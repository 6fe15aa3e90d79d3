"""Same inputs, same bits, of whole modules; of the compiled ops alone, tests/native/test_determinism.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests import tolerances
from tests.modules.agreement import examples, pair, randn, results


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Those of the process; an operation that is not deterministic is an error."""
    count = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(count)


@pytest.mark.parametrize("kind", examples())
def test_two_runs(kind):
    arguments, inputs = examples()[kind]
    _, module = pair(kind, **arguments, dtype=torch.float32)
    inputs = torch.utils._pytree.tree_map(lambda t: t.float() if t.is_floating_point() else t, inputs)
    torch.testing.assert_close(results(module, inputs), results(module, inputs), **tolerances.EXACT)


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("kernel", [3, 5])
def test_threads(kernel, save):
    """Also of what PyTorch adds to the compiled ops: the sums for bias and peephole. The attention's projections and
    context are PyTorch's products, which promise nothing of the kind.
    """
    _, module = pair("ConvLSTM", 3, 16, kernel, num_layers=2, peephole="channel", dtype=torch.float32)
    module.save = save
    x = randn(2, 4, 3, 19, 35, dtype=torch.float32)
    torch.set_num_threads(1)
    want = results(module, (x,))
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        torch.testing.assert_close(results(module, (x,)), want, **tolerances.EXACT)
