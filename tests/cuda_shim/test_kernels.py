"""The kernels of csrc/cuda, and the launchers around them, on a CPU: the tests of the native back end run on them."""

from __future__ import annotations

import pytest
import torch

from hybridops.contract import Activation
from hybridops.formulas import additive_attention as formulas
from tests import tolerances
from tests.cuda_shim.sanitizer import environment
from tests.cuda_shim.test_shim import ORDERS
from tests.problems import attention_inputs
from tests.processes import run_python

PARITY = """
import sys, pytest
plugins = ["-p", "no:cacheprovider", "-p", "tests.cuda_shim.plugin"]
sys.exit(pytest.main(["-q", *plugins, "tests/functional", "-k", "native and not decoder and ({which})"]))
"""
TILES = "(tiles and not large_batch) or queries_and_keys or dtypes or masks or (kernels and not in_bfloat16)"


@pytest.mark.parametrize("order", ORDERS)
def test_parity(shim, order):
    run_python(PARITY.format(which=TILES), HYBRIDOPS_SHIM=str(shim), HYBRIDOPS_SHIM_ORDER=order)


@pytest.mark.parametrize(
    "which",
    [
        "channels or layouts or states",
        "magnitude or limits or long_rows and shares",
        "nonfinite or widths_of_values",
    ],
)
def test_layouts_and_values(shim, which):
    run_python(PARITY.format(which=which), HYBRIDOPS_SHIM=str(shim))


SIZES = """
import sys, pytest
plugins = ["-p", "no:cacheprovider", "-p", "tests.cuda_shim.plugin"]
which = "not step and not prepare and not key_ and not pack and not linear"  # what only the CPU has
sys.exit(pytest.main(["-q", *plugins, "tests/native/test_sizes.py", "-k", which]))
"""


def test_wrong_sizes(shim):
    run_python(SIZES, HYBRIDOPS_SHIM=str(shim))


def test_parity_under_address_sanitizer(sanitized_shim):
    """No kernel reads or writes outside its tensors or its shared memory."""
    run_python(
        PARITY.format(which=f"{TILES} or channels or widths_of_values"),
        HYBRIDOPS_SHIM=str(sanitized_shim),
        **environment(),
    )


def test_the_same_bits_in_any_order(shim, monkeypatch):
    """No sum is collected in the order in which threads or blocks come by."""
    torch.ops.load_library(str(shim))
    ops = torch.ops.hybridops_shim
    inputs = attention_inputs(batch=3, queries=70, keys=33, width=40)
    q, k, v = (inputs[name].float() for name in ("query", "key", "v"))
    grad = torch.randn(3, 70, 33, generator=torch.Generator().manual_seed(0))
    results = []
    for order in ORDERS:
        monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)
        scores = ops.additive_scores_forward(q, k, v, 0, 0.0, None, None)
        results.append((scores, *ops.additive_scores_backward(grad, q, k, v, 0, 0.0)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], **tolerances.EXACT)


def test_tiles_in_turn(shim):
    """Of a batch so large that a block of threads takes several. (Its forward has a block a tile: a minute here.)"""
    torch.ops.load_library(str(shim))
    inputs = attention_inputs(batch=520, queries=70, keys=8, width=1)
    q, k, v = (inputs[name] for name in ("query", "key", "v"))
    grad = torch.randn(520, 70, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = torch.ops.hybridops_shim.additive_scores_backward(grad, q, k, v, 1, 0.0)
    want = formulas.additive_scores_backward(grad, q, k, v, Activation("relu", 0.0))
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)
