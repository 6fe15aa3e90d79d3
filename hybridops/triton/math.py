"""Elementary functions, casts and products that the kernels share.

Kernels in Triton's interpreter (INTERPRETED) are the same, except where it cannot do what a GPU does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridops import triton as backend

INTERPRETED = tl.constexpr(backend.INTERPRETED)

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def exponential(z):
    """e^z = 2^n e^r with n = round(z / ln 2) and r = z - n ln 2.

    exp2(z log2(e)) in one step would be wrong by 1e-5 at z = 80: the rounding of the product is magnified.
    """
    n = tl.floor(z * 1.4426950408889634 + 0.5)  # log2(e)
    # ln 2 in two parts. The first has 15 significant bits, so that its product with n is exact.
    r = (z - n * 0.693145751953125) - n * 1.4286068203094172e-06
    return tl.exp(r) * tl.exp2(n)


@triton.jit
def tanh(z):
    """(1 - e^-2|z|) / (1 + e^-2|z|) with the sign of z; in float32 its series up to |z| = 1/4, where that cancels.

    The first term that the series leaves out, 1382/155925 z^10, is 8e-9 of the value there. float64 has no such
    branch: there the cancellation costs 1e-16.
    """
    e = tl.exp(-2 * tl.abs(z))
    t = (1 - e) / (1 + e)
    t = tl.where(z < 0, -t, t)
    if z.dtype == tl.float32:
        s = z * z
        series = z + z * s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835))))
        t = tl.where(tl.abs(z) < 0.25, series, t)
    return t


@triton.jit
def sigmoid(z):
    return 1 / (1 + tl.exp(-z))


@triton.jit
def reciprocal(x):
    """1/x to 1 ulp, in one instruction that flushes subnormal x and 1/x to zero (PTX ISA, rcp.approx.ftz.f32)."""
    if INTERPRETED or x.dtype != tl.float32:
        return 1 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def offset(index, stride):
    """index * stride in 64 bits: a product of two 32-bit numbers would wrap around from 2^31 elements on."""
    return tl.cast(index, tl.int64) * stride


@triton.jit
def cast(x, dtype: tl.constexpr):
    """x rounded to nearest. The interpreter truncates to bfloat16, so there x is rounded in its bits first."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b. The interpreter takes half precision for integers, or accumulates in it: there it is cast before."""
    if INTERPRETED and a.dtype.primitive_bitwidth == 16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


def precision(x: Tensor) -> str:
    """How float32 factors are multiplied: as in PyTorch's own matrix products on this GPU."""
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
