"""What the compiled ConvLSTM is told beyond its tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.native.recorder import record


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


def set_for(device: str, precision: str) -> None:
    getattr(torch.backends, device).matmul.fp32_precision = precision


@pytest.mark.parametrize(
    ("setting", "tiles"),
    [
        ((torch.set_float32_matmul_precision, "highest"), 2),
        ((torch.set_float32_matmul_precision, "high"), 4),
        ((torch.set_float32_matmul_precision, "medium"), 4),
        ((set_for, "mkldnn", "tf32"), 4),
        ((set_for, "mkldnn", "bf16"), 4),
        ((set_for, "cuda", "tf32"), 2),  # not the device that it runs on
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
