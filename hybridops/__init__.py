"""Fused ConvLSTM, additive attention and attention decoder for PyTorch.

Drop-in modules (`FusedConvLSTM`, ...) that compute the numbers of the plain ones (`hybridops.reference`) faster and in
less memory; the functions under them are in `hybridops.functional`, what runs them in `hybridops.backends`.
"""

from __future__ import annotations

from hybridops import backends, functional, reference
from hybridops.backends import use_backend
from hybridops.interop.fuse import fuse
from hybridops.modules import (
    FusedAdditiveAttention,
    FusedAttentionDecoder,
    FusedConcatAttention,
    FusedConvLSTM,
    FusedConvLSTMCell,
)

__version__ = "0.1.0"

__all__ = [
    "FusedAdditiveAttention",
    "FusedAttentionDecoder",
    "FusedConcatAttention",
    "FusedConvLSTM",
    "FusedConvLSTMCell",
    "backends",
    "functional",
    "fuse",
    "reference",
    "use_backend",
]
