"""The oracle: explicit forward and backward of an op family in plain PyTorch; also the "reference" back end."""

from __future__ import annotations
