"""One autograd Function a family, blind to the back end: what a back end leaves over is done here, by ATen calls."""

from __future__ import annotations

from hybridops.autograd.additive_attention import additive_scores
from hybridops.autograd.conv_lstm import conv_lstm

__all__ = ["additive_scores", "conv_lstm"]
