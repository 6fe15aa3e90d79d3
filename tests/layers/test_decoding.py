"""Decoders of words, by themselves: what the models that they are part of do not test."""

from __future__ import annotations

import pytest
import torch

from hybridops.layers import Memory, RecurrentTokenDecoder


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
def test_a_recurrent_decoder_whose_lstm_is_of_another_class():
    """As quantisation puts there: the state has a cell all the same."""
    decoder = RecurrentTokenDecoder(9, 5, 6, 6).eval()
    quantised = torch.ao.quantization.quantize_dynamic(decoder, {torch.nn.LSTM}, torch.qint8)
    memory, tokens = Memory(torch.randn(2, 3, 6), None, torch.randn(2, 6)), torch.randint(9, (2, 4))
    with torch.no_grad():
        difference = (quantised(tokens, memory)[0] - decoder(tokens, memory)[0]).abs().max()
    assert 0 < difference < 0.05
