"""The compiled code on each instruction set that this machine has: the numbers are those of the plain forms."""

from __future__ import annotations

import pytest

from hybridops import native
from tests.processes import run_python

PARITY = """
import sys, pytest
from hybridops import native
assert native.cpu_isa() == {isa!r}, native.cpu_isa()
tests = "native and (channels or kernels or blocks or dtypes or queries_and_keys or mask or magnitude or nonfinite)"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/functional", "-k", tests]))
"""


ISAS = ["portable", "avx2", "avx512", "avx512_bf16"]  # each has all that those before it have


@pytest.mark.parametrize("isa", ISAS)
def test_parity(isa):
    """MALLOC_PERTURB_ makes glibc fill what it allocates and what it frees: the kernels' working memory too."""
    if isa == native.cpu_isa():
        pytest.skip("it is what all other tests run on")
    if ISAS.index(isa) > ISAS.index(native.cpu_isa()):
        pytest.skip("this processor does not have it")
    run_python(PARITY.format(isa=isa), HYBRIDOPS_CPU_ISA=isa, MALLOC_PERTURB_="1")
