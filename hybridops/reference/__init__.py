"""The plain PyTorch modules, as people write them, and beside them the explicit formulas every back end is held to.

The modules are the eager baseline and the layout of the parameters; the fused modules subclass them. The formulas
(`conv_lstm_forward`, `additive_scores_backward`, ...) are the `reference` back end: any device, any dtype, no speed.
"""

from __future__ import annotations

from hybridops.reference.additive_attention import AdditiveAttention, ConcatAttention, PreparedKeys
from hybridops.reference.attention_decoder import AttentionDecoder, DecoderState
from hybridops.reference.conv_lstm import ConvLSTM, ConvLSTMCell

__all__ = [
    "AdditiveAttention", "AttentionDecoder", "ConcatAttention", "ConvLSTM", "ConvLSTMCell", "DecoderState",
    "PreparedKeys",
]  # fmt: skip
