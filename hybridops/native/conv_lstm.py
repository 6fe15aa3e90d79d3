"""ConvLSTM recurrences in compiled code: conv_lstm.* in csrc/cpu and csrc/cuda. Contract: reference/conv_lstm.py.

The ops want images channels-last with two spatial dimensions; here layouts are made so, as views where they can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridops.checks import accumulation_dtype
from hybridops.native import call, refuse_forward_mode

_SAVE = {"nothing": 0, "cells": 1, "gates": 2}

# PyTorch's own convolution is then off 2 to 5 times as much as on AVX-512. Of other processors it is not known.
_PLAIN_SUMS_ON_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"


def conv_lstm_forward(
    x: Tensor,  # (B,T,C,S*) any strides
    h0: Tensor | None,  # (B,H,S*)
    c0: Tensor | None,  # (B,H,S*) acc
    w_ih: Tensor,  # (4H,C,K*)
    w_hh: Tensor,  # (4H,H,K*)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3,H) or (3,H,S*)
    save: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    refuse_forward_mode(x, h0, c0, w_ih, w_hh, bias, peephole)
    acc = accumulation_dtype(x.dtype)
    hs, cs, gates = call(
        torch.ops.hybridops.conv_lstm_forward.default,
        _with_rows(x, 3),
        _channels_last(h0, x.dtype),
        _channels_last(c0, acc),
        _with_rows(w_ih, 2),
        _with_rows(w_hh, 2),
        None if bias is None else bias.to(acc).contiguous(),
        _peephole(peephole, acc),
        _SAVE[save],
        largest_winograd_tile(x.dtype, x.device.type),
    )
    one_row = w_hh.dim() == 3
    return (
        _channels_third(hs, one_row),
        _channels_third(cs, one_row),
        _channels_third(gates, one_row) if save == "gates" else None,
    )


def conv_lstm_backward(
    grad_hs: Tensor | None,  # (T,B,H,S*)
    grad_hn: Tensor | None,  # (B,H,S*)
    grad_cn: Tensor | None,  # (B,H,S*)
    gates: Tensor,  # (T,B,4H,S*)
    cs: Tensor,  # (T,B,H,S*) acc
    c0: Tensor | None,  # (B,H,S*) acc
    w_hh: Tensor,  # (4H,H,K*)
    peephole: Tensor | None,  # (3,H) or (3,H,S*)
    need_dh0: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    results = call(
        torch.ops.hybridops.conv_lstm_backward.default,
        *_upstream_grads(grad_hs, grad_hn, grad_cn, gates.dtype, cs.dtype),
        _sequence_channels_last(gates),
        _sequence_channels_last(cs),
        _channels_last(c0, cs.dtype),
        _with_rows(w_hh, 2),
        _peephole(peephole, cs.dtype),
        need_dh0,
        largest_winograd_tile(gates.dtype, gates.device.type),
    )
    return _backward_results(results, w_hh.dim() == 3, need_dh0)


def conv_lstm_backward_from_states(
    grad_hs: Tensor | None,  # (T,B,H,S*)
    grad_hn: Tensor | None,  # (B,H,S*)
    grad_cn: Tensor | None,  # (B,H,S*)
    x: Tensor,  # (B,T,C,S*) any strides
    h0: Tensor | None,  # (B,H,S*)
    hs: Tensor,  # (T,B,H,S*)
    cs: Tensor,  # (T,B,H,S*) acc
    c0: Tensor | None,  # (B,H,S*) acc
    w_ih: Tensor,  # (4H,C,K*)
    w_hh: Tensor,  # (4H,H,K*)
    bias: Tensor | None,  # (4H)
    peephole: Tensor | None,  # (3,H) or (3,H,S*)
    need_dh0: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    results = call(
        torch.ops.hybridops.conv_lstm_backward_from_states.default,
        *_upstream_grads(grad_hs, grad_hn, grad_cn, hs.dtype, cs.dtype),
        _with_rows(x, 3),
        _channels_last(h0, hs.dtype),
        _sequence_channels_last(hs),
        _sequence_channels_last(cs),
        _channels_last(c0, cs.dtype),
        _with_rows(w_ih, 2),
        _with_rows(w_hh, 2),
        None if bias is None else bias.to(cs.dtype).contiguous(),
        _peephole(peephole, cs.dtype),
        need_dh0,
        largest_winograd_tile(hs.dtype, hs.device.type),
    )
    return _backward_results(results, w_hh.dim() == 3, need_dh0)


def _upstream_grads(
    grad_hs: Tensor | None, grad_hn: Tensor | None, grad_cn: Tensor | None, dtype: torch.dtype, acc: torch.dtype
) -> tuple[Tensor | None, ...]:
    grad_hs = None if grad_hs is None else _with_rows(grad_hs.to(dtype), 3).movedim(2, -1)
    return grad_hs, _channels_last(grad_hn, acc), _channels_last(grad_cn, acc)


def _backward_results(
    results: tuple[Tensor, Tensor, Tensor], one_row: bool, need_dh0: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    da, dh0, dc0 = results
    dh0, dc0 = (_channels_third(state[None], one_row)[0] for state in (dh0, dc0))
    return _channels_third(da, one_row), dh0 if need_dh0 else None, dc0


def input_gradient(
    da: Tensor,  # (T,B,4H,S*)
    weight: Tensor,  # (4H,C,K*)
    dx: Tensor,  # (T,B,C,S*), contiguous with the channels last
) -> None:
    """Writes dx = weightᵀ * da. PyTorch's convolution_backward would copy its channels-last arguments first."""
    da, tile = _sequence_channels_last(da), largest_winograd_tile(da.dtype, da.device.type)
    dx = _with_rows(dx, 3).movedim(2, -1)
    call(torch.ops.hybridops.conv_input_gradient.default, da, _with_rows(weight, 2), tile, dx)


def weight_gradients(
    da: Tensor,  # (T,B,4H,S*)
    factors: Sequence[Tensor],  # x (T,B,C,S*), any strides; one or two
    dweights: Sequence[Tensor],  # (4H,C,K*) acc, contiguous
) -> None:
    """Adds dweight[o,c,k] += Σ_{t,b,s} da[t,b,o,s] x[t,b,c,s+k] for each x, reading da once."""
    da, tile = _sequence_channels_last(da), largest_winograd_tile(da.dtype, da.device.type)
    x, h = (*(_with_rows(factor, 3) for factor in factors), None)[:2]
    dw_x, dw_h = (*(_with_rows(dweight, 2) for dweight in dweights), None)[:2]
    call(torch.ops.hybridops.conv_weight_gradient.default, da, x, h, tile, dw_x, dw_h)


def largest_winograd_tile(dtype: torch.dtype, device_type: str = "cpu") -> int:
    """Outputs of the tiles that convolutions may be cut into, 0 = none: see docs/numerics.md. On a GPU, which has
    none, 16 says that tensor cores may multiply.

    Tiles of 4, and of 8 where PyTorch itself adds up as it does on AVX2, are about as exact as its float32 convolution.
    Those of 16 lose a bit, and wait for torch.set_float32_matmul_precision("high"); in half precision that is far below
    the last bit.
    """
    if dtype != torch.float32 or _reduced_precision(device_type):
        return 16
    return 8 if _PLAIN_SUMS_ON_AVX2 else 4


def _reduced_precision(device_type: str) -> bool:
    """Whether float32 products may lose bits there. torch.get_float32_matmul_precision() would be the way to ask,
    but raises where one device's precision was set on its own, and breaks a graph of torch.compile. So does what is
    asked instead; a graph asks for what torch.compile guards on, which the setting for all devices sets too.
    """
    if torch.compiler.is_compiling():
        return torch.backends.cuda.matmul.allow_tf32
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("tf32", "bf16")


def _with_rows(x: Tensor, channel_end: int) -> Tensor:
    """One spatial dimension (W) as two (1,W); `channel_end`: where the spatial dimensions begin."""
    return x.unsqueeze(channel_end) if x.dim() == channel_end + 1 else x


def _channels_last(state: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B,H,S*) -> (B,Y,X,H)"""
    return None if state is None else _with_rows(state.to(dtype), 2).movedim(1, -1).contiguous()


def _sequence_channels_last(x: Tensor) -> Tensor:
    """(T,B,H,S*) -> (T,B,Y,X,H)"""
    return _with_rows(x, 3).movedim(2, -1).contiguous()


def _channels_third(x: Tensor, one_row: bool) -> Tensor:
    """(T,B,Y,X,H) -> (T,B,H,S*), a view"""
    x = x.movedim(-1, 2)
    return x.squeeze(3) if one_row else x


def _peephole(peephole: Tensor | None, acc: torch.dtype) -> Tensor | None:
    """(3,H) as it is; (3,H,S*) -> (3,Y,X,H)"""
    if peephole is None or peephole.dim() == 2:
        return None if peephole is None else peephole.to(acc).contiguous()
    return _channels_last(peephole, acc)
