"""Back ends and devices to run on, and memory that is NaN until it is written."""

from __future__ import annotations

import os

# Before torch is imported: waiting for the next small op by spinning takes six times as long on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products on a GPU warn that bits may differ

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

from hybridops import backends, native, triton

settings.register_profile("hybridops", deadline=None, max_examples=100, print_blob=True)  # compiling takes its time
settings.load_profile("hybridops")


class Target(NamedTuple):
    backend: str
    device: str


def target_params() -> Iterator[pytest.param]:
    """The compiled back end is part of what is tested: without it its tests are skipped aloud, not left out."""
    why = native.unavailable_reason()
    yield pytest.param(Target("reference", "cpu"), id="reference")
    yield pytest.param(Target("native", "cpu"), id="native", marks=pytest.mark.skipif(why is not None, reason=str(why)))
    if backends.is_available("triton") and triton.INTERPRETED:
        yield pytest.param(Target("triton", "cpu"), id="triton")
    if torch.cuda.is_available():
        probe = torch.empty(0, device="cuda")
        for name in backends.names():
            runs = name != "native" or native.unsupported_reason("conv_lstm", probe, 2) is None
            if backends.is_available(name) and runs:
                yield pytest.param(Target(name, "cuda"), id=f"{name}-cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="session", params=target_params())
def target(request) -> Target:
    return request.param


def pytest_collection_modifyitems(items) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if native.unavailable_reason():
        for item in items:
            if item.path.parent.name in ("native", "cuda_shim"):
                item.add_marker(pytest.mark.skip(reason=native.unavailable_reason()))
    if not triton.INTERPRETED:
        for item in items:
            if item.get_closest_marker("interpreted"):
                item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1: `make triton-test` runs it"))


@pytest.fixture(scope="session", autouse=True)
def _poison() -> None:
    """torch.empty, the compiled ops' own included, gives NaN: an element that is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
