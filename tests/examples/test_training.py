"""The loop of examples/training.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Sampler, SequentialSampler, TensorDataset

pytest.importorskip("rich")

from examples.training import Plan, fit
from hybridops.training import CurriculumSampler
from tests.processes import run_python

DATA = TensorDataset(torch.linspace(-1, 1, 64)[:, None], 3 * torch.linspace(-1, 1, 64)[:, None] + 1)


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def make_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def score(model) -> float:
    return -loss(model, DATA.tensors).item()


def test_it_learns_and_gives_the_best_epoch():
    scores = iter([1.0, 3.0, 2.0])
    states = []

    def judge(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        states.append(model.weight.item())
        return next(scores)

    model = make_model()
    history = fit(model, DATA, loss, judge, Plan(epochs=3, batch_size=16, learning_rate=0.1))
    assert len(history.losses) == 3 * 4
    assert history.scores == [1.0, 3.0, 2.0]
    assert history.best_epoch == 1
    assert model.weight.item() == states[1] != states[2]
    assert history.losses[-1] < history.losses[0]


def test_patience():
    history = fit(make_model(), DATA, loss, lambda model: 0.0, Plan(epochs=9, patience=2))
    assert len(history.scores) == 3


def length_sampler() -> Sampler[int]:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from examples.systems.sentiment import LengthSampler

    return LengthSampler([(torch.zeros(1 + number % 3), 0) for number in range(len(DATA))], batch_size=16, seed=0)


@pytest.mark.parametrize("make_sampler", [lambda: None, length_sampler], ids=["random order", "LengthSampler"])
def test_a_run_that_was_cut_short_goes_on_as_if_it_had_not_been(make_sampler, tmp_path):
    def train(judge, **options):
        model = nn.Sequential(make_model(), nn.Dropout(0.5))
        plan = Plan(epochs=4, batch_size=16, **options)
        return model, fit(model, DATA, loss, judge, plan, sampler=make_sampler())

    class CutError(Exception):
        pass

    def cut(model, calls=[]):  # noqa: B006
        calls.append(model)
        if len(calls) == 3:
            raise CutError
        return score(model)

    whole, _ = train(score)
    with pytest.raises(CutError):
        train(cut, checkpoint=tmp_path / "checkpoint.pt")
    resumed, history = train(score, checkpoint=tmp_path / "checkpoint.pt")
    assert len(history.scores) == 4
    assert torch.equal(resumed[0].weight, whole[0].weight)
    assert torch.equal(resumed[0].bias, whole[0].bias)


def test_the_order_of_batches_of_a_length_follows_from_the_epoch():
    sampler = length_sampler()
    orders = []
    for epoch in (0, 1, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(DATA)))
    assert orders[0] != orders[1] == orders[2]


def test_frozen_parameters_are_left_alone():
    model = nn.Sequential(make_model(), make_model())
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, DATA, loss, score, Plan(epochs=2, learning_rate=0.1))
    assert torch.equal(model[0].weight, before)


def test_a_sampler():
    first = []

    def note(model, batch):
        first.append(batch[0][0].item())
        return loss(model, batch)

    fit(make_model(), DATA, note, score, Plan(epochs=1, batch_size=32), sampler=SequentialSampler(DATA))
    assert first == [DATA[0][0].item(), DATA[32][0].item()]


def test_a_sampler_is_told_of_the_epoch_and_may_make_it_longer():
    sizes = []

    def note(model, batch):
        sizes.append(len(batch[0]))
        return loss(model, batch)

    sampler = CurriculumSampler(DATA.tensors[0][:, 0], epochs=2, start=0.25)
    fit(make_model(), DATA, note, score, Plan(epochs=3, batch_size=16), sampler=sampler)
    assert sizes == [16, 16, 16, 15, 16, 16, 16, 16]  # of 16, 47 and 64 examples


TORCHRUN = """
import runpy, sys
sys.argv = ["torchrun", "--standalone", "--nproc-per-node", "2", {script!r}]
runpy.run_module("torch.distributed.run", run_name="__main__")
"""
SCRIPT = """
import os, pathlib, sys
sys.path.insert(0, {root!r})
import torch
from tests.examples.test_training import DATA, Plan, fit, loss, make_model, score
model = make_model()
history = fit(model, DATA, loss, score, Plan(epochs=3, batch_size=16, learning_rate=0.1))
found = f"{{len(history.losses)}} {{model.weight.item()}} {{history.scores[-1] > history.scores[0]}}"
pathlib.Path(__file__).with_name("rank" + os.environ["RANK"]).write_text(found)
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    run_python(TORCHRUN.format(script=str(script)), OMP_NUM_THREADS="1")
    found = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]  # in one stream their lines may mix
    assert found[0].startswith("6 ")  # 64 examples: 32 each, in two batches, three times
    assert found[0] == found[1]
    assert found[0].endswith("True")
