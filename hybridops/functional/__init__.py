"""The public functions: the mathematics, the shapes, the checks of arguments; each picks a back end and runs it.

A call goes through four files, <family>.* in functional/, autograd/, the back end's folder and csrc/<device>/.
Symbols are those of the ConvLSTM (B batch, T time, C input channels, H hidden channels, S* one to three spatial sizes,
K* the kernel), of additive attention (B batch, S queries, T keys, A attention channels, D value channels), and of the
attention decoder (S steps, E input, H hidden, G gates beside those of attention).

Dtypes: float32, float64, bfloat16, float16, the same for all arguments but recurrent states. Sums are
accumulated in float32 (float64 for float64), and so is the cell state within a sequence. Under autocast, arguments are
cast to the autocast dtype, a cell state is not.

Results are tensors of their own, no views. One that the backward reads (the output of more than one step, the weights
of attention) may be written into, but then raises autograd's own error in the backward, as with `nn.LSTM`.

Every function raises TypeError or ValueError, before anything is computed, for an argument of the wrong type, dtype,
device or shape, and RuntimeError where a back end was named (by `backend=`, `hybridops.use_backend` or
HYBRIDOPS_BACKEND) that is not here or does not take these arguments.
"""

from __future__ import annotations

from hybridops.functional.additive_attention import (
    MAX_STEP_QUERIES,
    PreparedExponentials,
    SharedKeys,
    additive_attention,
    additive_attention_step,
    additive_scores,
    location_attention,
    prepare_exponentials,
    share_keys,
)
from hybridops.functional.attention_decoder import (
    PackedDecoder,
    attention_decoder,
    attention_decoder_step,
    pack_decoder_weights,
)
from hybridops.functional.conv_lstm import conv_lstm, conv_lstm_cell
from hybridops.functional.linear import PackedLinear, likeliest_packed, linear_packed, pack_linear

__all__ = [
    "MAX_STEP_QUERIES",
    "PackedDecoder",
    "PackedLinear",
    "PreparedExponentials",
    "SharedKeys",
    "additive_attention",
    "additive_attention_step",
    "additive_scores",
    "attention_decoder",
    "attention_decoder_step",
    "conv_lstm",
    "conv_lstm_cell",
    "likeliest_packed",
    "linear_packed",
    "location_attention",
    "pack_decoder_weights",
    "pack_linear",
    "prepare_exponentials",
    "share_keys",
]
