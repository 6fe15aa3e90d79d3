"""One autograd Function a family, blind to the back end: what a back end leaves over is done here, by ATen calls."""

from __future__ import annotations

from hybridops.autograd import additive_attention, attention_decoder, conv_lstm, raw_ops
from hybridops.autograd.transforms import under_transform

__all__ = ["additive_attention", "attention_decoder", "conv_lstm", "raw_ops", "under_transform"]
