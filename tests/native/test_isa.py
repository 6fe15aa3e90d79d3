"""The compiled code on each instruction set that this machine has: the numbers are those of the plain forms."""

from __future__ import annotations

import pytest

from hybridops import native
from tests.processes import run_python

pytestmark = pytest.mark.slow

PARITY = """
import sys, pytest
from hybridops import native
assert native.cpu_isa() == {isa!r}, native.cpu_isa()
tests = "native and (channels or kernels or blocks or dtypes or queries_and_keys or mask or magnitude or nonfinite)"
failed = pytest.main(["-q", "-p", "no:cacheprovider", "tests/functional", "-k", tests])
for path, tests in {{"winograd": "parity or one_large_value", "attention_decoder": "", "linear": ""}}.items():
    failed = failed or pytest.main(["-q", "-p", "no:cacheprovider", f"tests/native/test_{{path}}.py", "-k", tests])
sys.exit(failed)
"""


ISAS = ["portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"]  # each has all that those before it have


def is_here(isa: str) -> bool:
    return ISAS.index(isa) <= ISAS.index(native.cpu_isa())


@pytest.mark.parametrize("isa", ISAS)
def test_parity(isa):
    """MALLOC_PERTURB_ makes glibc fill what it allocates and what it frees: the kernels' working memory too."""
    if isa == native.cpu_isa():
        pytest.skip("it is what all other tests run on")
    if not is_here(isa):
        pytest.skip("this processor does not have it")
    run_python(PARITY.format(isa=isa), HYBRIDOPS_CPU_ISA=isa, MALLOC_PERTURB_="1")


CASES = """
import os, pytest, torch
from hybridops.contract import Activation, AttentionInputs
from hybridops.native import additive_attention as attention
from tests import tolerances

def case(width, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (2, 9), "weight": (width, 9), "k": (2, 7, width), "v": (width,), "value": (2, 7, 3)}
    given = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    return given, attention.prepare_keys(given["k"], "tanh")

widths = (1, 5, 16, 20, 40, 64, 100)  # of which all instruction sets pad some to the same
cases = [case(width, dtype) for width in widths for dtype in (torch.float32, torch.float64)]
"""
PREPARE = CASES + 'torch.save([prepared for _, prepared in cases], os.environ["PREPARED"])'
USE = (
    CASES
    + """
def assert_right_or_refused(name, got, own, function):
    same = got.shape == own.shape
    print(isa, name, same)
    if same:
        tolerance = tolerances.FLOAT64 if own.dtype == torch.float64 else {"rtol": 0.0, "atol": 2 * tolerances.SCORE}
        torch.testing.assert_close(function(), want, **tolerance)
        return
    with pytest.raises(RuntimeError, match=f"{name} must have shape"):
        function()

loaded = {isa: torch.load(os.path.join(os.environ["PREPARED"], isa)) for isa in os.listdir(os.environ["PREPARED"])}
for isa, i in [(isa, i) for isa in loaded for i in range(len(cases))]:
    (given, own_keys), keys = cases[i], loaded[isa][i]
    k, v, value = given["k"], given["v"] / len(given["v"]), given["value"]
    options = (Activation("tanh", 0.0), 1.0)
    inputs = AttentionInputs((given["query"] @ given["weight"].T)[:, None], k, v, value, None, None)
    context, weights = want = attention.additive_attention_forward(inputs, *options)
    attend = lambda: attention.additive_attention_forward(inputs, *options, keys)
    assert_right_or_refused("key_exponentials", keys[0], own_keys[0], attend)
    want = (context[:, 0], weights[:, 0])
    query = given["query"]
    step = (query, (given["weight"], None), inputs._replace(v=v[None]), *options)
    by_keys = lambda: attention.additive_attention_step(*step, keys, True)
    assert_right_or_refused("key_exponentials", keys[0], own_keys[0], by_keys)
"""
)


def test_prepared_elsewhere(tmp_path):
    """What was prepared on another instruction set gives the right numbers or is refused."""
    isas = [isa for isa in ISAS[:3] if is_here(isa)]
    for isa in isas:
        run_python(PREPARE, HYBRIDOPS_CPU_ISA=isa, PREPARED=str(tmp_path / isa))
    for isa in isas:
        said = run_python(USE, HYBRIDOPS_CPU_ISA=isa, PREPARED=str(tmp_path)).splitlines()
        for other in isas:
            assert said.count(f"{other} key_exponentials True") >= 4  # of a width of 64
