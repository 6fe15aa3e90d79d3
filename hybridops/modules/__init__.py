"""The fused modules: subclasses of the plain ones in hybridops.reference, with the same parameters and calls."""

from __future__ import annotations

from hybridops.modules.additive_attention import FusedAdditiveAttention, FusedConcatAttention
from hybridops.modules.attention_decoder import FusedAttentionDecoder
from hybridops.modules.conv_lstm import FusedConvLSTM, FusedConvLSTMCell

__all__ = [
    "FusedAdditiveAttention", "FusedAttentionDecoder", "FusedConcatAttention", "FusedConvLSTM", "FusedConvLSTMCell",
]  # fmt: skip
