"""Building blocks of the models, on the fused modules: encoders, pooling, decoders of words, search."""

from __future__ import annotations

from hybridops.layers.adaptive import AdaptiveTokenDecoder
from hybridops.layers.decoding import AttentionTokenDecoder, RecurrentTokenDecoder, TokenDecoder
from hybridops.layers.encoders import ConvEncoder, Memory, PretrainedEncoder, RNNEncoder, length_mask
from hybridops.layers.objects import ObjectEncoder, roi_align
from hybridops.layers.pooling import AttentionPooling, LastState, MaxPooling, MeanPooling
from hybridops.layers.search import Hypotheses, beam_search, greedy_search, sample, search_best, token_step

__all__ = [
    "AdaptiveTokenDecoder",
    "AttentionPooling",
    "AttentionTokenDecoder",
    "ConvEncoder",
    "Hypotheses",
    "LastState",
    "MaxPooling",
    "MeanPooling",
    "Memory",
    "ObjectEncoder",
    "PretrainedEncoder",
    "RNNEncoder",
    "RecurrentTokenDecoder",
    "TokenDecoder",
    "beam_search",
    "greedy_search",
    "length_mask",
    "roi_align",
    "sample",
    "search_best",
    "token_step",
]
