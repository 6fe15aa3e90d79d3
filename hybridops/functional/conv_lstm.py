"""The ConvLSTM's public functions."""

from __future__ import annotations

from torch import Tensor

from hybridops import autograd, backends
from hybridops.checks import (
    SPATIAL_NAMES,
    accumulation_dtype,
    check_choice,
    check_dtypes,
    check_like,
    check_pair,
    check_shape,
)
from hybridops.contract import ConvLSTMInputs, Save
from hybridops.functional.autocast import cast_by_autocast, without_autocast


def conv_lstm_cell(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    *,
    peephole: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of a ConvLSTM: `conv_lstm` for a single frame.

    Args:
        x: (B, C, S*).
        hx: (h, c), each (B, H, S*); None = zeros.
        weight_ih, weight_hh, bias, peephole, backend: as in `conv_lstm`.

    Returns:
        (h, c), each (B, H, S*); h in the dtype of x, c in that of the c given, else of x.
    """
    check_shape("x", x, ("B", "C", *_space(weight_ih, "weight_ih")))
    output, _, c = _conv_lstm(
        x.unsqueeze(1), hx, weight_ih, weight_hh, bias, peephole, save="gates", want_h_n=False, backend=backend
    )
    return output.squeeze(1), c


def conv_lstm(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    *,
    peephole: Tensor | None = None,
    save: str = "gates",
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A ConvLSTM layer over a sequence (Shi et al. 2015, https://arxiv.org/abs/1506.04214).

        a_t = W_ih * x_t + W_hh * h_{t-1} + b          (* 'same' convolution; 4H channels a_f a_i a_g a_o)
        f = σ(a_f + p_f∘c_{t-1})     i = σ(a_i + p_i∘c_{t-1})     g = tanh(a_g)
        c_t = f∘c_{t-1} + i∘g        o = σ(a_o + p_o∘c_t)         h_t = o∘tanh(c_t)

    Args:
        x: (B, T, C, S*), any strides.
        hx: (h, c) before the first step, each (B, H, S*), in any floating-point dtype; None = zeros.
        weight_ih: (4H, C, K*), rows in the gate order f, i, g, o; every kernel size odd.
        weight_hh: (4H, H, K*).
        bias: (4H).
        peephole: (3, H), or (3, H, S*) with one weight a position; rows f, i, o.
        save: what the backward finds: "gates", the gates of every step, or "recompute", only the states, from which it
            computes the gates again: about half the memory, about a third more work.
        backend: "reference", "native", "triton", or None for the fastest that takes these arguments.

    Returns:
        output (B, T, H, S*) in the dtype of x (under autocast in its dtype), whose memory is time-major and
        channels-last; and (h_n, c_n) after the last step, each (B, H, S*), c_n in the dtype of the c given, else of x.
    """
    output, h_n, c_n = _conv_lstm(
        x, hx, weight_ih, weight_hh, bias, peephole, save=save, want_h_n=True, backend=backend
    )
    assert h_n is not None
    return output, (h_n, c_n)


def _conv_lstm(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    *,
    save: str,
    want_h_n: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """output (B, T, H, S*), h_n (B, H, S*) if wanted, c_n (B, H, S*)."""
    if hx is not None:
        check_pair("hx", hx)
    dims = _check_conv_lstm(x, hx, weight_ih, weight_hh, bias, peephole)
    h0, c0 = hx if hx is not None else (None, None)
    check_choice("save", save, ("gates", "recompute"))
    dtype_of_c = x.dtype if c0 is None else c0.dtype
    x, weight_ih, weight_hh, bias, peephole = cast_by_autocast(x, weight_ih, weight_hh, bias, peephole)
    check_dtypes(x=x, weight_ih=weight_ih, weight_hh=weight_hh, bias=bias, peephole=peephole)
    acc = accumulation_dtype(x.dtype)
    h0, c0 = None if h0 is None else h0.to(x.dtype), None if c0 is None else c0.to(acc)
    impl = backends.choose("conv_lstm", backend, x, dims)
    keep = Save.GATES if save == "gates" else Save.CELLS

    if x.shape[1] == 0:
        state = (x.shape[0], weight_hh.shape[1], *x.shape[3:])
        h_n = x.new_zeros(state) if h0 is None else h0.clone()
        c_n = x.new_zeros(state, dtype=acc) if c0 is None else c0.clone()
        return h_n.new_empty(state[0], 0, *state[1:]), h_n, c_n.to(dtype_of_c)
    inputs = ConvLSTMInputs(x, h0, c0, weight_ih, weight_hh, bias, peephole)
    with without_autocast(x):
        output, last_h, last_c = autograd.conv_lstm.run(impl, inputs, keep, want_h_n)
    return output, last_h, last_c.to(dtype_of_c)


def _check_conv_lstm(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
) -> int:
    """The number of spatial dimensions."""
    space = _space(weight_ih, "weight_ih")
    dims = len(space)
    rows, channels, *kernel = weight_ih.shape
    if rows % 4 or rows == 0:
        raise ValueError(f"weight_ih must have 4H rows, one for each gate and hidden channel, got {rows}")
    if channels == 0:
        raise ValueError("weight_ih must have at least one input channel, got 0")
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"weight_ih must have an odd kernel in every dimension, got {tuple(kernel)}")
    hidden = rows // 4
    check_shape("weight_hh", weight_hh, (rows, hidden, *kernel))
    check_shape("x", x, ("B", "T", channels, *space))
    if hx is not None:
        for name, state in zip(("h of hx", "c of hx"), hx, strict=True):
            check_shape(name, state, (x.shape[0], hidden, *x.shape[3:]))
            check_like(name, state, x, dtype=False, like_name="x")
    if bias is not None:
        check_shape("bias", bias, (rows,))
    if peephole is not None:
        per_position = not isinstance(peephole, Tensor) or peephole.dim() != 2
        check_shape("peephole", peephole, (3, hidden, *(x.shape[3:] if per_position else ())))
    return dims


def _space(weight: Tensor, name: str) -> tuple[str, ...]:
    """Names of the spatial sizes that go with a weight (4H, C, K*)."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (4H, C, K*), got {type(weight).__name__}")
    if weight.dim() - 2 not in SPATIAL_NAMES:
        raise ValueError(
            f"{name} must have shape (4H, C, K*) with one to three kernel sizes, got {tuple(weight.shape)}"
        )
    return SPATIAL_NAMES[weight.dim() - 2]
