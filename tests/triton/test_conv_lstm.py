"""The Triton ConvLSTM in the interpreter: every way its step may go; and which blocks are chosen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests import tolerances
from tests.problems import (
    DTYPES,
    assert_captured,
    assert_parity,
    cast,
    conv_lstm_inputs,
    far_apart,
    fused_conv_lstm,
    plain_conv_lstm,
    with_gradients,
)

pytest.importorskip("triton")
from hybridops import backends
from hybridops.triton import MAX_PIXELS, conv_lstm

interpreted = pytest.mark.interpreted


def check(dtype=torch.float64, save="gates", **sizes) -> None:
    assert_parity(plain_conv_lstm, fused_conv_lstm, conv_lstm_inputs(**sizes), dtype, backend="triton", save=save)


@interpreted
@pytest.mark.parametrize("hoists", [True, False], ids=["input ahead", "input in the step"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_the_input_is_convolved(monkeypatch, hoists, dtype):
    monkeypatch.setattr(conv_lstm, "_hoists", lambda *_: hoists)
    check(dtype, steps=2, channels=5, hidden=7, space=(3, 4))


@interpreted
@pytest.mark.parametrize("peephole", [None, "channel", "spatial"])
@pytest.mark.parametrize(
    ("space", "kernel"), [((9,), (3,)), ((2,), (5,)), ((4, 5), (1, 1)), ((4, 5), (3, 5)), ((2, 2), (7, 3))]
)
def test_kernels(space, kernel, peephole):
    check(space=space, kernel=kernel, peephole=peephole, steps=2)


@interpreted
@pytest.mark.parametrize(
    "sizes",
    [
        {"space": (5, 9), "batch": 1, "kernel": (1, 1)}, {"hidden": 17, "kernel": (1, 3)},
        {"channels": 33, "kernel": (3, 1)}, {"hidden": 33, "channels": 1, "space": (3, 2), "kernel": (1, 1)},
        {"batch": 0}, {"steps": 0}, {"steps": 1, "states": False, "bias": False},
    ],
    ids=str,
)  # fmt: skip
def test_sizes(sizes):
    """Blocks of 32 pixels and 16 channels are full, or not."""
    check(**{"steps": 2} | sizes)


@interpreted
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_a_chunk_of_the_backward_that_is_not_the_first(save):
    check(save=save, batch=1, steps=5, space=(3, 2), peephole="spatial")


FAR = {"batch": 3, "steps": 3, "channels": 3, "hidden": 3, "space": (3, 3), "kernel": (5, 1)}


@interpreted
@pytest.mark.parametrize("dim", range(5))
def test_far_images(monkeypatch, dim):
    """Offsets beyond 32 bits, of a pixel, of a tap of the kernel from its pixel, and of a channel."""
    monkeypatch.setattr(conv_lstm, "_hoists", lambda *_: False)
    inputs = cast(conv_lstm_inputs(**FAR), torch.bfloat16)
    want = with_gradients(fused_conv_lstm, inputs, backend="triton")
    far = inputs | {"x": far_apart(inputs["x"], dim)}
    torch.testing.assert_close(with_gradients(fused_conv_lstm, far, backend="triton"), want, **tolerances.EXACT)


@interpreted
@pytest.mark.parametrize("dim", range(5))
def test_far_gradients(dim):
    leaves = {name: None if t is None else t.requires_grad_() for name, t in conv_lstm_inputs(**FAR).items()}
    output = fused_conv_lstm(**leaves, backend="triton")["output"]
    weights = leaves["weight_ih"], leaves["weight_hh"]
    grad = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(0))
    want, got = (torch.autograd.grad(output, weights, g, retain_graph=True) for g in (grad, far_apart(grad, dim)))
    torch.testing.assert_close(got, want, **tolerances.EXACT)


@interpreted
def test_more_pixels_than_can_be_counted():
    """Are refused, where a batch of as many small images would be."""
    x = torch.empty(1).expand(2**20, 1, 1, 2**6, 2**5)
    assert x[0].numel() * len(x) > MAX_PIXELS
    with pytest.raises(RuntimeError, match="pixels a step"):
        backends.choose("conv_lstm", "triton", x, 2)
    assert backends.choose("conv_lstm", "triton", x[:-1], 2) is conv_lstm


@pytest.mark.gpu
@pytest.mark.parametrize("hoists", [True, False], ids=["input ahead", "input in the step"])
@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_block_size_on_a_gpu(monkeypatch, dtype, index, hoists):
    kind = {torch.float64: "float64", torch.float32: "ieee"}.get(dtype, "half")
    monkeypatch.setattr(conv_lstm, "_config", lambda table, *_: table[kind][index % len(table[kind])])
    monkeypatch.setattr(conv_lstm, "_hoists", lambda *_: hoists)
    inputs = conv_lstm_inputs(steps=2, channels=35, hidden=66, space=(9, 17), peephole="spatial")
    assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, dtype, "cuda", backend="triton")


@pytest.mark.gpu
def test_captured_in_a_cuda_graph():
    inputs = cast(conv_lstm_inputs(hidden=32), torch.bfloat16, "cuda")
    assert_captured(fused_conv_lstm, inputs, backend="triton")


@pytest.mark.parametrize("table", [conv_lstm.FORWARD, conv_lstm.BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.bfloat16, "half"), (torch.float16, "half"), (torch.float32, "ieee"),
                        (torch.float64, "float64")]
)  # fmt: skip
def test_blocks(table, dtype, kind):
    """Large ones where they make enough programs and are full of channels, else the smallest."""
    x = torch.empty(0, dtype=dtype)
    assert conv_lstm._config(table, x, 1 << 20, 128) is table[kind][0]
    assert conv_lstm._config(table, x, 64, 128) is table[kind][-1]
    assert conv_lstm._config(table, x, 1 << 20, 17) is table[kind][-1]


def test_a_small_step_has_its_input_convolved_ahead():
    x, config = torch.empty(0, dtype=torch.bfloat16), conv_lstm.FORWARD["half"][-1]
    assert conv_lstm._hoists(config, x, 1024, 16)
    assert not conv_lstm._hoists(config, x, 1 << 20, 16)


@pytest.fixture(params=[("fp32_precision", "tf32", "ieee"), ("allow_tf32", True, False)], ids=lambda param: param[0])
def _tf32(request) -> Iterator[None]:
    """By PyTorch's newer switch and by the older one."""
    switch, on, off = request.param
    setattr(torch.backends.cuda.matmul, switch, on)
    yield
    setattr(torch.backends.cuda.matmul, switch, off)


@pytest.mark.usefixtures("_tf32")
def test_tf32_is_as_pytorch_has_it():
    x = torch.empty(0)
    assert conv_lstm._config(conv_lstm.FORWARD, x, 64, 16) is conv_lstm.FORWARD["tf32"][-1]
    assert conv_lstm._config(conv_lstm.FORWARD, x.double(), 64, 16) is conv_lstm.FORWARD["float64"][-1]
