"""The documents' systems, each a composition of `hybridops.layers`."""

from __future__ import annotations

from hybridops.models.captioning import ImageCaptioner, SceneGraphCaptioner
from hybridops.models.forecasting import AnomalyDetector, Forecaster
from hybridops.models.multimodal import MultimodalClassifier
from hybridops.models.music import MusicGenerator
from hybridops.models.question_answering import VisualQuestionAnswering
from hybridops.models.seq2seq import Seq2Seq
from hybridops.models.sequence import MLP, ConvClassifier, SequenceClassifier
from hybridops.models.text import SentimentClassifier, TextClassifier
from hybridops.models.transformer import TransformerSeq2Seq

__all__ = [
    "MLP",
    "AnomalyDetector",
    "ConvClassifier",
    "Forecaster",
    "ImageCaptioner",
    "MultimodalClassifier",
    "MusicGenerator",
    "SceneGraphCaptioner",
    "SentimentClassifier",
    "Seq2Seq",
    "SequenceClassifier",
    "TextClassifier",
    "TransformerSeq2Seq",
    "VisualQuestionAnswering",
]
