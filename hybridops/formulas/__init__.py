"""The explicit formulas, forward and backward, in plain PyTorch: what every back end is held to. They are the back end
"reference" too: any device, any dtype, no speed.
"""

from __future__ import annotations

from hybridops.contract import BackEnd
from hybridops.formulas import additive_attention, attention_decoder, conv_lstm

BACK_END = BackEnd(
    name="reference",
    families={
        "conv_lstm": conv_lstm,
        "additive_attention": additive_attention,
        "attention_decoder": attention_decoder,
    },
    priority={},  # it runs where nothing else does
    unavailable_reason=lambda device_type: None,
    unsupported_reason=lambda family, x, spatial_dims: None,
    description=lambda: "plain PyTorch on any device",
)
