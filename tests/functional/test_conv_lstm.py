"""functional.conv_lstm and conv_lstm_cell: every back end against the plain cell, values and gradients."""

from __future__ import annotations

import pytest
import torch

import hybridops
import hybridops.functional as HF
from tests import tolerances
from tests.problems import (
    DTYPES,
    assert_parity,
    cast,
    conv_lstm_inputs,
    fused_conv_lstm,
    plain_conv_lstm,
    with_gradients,
)


def check(target, dtype=torch.float64, **sizes) -> None:
    options = {"backend": target.backend}
    assert_parity(plain_conv_lstm, fused_conv_lstm, conv_lstm_inputs(**sizes), dtype, target.device, **options)


# ---------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", range(1, 21))
def test_widths(target, dtype, width):
    """Register tiles are a few pixels wide; no width has to be a multiple of one."""
    check(target, dtype, space=(2, width), channels=2, hidden=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hidden", [1, 3, 7, 8, 9, 16, 17, 33, 65])
def test_channels(target, dtype, hidden):
    """Vectors hold 4, 8 or 16 channels; a group of them may be full or not."""
    check(target, dtype, channels=66 - hidden, hidden=hidden, steps=2, space=(3, 3))


# A channel peephole in float64 alone: its gradient is a number or two, and plain PyTorch's error may be none by luck.
@pytest.mark.parametrize(
    ("dtype", "peephole"),
    [(torch.float64, "channel"), *((dtype, peephole) for dtype in DTYPES for peephole in (None, "spatial"))],
)
@pytest.mark.parametrize("hidden", [1, 2, 3, 4, 5, 8])
def test_few_channels(target, dtype, hidden, peephole):
    """Several pixels go into one vector, which a row of the image need not fill."""
    check(target, dtype, channels=2, hidden=hidden, space=(3, 19), steps=2, batch=2, peephole=peephole)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 3)])
@pytest.mark.parametrize("space", [(1, 1), (2, 1), (2, 3), (4, 4)])
def test_many_small_images(target, dtype, space, kernel):
    """They are computed together, some at a time."""
    check(target, dtype, batch=37, steps=3, channels=20, hidden=33, space=space, kernel=kernel)


# Kernels larger than the image too, where every patch is mostly padding.
KERNELS = [
    ((9,), (1,)), ((9,), (3,)), ((2,), (5,)),
    ((4, 5), (1, 1)), ((4, 5), (3, 3)), ((4, 5), (5, 5)), ((4, 5), (3, 5)), ((4, 5), (5, 1)), ((2, 2), (7, 7)),
]  # fmt: skip


@pytest.mark.parametrize("peephole", [None, "channel", "spatial"])
@pytest.mark.parametrize(("space", "kernel"), KERNELS)
def test_kernels(target, space, kernel, peephole):
    check(target, space=space, kernel=kernel, peephole=peephole)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(("space", "kernel"), KERNELS)
def test_kernels_in_bfloat16(target, space, kernel, channels):
    """Where no tiles of Winograd's fit a kernel, some processors multiply pairs of bfloat16."""
    check(target, torch.bfloat16, space=space, kernel=kernel, channels=channels, hidden=19)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        {"channels": 70, "hidden": 40, "kernel": (5, 5), "space": (5, 6), "steps": 2},
        {"channels": 3, "hidden": 5, "space": (3, 131), "steps": 2},
        {"channels": 3, "hidden": 5, "space": (131, 3), "steps": 2},
        {"channels": 130, "hidden": 3, "space": (20, 33), "batch": 1, "steps": 2},
        {"channels": 4, "hidden": 6, "space": (700,), "kernel": (9,), "batch": 1},
    ],
    ids=["the reduction in chunks", "wide", "high", "patches beyond the cache", "one long row"],
)
def test_blocks(target, dtype, sizes):
    check(target, dtype, **sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("peephole", [None, "channel", "spatial"])
def test_dtypes(target, dtype, peephole):
    check(target, dtype, batch=3, steps=6, channels=9, hidden=13, space=(7, 9), peephole=peephole)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 0}, {"steps": 0}, {"batch": 0, "steps": 0}, {"steps": 1},
        {"batch": 1, "steps": 1, "channels": 1, "hidden": 1, "space": (1, 1), "kernel": (1, 1)},
        {"batch": 1, "channels": 1, "hidden": 1, "space": (1,), "kernel": (3,)},
    ],
    ids=["no batch", "no steps", "neither", "one step", "one of everything", "one pixel in a row"],
)  # fmt: skip
def test_empty_and_single(target, sizes, states, bias):
    check(target, states=states, bias=bias, **sizes)


def test_three_spatial_dimensions():
    """Only the reference takes them: it is what runs unless another is named, which then refuses."""
    inputs = conv_lstm_inputs(space=(3, 4, 2), kernel=(3, 1, 5), peephole="spatial")
    for backend in (None, "reference"):
        assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, backend=backend)
    with pytest.raises(RuntimeError, match=r"^backend 'native' was asked for, but "):
        fused_conv_lstm(**inputs, backend="native")


# --------------------------------------------------------------------------------------------------- memory layouts


def transposed(x):
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def every_other(x):
    return torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2]


def channels_last(x):
    """(..., C, Y, X) with C fastest"""
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def expanded(x):
    return x[:1].expand(x.shape)


LAYOUTS = [transposed, every_other, channels_last, expanded]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["x", "h0", "c0", "weight_ih", "weight_hh", "peephole", "all"])
def test_input_layouts(target, name, layout):
    inputs = conv_lstm_inputs(space=(5, 5), peephole="spatial")
    for changed in [key for key in inputs if key != "bias"] if name == "all" else [name]:
        inputs[changed] = layout(inputs[changed])
        assert not inputs[changed].is_contiguous()
    assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, device=target.device, backend=target.backend)


def test_time_first_and_one_frame_at_all_times(target):
    inputs = conv_lstm_inputs(batch=3)
    for x in (inputs["x"].transpose(0, 1).contiguous().transpose(0, 1), inputs["x"][:, :1].expand(-1, 3, -1, -1, -1)):
        some, options = inputs | {"x": x}, {"backend": target.backend}
        assert_parity(plain_conv_lstm, fused_conv_lstm, some, device=target.device, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_layouts(target, layout):
    """What comes from behind may have any strides."""
    inputs = cast(conv_lstm_inputs(space=(5, 5)), torch.float64, target.device)
    leaves = {name: None if t is None else t.requires_grad_() for name, t in inputs.items()}
    outputs = fused_conv_lstm(**leaves, backend=target.backend)
    given = [layout(torch.randn_like(out, memory_format=torch.contiguous_format)) for out in outputs.values()]
    wanted = [leaf for leaf in leaves.values() if leaf is not None]
    contiguous = [grad.contiguous() for grad in given]
    want = torch.autograd.grad(list(plain_conv_lstm(**leaves).values()), wanted, contiguous)
    got = torch.autograd.grad(list(outputs.values()), wanted, given)
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


# ----------------------------------------------------------------------------------------------------- states and all


def test_no_states_are_zero_states(target):
    inputs = cast(conv_lstm_inputs(states=False, peephole="channel"), torch.float64, target.device)
    zeros = inputs["x"].new_zeros(2, 4, 4, 5)
    given = fused_conv_lstm(**inputs | {"h0": zeros, "c0": zeros}, backend=target.backend)
    torch.testing.assert_close(fused_conv_lstm(**inputs, backend=target.backend), given, **tolerances.FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_cell_state_stays_float32(target, dtype, steps):
    """Within a sequence; what comes back has the dtype of c_0, or of x where none is given."""
    inputs = cast(conv_lstm_inputs(steps=steps), dtype, target.device)
    half = with_gradients(fused_conv_lstm, inputs, backend=target.backend)
    single = with_gradients(fused_conv_lstm, inputs | {"c0": inputs["c0"].float()}, backend=target.backend)
    assert {t.dtype for t in half.values()} == {dtype}
    assert {name for name, t in single.items() if t.dtype == torch.float32} == {"c_n", "d c0"}
    rounded = {name: single[name].to(dtype) for name in ("c_n", "d c0")}
    torch.testing.assert_close(half, single | rounded, **tolerances.EXACT)
    without = fused_conv_lstm(**inputs | {"h0": None, "c0": None}, backend=target.backend)
    assert {t.dtype for t in without.values()} == {dtype}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dtype_of_states", DTYPES)
def test_states_of_another_dtype(target, dtype, dtype_of_states):
    """They are cast; c_n and the gradients come back in theirs."""
    inputs = cast(conv_lstm_inputs(), dtype, target.device)
    states = cast({name: inputs[name] for name in ("h0", "c0")}, dtype_of_states)
    got = with_gradients(fused_conv_lstm, inputs | states, backend=target.backend)
    of_states = {"c_n", "d h0", "d c0"}
    assert {t.dtype for name, t in got.items() if name in of_states} == {dtype_of_states}
    assert {t.dtype for name, t in got.items() if name not in of_states} == {dtype}
    acc = torch.promote_types(dtype, torch.float32)
    same = inputs | {"h0": states["h0"].to(dtype), "c0": states["c0"].to(acc)}
    want = with_gradients(fused_conv_lstm, same, backend=target.backend)
    torch.testing.assert_close(got, {n: t.to(got[n].dtype) for n, t in want.items()}, **tolerances.EXACT)


def test_one_call_is_many_steps(target):
    inputs = cast(conv_lstm_inputs(peephole="channel", steps=4), torch.float64, target.device)
    whole = fused_conv_lstm(**inputs, backend=target.backend)
    weights = (inputs["weight_ih"], inputs["weight_hh"], inputs["bias"])
    h, c = inputs["h0"], inputs["c0"]
    for t in range(4):
        options = {"peephole": inputs["peephole"], "backend": target.backend}
        h, c = HF.conv_lstm_cell(inputs["x"][:, t], (h, c), *weights, **options)
        torch.testing.assert_close(h, whole["output"][:, t], **tolerances.FLOAT64)
    torch.testing.assert_close((h, c), (whole["h_n"], whole["c_n"]), **tolerances.FLOAT64)
    first = HF.conv_lstm_cell(inputs["x"][:, 0], None, *weights, backend=target.backend)
    zeros = torch.zeros_like(h)
    want = HF.conv_lstm_cell(inputs["x"][:, 0], (zeros, zeros), *weights, backend=target.backend)
    torch.testing.assert_close(first, want, **tolerances.FLOAT64)


def test_inference_is_training(target):
    """Without gradients another kind of call is made: the states only, or the last cell only."""
    inputs = cast(conv_lstm_inputs(peephole="spatial"), torch.float32, target.device)
    training = with_gradients(fused_conv_lstm, inputs, backend=target.backend)
    with hybridops.use_backend(target.backend), torch.inference_mode():
        inference = fused_conv_lstm(**inputs)
    torch.testing.assert_close(inference, {name: training[name] for name in inference}, **tolerances.EXACT)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_input_scales(target, scale):
    inputs = conv_lstm_inputs(peephole="channel")
    inputs |= {name: scale * inputs[name] for name in ("x", "h0", "c0")}
    assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, torch.float32, target.device, backend=target.backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("exponent", [10, 20, 100])
def test_saturated_gates(target, dtype, exponent):
    """Inputs of any size; nothing overflows on the way. An odd number of equal magnitudes: no sum is near zero."""
    inputs = conv_lstm_inputs(channels=3, kernel=(1, 1), peephole="spatial")
    inputs |= {"x": 2.0**exponent * inputs["x"].sign(), "weight_ih": inputs["weight_ih"].sign()}
    assert_parity(plain_conv_lstm, fused_conv_lstm, inputs, dtype, target.device, backend=target.backend)


def test_arguments_are_left_alone(target):
    inputs = cast(conv_lstm_inputs(peephole="spatial"), torch.float32, target.device)
    before = {name: t.clone() for name, t in inputs.items()}
    with_gradients(fused_conv_lstm, inputs, backend=target.backend)
    torch.testing.assert_close(inputs, before, **tolerances.EXACT)
