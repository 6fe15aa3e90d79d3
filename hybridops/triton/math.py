"""What the kernels share: elementary functions in float32 and float64, casts. Each says what it is good for.

A kernel in Triton's interpreter (INTERPRETED) is the same but where that cannot do what a GPU does.
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
    """e^z. With the integer part of z log2(e) taken out first: exp2 of the product would see what its rounding cost,
    which is 1e-5 of the result at z = 80."""
    n = tl.floor(z * 1.4426950408889634 + 0.5)
    # ln 2 in two parts, the first of so few bits that its product with n is exact
    r = (z - n * 0.693145751953125) - n * 1.4286068203094172e-06
    return tl.exp(r) * tl.exp2(n)


@triton.jit
def tanh(z):
    """Near zero, where 1 - e^-2|z| cancels, by its series, good to 1e-8 of the value there; float64 keeps enough."""
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
    """1/x for normal x whose reciprocal is normal: then the one instruction is good to a unit in the last place."""
    if INTERPRETED or x.dtype != tl.float32:
        return 1 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def offset(index, stride):
    """How far an index reaches, in 64 bits: as the product of two of 32 it would wrap around from 2^31 elements on."""
    return tl.cast(index, tl.int64) * stride


@triton.jit
def cast(x, dtype: tl.constexpr):
    """x rounded to nearest; to bfloat16 the interpreter would cut digits off instead, so that there none are left."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b; in the interpreter half precision would be multiplied as integers, or accumulated as it is."""
    if INTERPRETED and a.dtype.primitive_bitwidth == 16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


def precision(x: Tensor) -> str:
    """How float32 factors are multiplied: as PyTorch's own products on this GPU."""
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
