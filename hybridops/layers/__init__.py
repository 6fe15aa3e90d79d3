"""Building blocks of the models, on the fused modules: encoders, pooling, decoders of words, search."""

from __future__ import annotations

from hybridops.layers.adaptive import AdaptiveTokenDecoder
from hybridops.layers.co_attention import AlternatingCoAttention, Attended, CoAttention, CrossModalAttention
from hybridops.layers.decoding import AttentionTokenDecoder, RecurrentTokenDecoder, TokenDecoder
from hybridops.layers.encoders import ConvEncoder, Memory, PretrainedEncoder, RNNEncoder, length_mask
from hybridops.layers.frames import Conv3dEncoder, FrameEncoder, SegmentConsensus
from hybridops.layers.fusion import (
    FUSIONS,
    BilinearFusion,
    CompactBilinearPooling,
    ConcatFusion,
    ElementwiseFusion,
    FactorizedBilinearPooling,
    GatedFusion,
    LateFusion,
    VectorFusion,
    WeightedVoting,
    signed_sqrt,
    vector_fusion,
)
from hybridops.layers.graph import GraphConvolution, GraphEncoder, RelationGraph, box_relations, similarity_graph
from hybridops.layers.memory import NTMCell, NTMEncoder, NTMState
from hybridops.layers.objects import ObjectEncoder, roi_align
from hybridops.layers.pooling import AttentionPooling, LastState, MaxPooling, MeanPooling
from hybridops.layers.search import Hypotheses, beam_search, greedy_search, sample, search_best, token_step
from hybridops.layers.shots import ShotEncoder, ShotMemory, VideoEncoder
from hybridops.layers.two_level import TwoLevelAttention, TwoLevelTokenDecoder
from hybridops.layers.vision_transformer import PatchEmbedding, SelfAttention, SpaceTimeTransformer, VisionTransformer

__all__ = [
    "FUSIONS",
    "AdaptiveTokenDecoder",
    "AlternatingCoAttention",
    "Attended",
    "AttentionPooling",
    "AttentionTokenDecoder",
    "BilinearFusion",
    "CoAttention",
    "CompactBilinearPooling",
    "ConcatFusion",
    "Conv3dEncoder",
    "ConvEncoder",
    "CrossModalAttention",
    "ElementwiseFusion",
    "FactorizedBilinearPooling",
    "FrameEncoder",
    "GatedFusion",
    "GraphConvolution",
    "GraphEncoder",
    "Hypotheses",
    "LastState",
    "LateFusion",
    "MaxPooling",
    "MeanPooling",
    "Memory",
    "NTMCell",
    "NTMEncoder",
    "NTMState",
    "ObjectEncoder",
    "PatchEmbedding",
    "PretrainedEncoder",
    "RNNEncoder",
    "RecurrentTokenDecoder",
    "RelationGraph",
    "SegmentConsensus",
    "SelfAttention",
    "ShotEncoder",
    "ShotMemory",
    "SpaceTimeTransformer",
    "TokenDecoder",
    "TwoLevelAttention",
    "TwoLevelTokenDecoder",
    "VectorFusion",
    "VideoEncoder",
    "VisionTransformer",
    "WeightedVoting",
    "beam_search",
    "box_relations",
    "greedy_search",
    "length_mask",
    "roi_align",
    "sample",
    "search_best",
    "signed_sqrt",
    "similarity_graph",
    "token_step",
    "vector_fusion",
]
