"""The package without its compiled library: it says what is missing, and works."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hybridops import native
from tests.processes import ROOT, run_python

pytestmark = pytest.mark.slow

WITHOUT_IT = """
import pytest, torch, hybridops, hybridops.functional as HF
assert hybridops.__file__.startswith({root!r}), hybridops.__file__
assert not hybridops.backends.is_available("native")
print(hybridops.backends.available()["native"])
module = hybridops.FusedConvLSTM(2, 3, 3)
output, (h_n, c_n) = module(torch.randn(1, 2, 2, 4, 4))
output.sum().backward()
context = HF.additive_attention(torch.randn(1, 2, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 5), torch.randn(3))
assert output.shape == (1, 2, 3, 4, 4) and context.shape == (1, 2, 5)
module.backend = "native"
with pytest.raises(RuntimeError) as refused:
    module(torch.randn(1, 2, 2, 4, 4))
print(refused.value)
"""


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the package, without what was compiled."""
    shutil.copytree(ROOT / "hybridops", tmp_path / "hybridops", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    return tmp_path


def test_not_compiled(package):
    said, refused = run_python(WITHOUT_IT.format(root=str(package)), root=package).splitlines()
    assert said == f"hybridops._C is not compiled: {native.library.BUILD}"
    assert "setup.py build_ext" in native.library.BUILD
    assert refused == f"backend 'native' was asked for, but {said}"


@pytest.mark.parametrize("content", [b"no library", b"\x7fELF\x02\x01\x01" + bytes(57)], ids=["text", "cut"])
def test_does_not_load(package, content):
    library = package / "hybridops" / "_C.abi3.so"
    library.write_bytes(content)
    said, refused = run_python(WITHOUT_IT.format(root=str(package)), root=package).splitlines()
    assert said.startswith(f"{library} does not load (")
    assert said.endswith(f"): {native.library.BUILD}")
    assert refused == f"backend 'native' was asked for, but {said}"


def test_no_triton():
    code = """
import sys
sys.modules["triton"] = None
import hybridops
print(hybridops.backends.is_available("triton"), hybridops.backends.is_available("native"))
"""
    assert run_python(code).split() == ["False", "True"]


def test_of_another_version(package):
    """A library that loads but lacks an op, as one that was compiled before a pull may."""
    (package / "hybridops" / "_C.abi3.so").touch()
    stale = "import torch\ntorch.ops.load_library = lambda path: None\n"
    said, refused = run_python(stale + WITHOUT_IT.format(root=str(package)), root=package).splitlines()
    assert said.endswith(native.library.BUILD)
    assert refused == f"backend 'native' was asked for, but {said}"
