"""The documents' systems, each a composition of `hybridops.layers`."""

from __future__ import annotations

from hybridops.models.captioning import ImageCaptioner, SceneGraphCaptioner
from hybridops.models.multimodal import MultimodalClassifier
from hybridops.models.question_answering import VisualQuestionAnswering
from hybridops.models.seq2seq import Seq2Seq

__all__ = [
    "ImageCaptioner",
    "MultimodalClassifier",
    "SceneGraphCaptioner",
    "Seq2Seq",
    "VisualQuestionAnswering",
]
