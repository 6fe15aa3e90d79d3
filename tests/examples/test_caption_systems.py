"""The systems that write captions run, on a little of the data, and their own parts do what they say."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("pycocoevalcap")
pytest.importorskip("sacreeos")

from examples.systems import SYSTEMS, scene_captions
from examples.systems.ablations import PooledTokenDecoder
from examples.systems.scene_captions import Vocabulary
from examples.systems.table import Options, Row
from examples.systems.training_strategies import EPOCHS, WEIGHTS, Curriculum, add_heads, losses_of_tasks
from hybridops.layers import Memory
from tests import tolerances


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(smoke=True, out=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["captioning", "self_critical", "training_strategies", "ablations"])
def test_they_run(name, options):
    assert name in SYSTEMS
    rows = importlib.import_module(f"examples.systems.{name}").run(options)
    assert rows
    assert all(isinstance(row, Row) and row.must for row in rows)
    if name == "captioning":
        pictures = {path.name for path in options.out.glob("*.png")}
        assert {"captioning_captions.png", "captioning_curves.png", "captioning_attention_spatial_0.png"} <= pictures


def test_batches_are_of_the_scenes(options):
    data = scene_captions.load(options)
    batch = next(iter(scene_captions.batches(data.train)))
    assert torch.equal(batch.number, torch.arange(32))
    assert torch.equal(batch.images, data.train.drawn.images)
    for number, scene in enumerate(data.train.drawn.scenes):
        assert tuple(data.vocabulary.decode(words) for words in batch.words[number]) == scene.captions


def test_a_scene_s_own_caption_has_no_errors(options):
    data = scene_captions.load(options)
    scores = scene_captions.judge([scene.captions[0] for scene in data.test.drawn.scenes], data.test)
    assert scores["exact"] == 1.0
    others = [data.test.drawn.scenes[0].captions[0]] * len(data.test)
    assert scene_captions.exact(others, data.test) == 1 / len(data.test)
    assert scores["attribute"] == scores["relation"] == scores["chair_i"] == scores["repetition"] == 0.0


def test_an_untrained_captioner_attends_to_all(options):
    data = scene_captions.load(options)
    model = scene_captions.captioner("spatial", len(data.vocabulary)).eval()
    entropy, penalty = scene_captions.attended(model, data.test)
    # about uniform over words, and over 36 regions
    words = (data.test.words[:, :, 1:] != Vocabulary.PAD).sum(2).float()
    assert abs(entropy - torch.tensor(float(len(data.vocabulary))).log().item()) < 0.5
    assert abs(penalty - (36 * (1 - words / 36).square()).mean().item()) < 2.0


def test_a_curriculum_s_epochs_are_as_long_and_start_easy():
    difficulty = torch.arange(100)
    sampler = Curriculum(difficulty, seed=0)
    epochs = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert all(len(epoch) == len(sampler) == 100 for epoch in epochs)
    assert max(epochs[0]) < 40
    assert sorted(epochs[-1]) == difficulty.tolist()


def test_of_epochs_without_an_exact_match_the_better_captions_are_kept(options, monkeypatch):
    data = scene_captions.load(options)
    right = [scene.captions[0] for scene in data.validation.drawn.scenes]
    shares = iter([0.3, 0.9, 0.6])  # of each caption's words, in three epochs

    def describe(*args):
        share = next(shares)
        captions = [" ".join(text.split()[: int(share * len(text.split()))]) for text in right]
        assert scene_captions.exact(captions, data.validation) == 0
        return captions

    monkeypatch.setattr(scene_captions, "describe", describe)
    model = scene_captions.captioner("spatial", len(data.vocabulary))
    assert scene_captions.train(model, data, replace(options, smoke=False), epochs=3).best_epoch == 1


def test_weights_of_tasks_make_gradients_of_the_encoder_as_large(options):
    data = scene_captions.load(options)
    torch.manual_seed(0)
    model = scene_captions.captioner("spatial", len(data.vocabulary))
    add_heads(model)
    losses = losses_of_tasks(model, next(iter(scene_captions.batches(data.train))))
    norms = []
    for task, weight in WEIGHTS.items():
        gradients = torch.autograd.grad(weight * losses[task], list(model.encoder.parameters()), retain_graph=True)
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
    assert max(norms) < 2 * min(norms)


def test_the_decoder_without_recurrence_steps_as_it_reads():
    torch.manual_seed(0)
    decoder = PooledTokenDecoder(9, 5).double()
    memory = Memory(torch.randn(3, 4, 5).double(), None, torch.randn(3, 5).double())
    tokens = torch.randint(9, (3, 6))
    logits, _ = decoder(tokens, memory)
    state = decoder.start(memory)
    for step, word in enumerate(tokens.unbind(1)):
        found, _, state = decoder.step(word, state)
        torch.testing.assert_close(found, logits[:, step], **tolerances.FLOAT64)
