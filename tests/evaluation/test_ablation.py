from __future__ import annotations

import io

import pytest

from hybridops.evaluation import Ablation, ablate

VARIANTS = {
    "whole": lambda seed: {"accuracy": 0.5 + seed, "loss": 2.0},
    "without attention": lambda seed: {"loss": 3.0, "accuracy": 0.25},
}


def test_one_seed():
    assert ablate(VARIANTS).markdown().splitlines() == [
        "| variant | accuracy | loss |",
        "| --- | --: | --: |",
        "| whole | 0.500 | 2.000 |",
        "| without attention | 0.250 | 3.000 |",
    ]


def test_several_seeds_give_mean_and_deviation():
    ablation = ablate(VARIANTS, seeds=[0, 1, 2])
    assert ablation.scores["whole"] == {"accuracy": [0.5, 1.5, 2.5], "loss": [2.0, 2.0, 2.0]}
    assert ablation.markdown().splitlines()[2:] == [
        "| whole | 1.500 ± 1.000 | 2.000 ± 0.000 |",
        "| without attention | 0.250 ± 0.000 | 3.000 ± 0.000 |",
    ]


def test_the_rich_table_says_the_same():
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=80)
    console.print(Ablation({"a": {"score": [1.0]}, "b": {"score": [0.5]}}).rich())
    lines = console.file.getvalue().splitlines()
    assert [[cell.strip() for cell in lines[row].strip("┃│").replace("┃", "│").split("│")] for row in (1, 3, 4)] == [
        ["variant", "score"],
        ["a", "1.000"],
        ["b", "0.500"],
    ]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="variants and seeds must be one or more, got 0 and 1"):
        ablate({})
    with pytest.raises(
        ValueError, match=r"must all give the metrics \['accuracy', 'loss'\], got \['loss'\] of 'other'"
    ):
        ablate(VARIANTS | {"other": lambda seed: {"loss": 1.0}})
