"""Against figures from the packages' own command lines and from nltk, on three images."""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise

import pytest

from hybridops.evaluation import CiderD, SceneGraph, SceneObject, caption_scores, spice, translation_bleu

REFERENCES = [
    ["a small red circle is left of a blue square", "there is a red circle to the left of a blue square"],
    ["a large green triangle above a yellow circle", "the green triangle is above the yellow circle"],
    ["a man rides a bicycle down the street", "a person on a bike in the road"],
]
HYPOTHESES = [
    "a red circle is left of a blue square",
    "a green triangle below a yellow circle",
    "a man riding a bike down the street",
]
CIDER_D = [6.559151, 2.934666, 1.922619]
KNOWN = {
    "bleu": {"bleu_1": 0.843374, "bleu_2": 0.744476, "bleu_3": 0.634103, "bleu_4": 0.528800},
    "rouge_l": {"rouge_l": 0.826319},
    "cider": {"cider": 3.805479},
}
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR runs on Java")


def close(value):
    return pytest.approx(value, abs=5e-7)  # known to six places


def parse(text):
    """A colour before a shape, and "above" between two shapes."""
    words = text.split()
    objects = [SceneObject(b, frozenset({a})) for a, b in pairwise(words) if b in ("circle", "square")]
    relations = ((0, "above", 1),) if "above" in words and len(objects) == 2 else ()
    return SceneGraph(tuple(objects), relations)


@pytest.mark.parametrize("metric", KNOWN)
def test_known_figures(metric):
    pytest.importorskip("pycocoevalcap")
    assert caption_scores(REFERENCES, HYPOTHESES, [metric]) == close(KNOWN[metric])


# P and R: the longest common subsequence over the words of the hypothesis, and over those of a reference
@pytest.mark.parametrize(("number", "precision", "recall"), [(0, 9 / 9, 9 / 10), (1, 6 / 7, 6 / 8), (2, 6 / 8, 6 / 8)])
def test_rouge_l_of_each_image(number, precision, recall):
    pytest.importorskip("pycocoevalcap")
    one = slice(number, number + 1)
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert caption_scores(REFERENCES[one], HYPOTHESES[one], ["rouge_l"])["rouge_l"] == pytest.approx(expected)


@needs_java
@pytest.mark.slow
def test_known_meteor_and_all_that_can_be_had():
    pytest.importorskip("pycocoevalcap")
    scores = caption_scores(REFERENCES, HYPOTHESES)
    assert scores == close({"meteor": 0.464378} | KNOWN["bleu"] | KNOWN["rouge_l"] | KNOWN["cider"])


def test_no_java_is_said(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="'meteor' runs on Java"):
        caption_scores(REFERENCES, HYPOTHESES, ["meteor"])
    with pytest.warns(UserWarning, match="METEOR is left out"):
        scores = caption_scores(REFERENCES, HYPOTHESES, parser=parse)
    assert set(scores) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "spice"}


def test_spaces_and_an_empty_caption_change_nothing_else():
    pytest.importorskip("pycocoevalcap")
    spaced = [f" {text.replace(' ', '  ')}\n" for text in HYPOTHESES]
    metrics = ["bleu", "rouge_l", "cider"]
    assert caption_scores(REFERENCES, spaced, metrics) == caption_scores(REFERENCES, HYPOTHESES, metrics)
    assert caption_scores(REFERENCES, ["", "", ""], metrics) == pytest.approx(
        {"bleu_1": 0, "bleu_2": 0, "bleu_3": 0, "bleu_4": 0, "rouge_l": 0, "cider": 0}, abs=1e-9
    )


def test_cider_d_takes_frequencies_from_its_corpus():
    pytest.importorskip("sacreeos")
    score = CiderD(REFERENCES)
    assert score(REFERENCES, HYPOTHESES) == close(CIDER_D)
    assert score(REFERENCES[1:2], HYPOTHESES[1:2]) == close(CIDER_D[1:2])  # alone in its batch
    assert CiderD(REFERENCES[:1])(REFERENCES[:1], HYPOTHESES[:1]) == [0]  # alone in its corpus
    assert score(REFERENCES[:1], [f"{HYPOTHESES[0]} with a"])[0] < CIDER_D[0]


def test_cider_d_of_a_reference_itself_is_ten():
    pytest.importorskip("sacreeos")
    alone = [texts[:1] for texts in REFERENCES]
    assert CiderD(alone)(alone, [texts[0] for texts in alone]) == pytest.approx([10, 10, 10])


def test_spice_is_the_f1_of_tuples():
    references = [["a red circle above a blue square", "the large square"], ["a red circle"]]
    hypotheses = ["a red square above a blue square", "a green circle"]
    # said: square, red, blue, above: 4. true: circle, red, square, blue, large, above: 6. Shared: square, blue.
    # said: circle, green. true: circle, red. Shared: circle.
    assert spice(references, hypotheses, parse) == pytest.approx((2 * 2 / (4 + 6) + 1 / 2) / 2)
    assert caption_scores(references, hypotheses, ["spice"], parser=parse) == {"spice": pytest.approx(0.45)}
    assert spice(references, ["", "nothing"], parse) == 0
    assert spice([["a red circle"]], ["red circle"], parse) == 1


def test_translation_bleu():
    """BLEU-4 of the captions is known: smoothing and tokenisation change nothing in it."""
    pytest.importorskip("sacrebleu")
    assert translation_bleu(REFERENCES, HYPOTHESES) == pytest.approx(52.8800, abs=5e-5)
    uneven = [REFERENCES[0], REFERENCES[1][:1], REFERENCES[2]]
    swapped = [texts[::-1] for texts in uneven]
    assert translation_bleu(uneven, HYPOTHESES) == translation_bleu(swapped, HYPOTHESES)
    assert translation_bleu([["Das ist gut, oder?"]], ["Das ist gut , oder ?"]) == pytest.approx(100)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([["a"]], ["a"], ["bleu", "rouge"]), ValueError, "metrics must be one of 'bleu', .*, got 'rouge'"),
        (([["a"]], ["a"], ["spice"]), ValueError, "parser must be given for the metric 'spice'"),
        (([["a"]], ["a", "b"]), ValueError, "must be as many, one or more, got 1 and 2"),
        (([], []), ValueError, "must be as many, one or more, got 0 and 0"),
        ((["a cat"], ["a cat"]), TypeError, r"references\[0\] must be a list of texts, got the text 'a cat'"),
        (([["a"], []], ["a", "b"]), ValueError, r"references\[1\] must have one text or more"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        caption_scores(*arguments)


def test_a_corpus_of_none_is_named():
    with pytest.raises(ValueError, match="corpus must have the references of at least one image"):
        CiderD([])


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"sacrebleu is needed here .*pip install 'hybridops\[evaluation\]'"):
        translation_bleu([["a"]], ["a"])
