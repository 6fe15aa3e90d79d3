"""What the compiled ConvLSTM is told beyond its tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.measure import peak_bytes
from hybridops import native
from hybridops.native.conv_lstm import precision
from tests.native.recorder import record
from tests.problems import (
    assert_captured,
    assert_parity,
    cast,
    conv_lstm_inputs,
    fused_conv_lstm,
    plain_conv_lstm,
    with_gradients,
)

reason = native.unavailable_reason("cuda")
not_compiled = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


EXACT = 8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 4  # where nothing may be lost


def set_for(device: str, precision: str) -> None:
    getattr(torch.backends, device).matmul.fp32_precision = precision


@pytest.mark.parametrize(
    ("setting", "tiles"),
    [
        ((torch.set_float32_matmul_precision, "highest"), EXACT),
        ((torch.set_float32_matmul_precision, "high"), 16),
        ((torch.set_float32_matmul_precision, "medium"), 16),
        ((set_for, "mkldnn", "tf32"), 16),
        ((set_for, "mkldnn", "bf16"), 16),
        ((set_for, "cuda", "tf32"), EXACT),  # not the device that it runs on
    ],
    ids=lambda value: " ".join(map(str, value[1:])) if isinstance(value, tuple) else str(value),
)
def test_larger_tiles_where_precision_may_be_lost(setting, tiles):
    """Also where it was set for one device, after which torch.get_float32_matmul_precision() raises."""
    function, *arguments = setting
    function(*arguments)
    chosen = {
        value
        for op, given in record("conv_lstm", {})
        for argument, value in zip(op._schema.arguments, given, strict=True)
        if argument.name == "winograd"
    }
    assert chosen == {tiles}


@pytest.mark.parametrize(
    ("device", "setting", "reduced"), [("cuda", "tf32", True), ("cuda", "ieee", False), ("mkldnn", "tf32", False)]
)
def test_tensor_cores_of_a_gpu_where_precision_may_be_lost_on_it(device, setting, reduced):
    set_for(device, setting)
    assert precision(torch.float32, "cuda")[0] == reduced


@pytest.mark.gpu
@not_compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "sizes",
    [{"space": (7, 10)}, {"space": (7, 10), "steps": 1}, {"space": (64, 66), "batch": 8}],
    ids=["one kernel", "small blocks", "large blocks"],
)
def test_every_plan_on_a_gpu(sizes, dtype):
    """As choose() in csrc/cuda/conv_lstm_sequence.cuh chooses; tests/cuda_shim has more of them, on the CPU."""
    inputs = conv_lstm_inputs(channels=8, hidden=40, peephole="channel", **sizes)
    assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, dtype, "cuda", backend="native")


@pytest.mark.gpu
@not_compiled
@pytest.mark.parametrize("hidden", [32, 33])
def test_captured_in_a_cuda_graph(hidden):
    inputs = cast(conv_lstm_inputs(hidden=hidden), torch.bfloat16, "cuda")
    assert_captured(fused_conv_lstm, inputs, backend="native")


def test_memory():
    """A training step takes less than the plain one's, and half with the gates recomputed: everything that kernels work
    with is counted, but for what each thread keeps.
    """
    inputs = cast(conv_lstm_inputs(batch=2, steps=20, channels=8, hidden=32, space=(32, 32)), torch.float32)
    plain = peak_bytes(lambda: with_gradients(plain_conv_lstm, inputs))
    gates, recomputed = (
        peak_bytes(lambda save=save: with_gradients(fused_conv_lstm, inputs, backend="native", save=save))
        for save in ("gates", "recompute")
    )
    assert gates < 0.9 * plain
    assert recomputed < 0.5 * plain
