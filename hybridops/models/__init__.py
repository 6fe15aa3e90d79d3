"""The documents' systems, each a composition of `hybridops.layers`."""

from __future__ import annotations

from hybridops.models.captioning import ImageCaptioner, SceneGraphCaptioner
from hybridops.models.forecasting import AnomalyDetector, Forecaster
from hybridops.models.memory import NeuralTuringMachine
from hybridops.models.multimodal import MultimodalClassifier
from hybridops.models.music import MusicGenerator
from hybridops.models.question_answering import VisualQuestionAnswering
from hybridops.models.seq2seq import Seq2Seq
from hybridops.models.sequence import MLP, ConvClassifier, SequenceClassifier
from hybridops.models.text import SentimentClassifier, TextClassifier
from hybridops.models.transformer import TransformerSeq2Seq
from hybridops.models.video import Conv3dClassifier, ConvLSTMClassifier, VideoClassifier
from hybridops.models.video_captioning import VideoCaptioner
from hybridops.models.video_forecasting import ConvLSTMForecaster
from hybridops.models.video_fusion import SegmentClassifier, TwoStreamClassifier
from hybridops.models.video_question_answering import VideoQuestionAnswering
from hybridops.models.video_transformer import GraphRecurrentClassifier, SpaceTimeClassifier, ViTRecurrentClassifier

__all__ = [
    "MLP",
    "AnomalyDetector",
    "Conv3dClassifier",
    "ConvClassifier",
    "ConvLSTMClassifier",
    "ConvLSTMForecaster",
    "Forecaster",
    "GraphRecurrentClassifier",
    "ImageCaptioner",
    "MultimodalClassifier",
    "MusicGenerator",
    "NeuralTuringMachine",
    "SceneGraphCaptioner",
    "SegmentClassifier",
    "SentimentClassifier",
    "Seq2Seq",
    "SequenceClassifier",
    "SpaceTimeClassifier",
    "TextClassifier",
    "TransformerSeq2Seq",
    "TwoStreamClassifier",
    "ViTRecurrentClassifier",
    "VideoCaptioner",
    "VideoClassifier",
    "VideoQuestionAnswering",
    "VisualQuestionAnswering",
]
