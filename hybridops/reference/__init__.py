"""The plain PyTorch modules, as people write them: the eager baseline and the layout of the parameters. The fused
modules subclass them.
"""

from __future__ import annotations

from hybridops.reference.additive_attention import AdditiveAttention, ConcatAttention, PreparedKeys
from hybridops.reference.attention_decoder import AttentionDecoder, DecoderState
from hybridops.reference.conv_lstm import ConvLSTM, ConvLSTMCell

__all__ = [
    "AdditiveAttention", "AttentionDecoder", "ConcatAttention", "ConvLSTM", "ConvLSTMCell", "DecoderState",
    "PreparedKeys",
]  # fmt: skip
