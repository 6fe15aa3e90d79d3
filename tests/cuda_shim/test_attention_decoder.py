"""The attention decoder of csrc/cuda on a CPU: the tests of the CPU's own op and of the function run on it."""

from __future__ import annotations

import ctypes
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from hybridops.native import additive_attention
from hybridops.native import attention_decoder as native
from tests import tolerances
from tests.cuda_shim.sanitizer import environment
from tests.cuda_shim.test_shim import ORDERS
from tests.decoder_problems import CELLS, QUERIES
from tests.native.test_attention_decoder import ODD, SIZES, VARIANTS, problem, results, to
from tests.native.test_sizes import GRU, arguments
from tests.processes import run_python

RUN = """
import sys, pytest
plugins = ["-p", "no:cacheprovider", "-p", "tests.cuda_shim.plugin"]
sys.exit(pytest.main(["-q", *plugins, "tests/{file}/test_attention_decoder.py", "-k", "{which}"]))
"""
cells = pytest.mark.parametrize("cell", CELLS)
queries = pytest.mark.parametrize("query", QUERIES)


@pytest.mark.parametrize("order", ORDERS)
def test_steps(shim, order):
    which = "variants or one_gradient or no_steps"
    run_python(RUN.format(file="native", which=which), HYBRIDOPS_SHIM=str(shim), HYBRIDOPS_SHIM_ORDER=order)


@pytest.mark.parametrize(
    "which",
    [
        "sizes or empty",
        "half_precision or nothing_saved or nonfinite",
        "magnitudes and (1.0 or 30.0 or 1000.0)",
        "share or strides or independent",
    ],
)
def test_sizes_and_values(shim, which):
    run_python(RUN.format(file="native", which=which), HYBRIDOPS_SHIM=str(shim))


def test_the_function(shim):
    """What its tests ask for beside the op's: layouts, shapes of masks, dropout, what is behind a row's end."""
    which = (
        "masks or score_bias_shapes or lengths_of or behind_the_end or masked or nothing or (dropout and not location)"
    )
    which += " or autocast or layouts or no_views or left_out"
    run_python(RUN.format(file="functional", which=f"native and ({which})"), HYBRIDOPS_SHIM=str(shim))


def test_under_address_sanitizer(sanitized_shim):
    """No kernel reads or writes outside its tensors or its shared memory."""
    which = "(variants and everything and dtype1) or (sizes and dtype2) or (nothing_saved and everything)"
    run_python(RUN.format(file="native", which=which), HYBRIDOPS_SHIM=str(sanitized_shim), **environment())


@pytest.fixture
def shim_ops(shim, monkeypatch):
    torch.ops.load_library(str(shim))
    monkeypatch.setattr(torch.ops, "hybridops", torch.ops.hybridops_shim)
    for name in ("pack_weights", "prepare_keys"):  # which only the CPU's ops have a use for
        monkeypatch.setattr(native, name, lambda *_: None)
    monkeypatch.setattr(additive_attention, "prepare_keys", native.prepare_keys)
    return torch.ops.hybridops


@pytest.mark.usefixtures("shim_ops")
@cells
@queries
def test_the_same_bits_in_any_order(monkeypatch, cell, query):
    inputs, options = problem(cell, query, **ODD[1], **VARIANTS["everything"])
    inputs = to(inputs, torch.float32)
    found = []
    for order in ORDERS:
        monkeypatch.setenv("HYBRIDOPS_SHIM_ORDER", order)
        found.append(results(native, inputs, options))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **tolerances.EXACT)


@pytest.mark.usefixtures("shim_ops")
@cells
@queries
def test_kernels_of_a_step(shim, cell, query):
    """Of our own, noted block by block: of a row of the batch each has one. Beside them are the library's products."""
    names = ctypes.CDLL(str(shim)).hybridops_shim_launched
    names.restype = ctypes.c_char_p
    counts = []
    for steps in (2, 3):
        names()
        results(native, *problem(cell, query, **SIZES | {"batch": 1, "steps": steps}))
        counts.append(Counter(line.split()[0] for line in names().decode().splitlines()))
    assert counts[1] - counts[0] == Counter(
        {
            "additive_attention_kernel", "additive_attention_combine_kernel", "attention_decoder_context_gate_kernel",
            f"attention_decoder_{cell}_kernel", f"attention_decoder_{cell}_backward_kernel",
            "attention_decoder_context_backward_kernel", "attention_decoder_softmax_backward_kernel",
            "additive_scores_backward_kernel", "additive_sum_parts_kernel",
        }
    )  # fmt: skip


def test_packed_weights_are_refused(shim_ops):
    packed = torch.zeros(64, dtype=torch.uint8)
    given = arguments("attention_decoder_forward") | {"packed": packed}
    with pytest.raises(RuntimeError, match="attention_decoder_forward: packed must be None on a GPU, got a tensor"):
        shim_ops.attention_decoder_forward(*given.values())


@pytest.mark.parametrize("op", ["attention_decoder_forward", "attention_decoder_backward"])
@pytest.mark.parametrize("kind", ["", GRU])
@pytest.mark.parametrize("query", [0, 1])
def test_what_torch_compile_is_told(shim, op, kind, query):
    torch.ops.load_library(str(shim))
    for optional in (
        {},
        {"save": False},
        {"keep": None},
        {"w_beta": None, "b_beta": None, "beta": None, "ungated": None},
    ):
        given = arguments(op + kind)
        given |= {name: value for name, value in optional.items() if name in given}
        given |= dict.fromkeys({"key_exponentials", "key_bounds", "packed"} & given.keys())
        given["query"] = query
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(t) if isinstance(t, Tensor) else t for t in given.values()]
            told = getattr(torch.ops.hybridops, op)(*fakes)
        for fake, real in zip(told, getattr(torch.ops.hybridops_shim, op)(*given.values()), strict=True):
            assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
