"""The documents' systems, each a composition of `hybridops.layers`."""

from __future__ import annotations

from hybridops.models.seq2seq import Seq2Seq

__all__ = ["Seq2Seq"]
