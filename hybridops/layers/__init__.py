"""Building blocks of the models, on the fused modules: encoders, pooling, decoders of words, search."""

from __future__ import annotations

from hybridops.layers.decoding import AttentionTokenDecoder, RecurrentTokenDecoder, TokenDecoder
from hybridops.layers.encoders import ConvEncoder, Memory, PretrainedEncoder, RNNEncoder, length_mask
from hybridops.layers.pooling import AttentionPooling, LastState, MaxPooling, MeanPooling
from hybridops.layers.search import Hypotheses, beam_search, greedy_search, sample, search_best, token_step

__all__ = [
    "AttentionPooling",
    "AttentionTokenDecoder",
    "ConvEncoder",
    "Hypotheses",
    "LastState",
    "MaxPooling",
    "MeanPooling",
    "Memory",
    "PretrainedEncoder",
    "RNNEncoder",
    "RecurrentTokenDecoder",
    "TokenDecoder",
    "beam_search",
    "greedy_search",
    "length_mask",
    "sample",
    "search_best",
    "token_step",
]
