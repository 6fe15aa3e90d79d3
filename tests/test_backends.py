"""Which back end runs a call: named by argument, context, environment, or chosen; a named one runs or raises."""

from __future__ import annotations

import dataclasses
import logging
import textwrap
import types
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import hybridops
import hybridops.functional as HF
from hybridops import backends, native
from hybridops.contract import BackEnd
from hybridops.native.library import BUILD
from tests.processes import ROOT, copy_uncompiled, run_python

here = pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))


@pytest.fixture(scope="module")
def uncompiled(tmp_path_factory) -> Path:
    return copy_uncompiled(tmp_path_factory.mktemp("uncompiled"))


Q, V = torch.ones(1, 2, 3), torch.ones(3)


def chosen(name: str | None = None, family: str = "conv_lstm", x: torch.Tensor = Q, dims: int = 2) -> str:
    """The name of the back end that would run."""
    module = backends.choose(family, name, x, dims)
    return next(name for name in backends.names() if backends.get(name).families.get(family) is module)


def test_available():
    assert list(backends.available()) == ["reference", "native", "triton"]
    assert all(isinstance(text, str) and text for text in backends.available().values())
    assert backends.is_available("reference")
    assert backends.is_available("native") == (native.unavailable_reason() is None)


@here
def test_the_fastest_that_takes_these_inputs():
    assert chosen() == "native"
    assert chosen(family="additive_attention") == "native"
    assert chosen(dims=3) == "reference"
    assert chosen(x=torch.ones(1, device="meta")) == "reference"
    assert chosen(x=torch.ones(1, dtype=torch.complex64)) == "reference"


@here
def test_precedence():
    assert chosen("reference") == "reference"
    with hybridops.use_backend("reference"):
        assert chosen() == "reference"
        assert chosen("native") == "native"  # an argument goes before
        with hybridops.use_backend("native"):
            assert chosen() == "native"
        with hybridops.use_backend(None):
            assert chosen() == "native"
            assert chosen(dims=3) == "reference"  # not named: it may fall back
        assert chosen() == "reference"
    assert chosen() == "native"


def test_use_backend_ends_with_an_error():
    with pytest.raises(KeyError), hybridops.use_backend("reference"):
        raise KeyError
    assert chosen() == ("native" if native.unavailable_reason() is None else "reference")


@pytest.mark.parametrize("name", ["cuda", "Native", "", "reference ", 1, b"native"])
def test_unknown_names(name):
    calls = (
        lambda: HF.additive_scores(Q, Q, V, backend=name),
        lambda: backends.is_available(name),
        lambda: hybridops.use_backend(name).__enter__(),
        lambda: hybridops.FusedAdditiveAttention(3, 3, 3, backend=name)(Q, Q),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"^backend must be one of 'reference', 'native', 'triton', got"):
            call()


@pytest.mark.parametrize("way", ["argument", "context"])
@pytest.mark.parametrize("reason", ["is not here", "does not take three dimensions"])
def test_a_named_back_end_never_falls_back(way, reason, monkeypatch):
    x, w = torch.ones(1, 2, 3, 1, 1, 1), torch.ones(4, 3, 1, 1, 1)
    if reason == "is not here":
        gone = dataclasses.replace(native.BACK_END, unavailable_reason=lambda device_type: reason)
        monkeypatch.setitem(backends._back_ends, "native", gone)
        x, w = x[..., 0], w[..., 0]
    named, argument = (hybridops.use_backend("native"), None) if way == "context" else (nullcontext(), "native")
    with named, pytest.raises(RuntimeError, match=r"^backend 'native' was asked for, but "):
        HF.conv_lstm(x, None, w, w[:, :1], backend=argument)


@pytest.mark.parametrize("family", ["conv_lstm", "additive_attention"])
def test_the_reason_is_logged(family, caplog):
    caplog.set_level(logging.DEBUG, logger="hybridops")
    HF.additive_scores(Q, Q, V)
    chosen(family=family)
    chosen("reference", family=family)  # named: nothing to give a reason for
    messages = [record.getMessage() for record in caplog.records if record.name == "hybridops.backends"]
    assert len(messages) == 2
    assert messages[1].startswith(f"{family}: {chosen()} (")
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


@here
def test_the_reason_against_is_logged(caplog):
    caplog.set_level(logging.DEBUG, logger="hybridops")
    chosen(dims=3)
    assert caplog.messages == [
        "conv_lstm: reference (native: the compiled ConvLSTM takes 1 or 2 spatial dimensions, not 3)"
    ]


SAY = """
import torch, hybridops
from hybridops import backends
def chosen(name=None):
    return backends.choose("conv_lstm", name, torch.ones(1), 2).__name__.split(".")[1].replace("formulas", "reference")
names = [chosen(), chosen("native")]
with hybridops.use_backend("native"):
    names.append(chosen())
with hybridops.use_backend(None):
    names.append(chosen())
print(*names)
"""


@pytest.mark.slow
@here
def test_environment_variable():
    """An argument and a context go before it."""
    assert run_python(SAY, HYBRIDOPS_BACKEND="reference").split() == ["reference", "native", "native", "native"]


@pytest.mark.slow
def test_unknown_name_in_the_environment():
    code = """
import pytest, torch
from hybridops import backends
with pytest.raises(ValueError) as refused:
    backends.choose("conv_lstm", None, torch.ones(1), 2)
print(refused.value)
"""
    assert run_python(code, HYBRIDOPS_BACKEND="fastest").startswith("backend must be one of 'reference', ")


@pytest.mark.slow
def test_empty_environment_variable_names_nothing():
    code = "import torch; from hybridops import backends; backends.choose('conv_lstm', None, torch.ones(1), 3)"
    assert run_python(code, HYBRIDOPS_BACKEND="") == ""


def warnings_of(calls: str, package: Path, **environment: str) -> list[str]:
    """What the calls warn of, and then `chosen`, in a process whose hybridops stands in that folder."""
    code = f"""
import warnings, torch, hybridops, hybridops.functional as HF
from hybridops import backends
assert hybridops.__file__.startswith({str(package)!r}), hybridops.__file__
q, v = torch.ones(1, 2, 3), torch.ones(3)
frames, lstm = torch.ones(1, 2, 2, 4, 4), hybridops.FusedConvLSTM(2, 3, 3)
cube = torch.ones(1, 1, 2, 3, 3, 3), None, torch.ones(4, 2, 1, 1, 1), torch.ones(4, 1, 1, 1, 1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
{textwrap.indent(textwrap.dedent(calls), "    ")}
for warning in caught:
    assert warning.category is UserWarning
    print(warning.message)
"""
    return run_python(code, root=package, **environment).splitlines()


CALLS = """
HF.additive_scores(q, q, v)
lstm(frames)
assert HF.conv_lstm(*cube)[0].dim() == 6
assert backends.fallback("conv_lstm", None, frames, 2)
"""


@pytest.mark.slow
def test_plain_pytorch_for_want_of_a_build_warns_once(uncompiled):
    assert warnings_of(CALLS, uncompiled) == [
        f"hybridops runs on plain PyTorch, which is slower: native: hybridops._C is not compiled: {BUILD}"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "calls",
    [
        "with hybridops.use_backend('reference'):\n    HF.additive_scores(q, q, v)\n    lstm(frames)",
        "HF.additive_scores(q, q, v, backend='reference')",
        "HF.conv_lstm(*cube)",  # which the compiled ops would not take either
        "assert not backends.fallback('conv_lstm', 'reference', frames, 2)",
        "assert backends.fallback('conv_lstm', None, frames.to('meta'), 2)",
        "assert backends.fallback('conv_lstm', None, frames.to(torch.complex64), 2)",
        "torch.compile(HF.additive_scores, backend='eager', fullgraph=True)(q, q, v)",
        "torch.compile(lambda x: backends.fallback('conv_lstm', None, x, 2), backend='eager', fullgraph=True)(q)",
    ],
    ids=["context", "argument", "3-D", "named", "meta", "complex", "compiled", "fallback-compiled"],
)
def test_no_warning(uncompiled, calls):
    assert warnings_of(calls, uncompiled) == []


@pytest.mark.slow
def test_no_warning_where_the_environment_names_it(uncompiled):
    calls = CALLS.replace("assert backends", "assert not backends")
    assert warnings_of(calls, uncompiled, HYBRIDOPS_BACKEND="reference") == []


@pytest.mark.slow
@here
def test_no_warning_with_compiled_ops():
    assert warnings_of("HF.additive_scores(q, q, v)\nlstm(frames)\nHF.conv_lstm(*cube)", ROOT) == []


@here
def test_fallback():
    """Only where choose gives the reference and nobody asked for it."""
    assert not backends.fallback("conv_lstm", None, Q, 2)
    assert not backends.fallback("additive_attention", None, Q)
    assert backends.fallback("conv_lstm", None, Q, 3)
    assert backends.fallback("additive_attention", None, Q.to(torch.complex64))
    for name in backends.names():
        assert not backends.fallback("conv_lstm", name, Q, 3)
        with hybridops.use_backend(name):
            assert not backends.fallback("conv_lstm", None, Q, 3)


@here
def test_fallback_is_logged(caplog):
    caplog.set_level(logging.DEBUG, logger="hybridops")
    backends.fallback("conv_lstm", None, Q, 2)  # choose, which is called next, says it
    backends.fallback("conv_lstm", None, Q, 3)
    assert [message.partition(" (")[0] for message in caplog.messages] == ["conv_lstm: reference"]


def test_another_back_end(monkeypatch):
    """A folder of its own and one call make one: here NumPy, for the scores on the CPU."""

    def additive_scores_forward(q, k, v, activation):
        assert activation.kind == "tanh"
        return torch.from_numpy(np.tanh(q.numpy()[:, :, None] + k.numpy()[:, None]) @ v.numpy())

    impl = types.SimpleNamespace(__name__="with_numpy", additive_scores_forward=additive_scores_forward)
    back_end = BackEnd(
        name="numpy",
        families={"additive_attention": impl},
        priority={"cpu": 3},
        unavailable_reason=lambda device_type: None,
        unsupported_reason=lambda family, x, dims: None if x.dtype == torch.float64 else f"NumPy knows no {x.dtype}",
        description=lambda: "NumPy on the CPU",
    )
    for registry in ("_back_ends", "_by_priority"):
        monkeypatch.setattr(backends, registry, dict(getattr(backends, registry)))
    backends.register(back_end)
    assert backends.available()["numpy"] == "NumPy on the CPU"
    q, v = torch.randn(1, 2, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    assert backends.choose("additive_attention", None, q) is impl
    want = HF.additive_scores(q, q, v, backend="reference")
    for name in (None, "numpy"):
        torch.testing.assert_close(HF.additive_scores(q, q, v, backend=name), want)
    assert chosen(family="additive_attention") != "numpy"  # of another dtype
    assert chosen() != "numpy"  # of another family
    with pytest.raises(RuntimeError, match=r"^backend 'numpy' was asked for, but NumPy knows no torch.float32"):
        HF.additive_scores(Q, Q, V, backend="numpy")
    with pytest.raises(RuntimeError, match=r"^backend 'numpy' was asked for, but it has no conv_lstm"):
        backends.choose("conv_lstm", "numpy", q)
