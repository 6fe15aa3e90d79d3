"""How near is near enough, and why. Nothing in the tests compares with a number that does not stand here."""

from __future__ import annotations

import torch

# The same bits: the same operations in the same order, or no arithmetic at all.
EXACT = {"rtol": 0.0, "atol": 0.0}

# float64, values of order one, sums of some thousand terms in another order: about 1e-13 of rounding, and room.
FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}

# The error is held to this many times that of the plain PyTorch module in the same dtype, on the same inputs.
TIMES_PLAIN = 2.0

# ... and so many units in the last place, since a plain error may be near zero by luck: of the largest value, or of the
# number given if that is more.
# float32, eight: an exponential, a reciprocal and a quotient of two sums cost one or two each. Of one at least: these
# are sums of terms of order one, and may cancel.
# Half precision, one: all but the last rounding is done in float32, and a rounding is half a unit.
FLOOR_ULPS = {torch.float32: (8.0, 1.0), torch.bfloat16: (1.0, 0.0), torch.float16: (1.0, 0.0)}

# float32, values and sums of order one to ten, by the least exact of Winograd's tiles: some units in the last place of
# the largest product, where a wrong coefficient gives a tenth.
WINOGRAD = {"rtol": 1e-4, "atol": 1e-4}

# Factors rounded to TF32, 11 bits, which costs up to half a thousandth of each: sums of order one, in gradients of ten,
# over a few steps.
TF32 = {"rtol": 1e-2, "atol": 1e-2}

# sigmoid and tanh of the compiled code, in units in the last place of the result.
NONLINEARITY_ULPS = 3.0

# Of a float32 score, relative to Σ|v|, the largest it can be: |tanh| <= 1, each of its values is good to about two
# units in the last place (2.4e-7), and their sum adds about as much.
SCORE = 5e-7


def allowed_error(plain: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> float:
    """The largest error that a result in dtype may have, where `plain` is what plain PyTorch gives in that dtype.

    `scale` multiplies scores, and with them their last places, before a softmax. (Without that term 27 of 400 random
    problems at scale 30 would be beyond, on AVX2; with it the worst takes a quarter of what is allowed.)
    """
    ulps, least = FLOOR_ULPS[dtype]
    floor = ulps * torch.finfo(dtype).eps * max(largest(exact), least)
    scaled = max(abs(scale) - 1.0, 0.0) * FLOOR_ULPS[torch.float32][0] * torch.finfo(torch.float32).eps
    return TIMES_PLAIN * largest(plain.double() - exact) + floor + scaled


def largest(tensor: torch.Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


# A sentence's log-probability, which searches add up in float32: some words of order one.
LOG_PROBABILITY = {"rtol": 1e-5, "atol": 1e-5}
