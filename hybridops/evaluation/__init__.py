"""How good a system is: scores of captions and classes, kinds of errors, pictures of attention, tables of variants.

What comes from other packages needs the extra: pip install 'hybridops[evaluation]'.
"""

from __future__ import annotations

from hybridops.evaluation.ablation import Ablation, ablate
from hybridops.evaluation.captions import CiderD, caption_scores, spice, translation_bleu
from hybridops.evaluation.classification import accuracy, mean_average_precision, top_k_accuracy
from hybridops.evaluation.errors import CaptionErrors, caption_errors
from hybridops.evaluation.heatmaps import attention_figure, resize_attention
from hybridops.evaluation.scene_graph import Parser, SceneGraph, SceneObject

__all__ = [
    "Ablation",
    "CaptionErrors",
    "CiderD",
    "Parser",
    "SceneGraph",
    "SceneObject",
    "ablate",
    "accuracy",
    "attention_figure",
    "caption_errors",
    "caption_scores",
    "mean_average_precision",
    "resize_attention",
    "spice",
    "top_k_accuracy",
    "translation_bleu",
]
