"""How good a system is: scores of captions and classes, kinds of errors, pictures of attention, tables of variants."""

from __future__ import annotations

from hybridops.evaluation.scene_graph import SceneGraph, SceneObject

__all__ = ["SceneGraph", "SceneObject"]
