"""What kernels take as one argument: tensors with what says where their elements are.

None of these tuples holds another: Triton 3.6 loses a constant (a stride of 1, say) of a tuple within a tuple.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Strided(NamedTuple):
    """A tensor (batch, rows, columns) of any strides. In a kernel `ptr` is a pointer; None = there is no tensor."""

    ptr: Any
    batch: int
    row: int
    column: int


class Image(NamedTuple):
    """Images (B,Y,X,C) of any strides; None = there are none."""

    ptr: Any
    b: int
    y: int
    x: int
    c: int


class Pairs(NamedTuple):
    """What the scores (B,S,T) are computed from; <tensor>_b, _s, _t, _a are its strides."""

    q_ptr: Any  # (B,S,A)
    k_ptr: Any  # (B,T,A)
    v_ptr: Any  # (A,)
    bias_ptr: Any  # broadcastable to (B,S,T), None = zeros
    q_exp_ptr: Any  # e^2q and max|q|, as `exponentials_kernel` leaves them; None but for tanh
    q_bound_ptr: Any
    k_exp_ptr: Any  # likewise
    k_bound_ptr: Any
    S: int  # queries
    T: int  # keys
    A: int  # channels
    q_b: int
    q_s: int
    q_a: int
    k_b: int
    k_t: int
    k_a: int
    v_a: int
    bias_b: int
    bias_s: int
    bias_t: int


def strided(tensor: Tensor | None) -> Strided:
    return Strided(None, 0, 0, 0) if tensor is None else Strided(tensor, *tensor.stride())
