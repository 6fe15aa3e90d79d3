from __future__ import annotations

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from examples import moving_digits
from examples.compare import Trainer, make_model
from examples.demo import SAME_LOSS
from examples.moving_digits import DIGIT, FRAME, HELD_OUT, SPEED, MovingDigits, bounce, load_glyphs


@pytest.fixture(scope="module")
def glyphs():
    return load_glyphs()


def test_glyphs_are_scans_with_black_and_white(glyphs):
    assert glyphs.shape == (1797, DIGIT, DIGIT)
    assert glyphs.min() == 0
    assert glyphs.max() == 1
    assert (glyphs.amax((1, 2)) > 0.5).all()


def test_batches_are_fixed_by_seed_and_number(glyphs):
    (first,), (second,) = (MovingDigits(seed=3, glyphs=glyphs).batch(7) for _ in range(2))
    assert first.shape == (4, 11, 1, FRAME, FRAME)
    assert first.min() == 0
    assert 0.5 < first.max() <= 1
    assert torch.equal(first, second)
    others = [MovingDigits(seed=3, glyphs=glyphs).batch(8), MovingDigits(seed=4, glyphs=glyphs).batch(7)]
    assert not any(torch.equal(first, other) for (other,) in others)


def test_held_out_digits_are_never_trained_on():
    glyphs = torch.zeros(HELD_OUT + 50, DIGIT, DIGIT)
    glyphs[-HELD_OUT:] = 1
    task = MovingDigits(glyphs=glyphs)
    assert all(task.batch(step)[0].max() == 0 for step in range(20))
    assert task.held_out()[0].amax((1, 2, 3, 4)).eq(1).all()


def test_a_digit_stays_whole_and_moves_at_its_speed(monkeypatch, glyphs):
    monkeypatch.setattr(moving_digits, "DIGITS", 1)
    films = bounce(glyphs[:1], 50, 30, torch.Generator().manual_seed(0))[:, :, 0]
    brightness = films.sum((2, 3))
    torch.testing.assert_close(brightness, glyphs[0].sum().expand(50, 30))

    pixels = torch.arange(FRAME, dtype=torch.float32)
    at = torch.stack([(films.sum(3) * pixels).sum(2), (films.sum(2) * pixels).sum(2)], -1) / brightness[..., None]
    moved = (at[:, 1:] - at[:, :-1]).norm(dim=-1)
    half_a_pixel_each_end = 2**0.5  # corners are rounded to whole pixels, in both directions
    assert moved.max() <= SPEED[1] + half_a_pixel_each_end
    assert SPEED[0] - 0.5 < moved.mean() < SPEED[1]
    assert (at.amax(1) - at.amin(1)).amax(0).ge(0.8 * (FRAME - DIGIT)).all()  # some go from wall to wall


@pytest.mark.slow
def test_plain_and_fused_learn_alike(glyphs):
    task = MovingDigits(batch_size=2, length=6, glyphs=glyphs)
    plain, fused = (Trainer(task, make_model(task, fused, "cpu"), steps=15) for fused in (False, True))
    untrained = plain.held_out_loss()
    for step in range(15):
        for trainer in (plain, fused):
            trainer.step(task.batch(step))
    assert plain.held_out_loss() < 0.9 * untrained
    assert fused.losses == pytest.approx(plain.losses, rel=SAME_LOSS)
    assert [type(module) for module in plain.model.modules()] != [type(module) for module in fused.model.modules()]


def test_the_model_does_not_see_the_frame_it_predicts(glyphs):
    task = MovingDigits(batch_size=1, glyphs=glyphs)
    model = make_model(task, True, "cpu")
    (frames,) = task.batch(0)
    changed = frames.clone()
    changed[:, 5:] = 0
    with torch.no_grad():
        before, after = model(frames), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])
