"""Scores of captions and translations against references, by the packages that published scores are made with.

Captions are compared word by word, and words are what spaces separate. Lower-case them and strip punctuation beforehand
where they are free text.
"""

from __future__ import annotations

import shutil
import statistics
import warnings
from collections.abc import Sequence

from hybridops.checks import check_choice
from hybridops.evaluation.imports import require
from hybridops.evaluation.scene_graph import Parser

METRICS = ("bleu", "rouge_l", "cider", "meteor", "spice")


def caption_scores(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    metrics: Sequence[str] | None = None,
    *,
    parser: Parser | None = None,
) -> dict[str, float]:
    """Scores of one caption an image against that image's references, over all images.

    ======== ======================================= ==========================================================
    metric   keys                                    needs
    ======== ======================================= ==========================================================
    bleu     bleu_1 ... bleu_4, of the corpus        pycocoevalcap (Papineni et al. 2002; closest length)
    rouge_l  rouge_l, the mean                       pycocoevalcap (Lin 2004; β = 1.2, as for COCO)
    cider    cider, the mean: CIDEr-D                pycocoevalcap (Vedantam et al. 2015)
    meteor   meteor, of the corpus                   pycocoevalcap and Java (Denkowski & Lavie 2014); ~10 s to start
    spice    spice, the mean: F1 over tuples         `parser` (Anderson et al. 2016)
    ======== ======================================= ==========================================================

    CIDEr takes its document frequencies from `references`: of one image alone it is 0.

    Args:
        references: of each image its references, one or more.
        hypotheses: one caption for each image.
        metrics: which of "bleu", "rouge_l", "cider", "meteor" and "spice". A metric that is named is given, or raises.
            None: all that can be had here, with a warning where METEOR cannot, and SPICE with a parser.
        parser: what a caption says, as a SceneGraph. SPICE's own needs a download; a grammar does for drawn scenes.

    Raises:
        ValueError: no images, not one hypothesis for each, an image without a reference, an unknown metric, or SPICE
            without a parser.
        RuntimeError: METEOR is named and there is no Java.
    """
    references, hypotheses = _checked(references, hypotheses)
    if metrics is None:
        metrics = [name for name in METRICS if name != "spice" or parser is not None]
        if shutil.which("java") is None:
            warnings.warn("METEOR is left out: it runs on Java, and there is none on PATH", stacklevel=2)
            metrics.remove("meteor")
    for metric in metrics:
        check_choice("metrics", metric, METRICS)
    scores: dict[str, float] = {}
    for metric in metrics:
        if metric != "spice":
            scores |= _COCO[metric](dict(enumerate(references)), {i: [text] for i, text in enumerate(hypotheses)})
        elif parser is None:
            raise ValueError("parser must be given for the metric 'spice', got None")
        else:
            scores["spice"] = spice(references, hypotheses, parser)
    return scores


def spice(references: Sequence[Sequence[str]], hypotheses: Sequence[str], parser: Parser) -> float:
    """Mean over images of the F1 of a caption's tuples, against those of all references together
    (Anderson et al. 2016, https://arxiv.org/abs/1607.08822, without WordNet's synonyms). 0 where none is shared.
    """
    references, hypotheses = _checked(references, hypotheses)
    scores = []
    for texts, hypothesis in zip(references, hypotheses, strict=True):
        said = parser(hypothesis).tuples()
        true = frozenset[tuple[str, ...]]().union(*(parser(text).tuples() for text in texts))
        scores.append(2 * len(said & true) / max(1, len(said) + len(true)))
    return statistics.fmean(scores)


class CiderD:
    """CIDEr-D of single captions, with the document frequencies of a corpus: a reward for self-critical training
    (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726). By the package `sacreeos`.

    Let all texts, those of the corpus among them, end with an end token if they ended: a reward that does not see it
    teaches captions to end in "with a" (Hu et al. 2023, https://arxiv.org/abs/2305.12254).

    Args:
        corpus: of each image of the training set its references.
    """

    def __init__(self, corpus: Sequence[Sequence[str]]) -> None:
        if not len(corpus):
            raise ValueError("corpus must have the references of at least one image, got none")
        self._metric = require("sacreeos.metric.cider_d").CiderD(corpus_refss=[list(texts) for texts in corpus])

    def __call__(self, references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> list[float]:
        """The score of each hypothesis, 0 to 10."""
        references, hypotheses = _checked(references, hypotheses)
        _, scores = self._metric.compute(hypotheses, references)
        return [float(score) for score in scores]


def translation_bleu(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """BLEU of a corpus, 0 to 100, by `sacrebleu` as it comes: its tokenisation "13a", exponential smoothing
    (Post 2018, https://arxiv.org/abs/1804.08771).

    Args:
        references: of each sentence its translations, one or more.
        hypotheses: one translation for each sentence.
    """
    references, hypotheses = _checked(references, hypotheses)
    most = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    return float(require("sacrebleu").corpus_bleu(hypotheses, streams).score)


_References = dict[int, list[str]]  # by image; hypotheses too, one for each


def _bleu(references: _References, hypotheses: _References) -> dict[str, float]:
    bleu = require("pycocoevalcap.bleu.bleu").Bleu(4)
    values, _ = bleu.compute_score(references, hypotheses, verbose=0)
    return {f"bleu_{n}": float(value) for n, value in enumerate(values, start=1)}


def _rouge_l(references: _References, hypotheses: _References) -> dict[str, float]:
    value, _ = require("pycocoevalcap.rouge.rouge").Rouge().compute_score(references, hypotheses)
    return {"rouge_l": float(value)}


def _cider(references: _References, hypotheses: _References) -> dict[str, float]:
    value, _ = require("pycocoevalcap.cider.cider").Cider().compute_score(references, hypotheses)
    return {"cider": float(value)}


def _meteor(references: _References, hypotheses: _References) -> dict[str, float]:
    if shutil.which("java") is None:
        raise RuntimeError("the metric 'meteor' runs on Java, and there is none on PATH")
    meteor = require("pycocoevalcap.meteor.meteor").Meteor()
    value, _ = meteor.compute_score(references, hypotheses)
    for pipe in (meteor.meteor_p.stdout, meteor.meteor_p.stderr):  # it ends its process and leaves these open
        pipe.close()
    return {"meteor": float(value)}


_COCO = {"bleu": _bleu, "rouge_l": _rouge_l, "cider": _cider, "meteor": _meteor}


def _checked(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """With single spaces only: METEOR reads a line a caption, and ROUGE-L takes a word between two spaces."""
    if not len(hypotheses) or len(references) != len(hypotheses):
        raise ValueError(
            f"references and hypotheses must be as many, one or more, got {len(references)} and {len(hypotheses)}"
        )
    for number, texts in enumerate(references):
        if isinstance(texts, str):
            raise TypeError(f"references[{number}] must be a list of texts, got the text {texts!r}")
        if not len(texts):
            raise ValueError(f"references[{number}] must have one text or more, got none")
    return [[_spaced(text) for text in texts] for texts in references], [_spaced(text) for text in hypotheses]


def _spaced(text: str) -> str:
    return " ".join(text.split())
