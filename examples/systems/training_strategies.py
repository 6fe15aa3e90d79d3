"""Ways to train the same captioner, each against plain training for as many epochs: what they change, as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler

from examples.data.drawn_scenes import IMAGE, MOST, NAMES
from examples.systems import scene_captions
from examples.systems.scene_captions import CHANNELS, GRID, Batch, Data, repeat
from examples.systems.table import Options, Row, Speed
from hybridops.layers import ConvEncoder, Memory
from hybridops.models import ImageCaptioner
from hybridops.training import BoxHead, ClassHead, CurriculumSampler, MultiTaskLoss, box_loss, freeze, unfreeze

SCENES, EPOCHS = 2000, 6  # half of what the captioners have, for half as long
# λ of each task. At the start the gradients of the encoder's weights have norms of .05 (caption), 2.6 (class) and
# 11 (box): so weighted, they are as large. With .3 for class and box it is boxes that train it; captions learn little.
WEIGHTS = {"caption": 1.0, "class": 0.02, "box": 0.005}
FEATURES = GRID[0] * GRID[1] * CHANNELS[-1]  # of all regions


def run(options: Options) -> list[Row]:
    data = scene_captions.load(options, SCENES)
    ways = {
        "plain": plain,
        "with classes and boxes": multi_task,
        "few objects first": partial(curriculum, difficulty=data.train.drawn.mask.sum(1)),
        "short captions first": partial(curriculum, difficulty=(data.train.words != 0).sum((1, 2))),
        "pretrained encoder, frozen, then not": pretrained_encoder,
        "decoder that was a language model": pretrained_decoder,
    }
    scores = {}
    for name, way in ways.items():
        torch.manual_seed(options.seed)
        model = scene_captions.captioner("spatial", len(data.vocabulary))
        way(model, data, options)
        scores[name] = scene_captions.judge(scene_captions.describe(model, data.test, data), data.test)
    base, where = scores.pop("plain"), f"{len(data.train)} drawn scenes, {EPOCHS} epochs"
    rows = []
    for name, found in scores.items():
        note = ", ".join(f"{metric} {value:.3f} ({base[metric]:.3f})" for metric, value in found.items())
        rows.append(Row(f"training, {name}", where, "CIDEr-D", found["cider"], base["cider"], "as it is", True, note))
    return rows


def plain(model: ImageCaptioner, data: Data, options: Options) -> None:
    scene_captions.train(model, data, options, epochs=EPOCHS, title="plain")


def multi_task(model: ImageCaptioner, data: Data, options: Options) -> None:
    """The encoder also has to say which objects there are, from left to right, and where."""
    add_heads(model)
    total = MultiTaskLoss(WEIGHTS)

    def loss(model: ImageCaptioner, batch: Batch) -> Tensor:
        return total(losses_of_tasks(model, batch))

    scene_captions.train(model, data, options, epochs=EPOCHS, loss=loss, title="multi-task")


def add_heads(model: ImageCaptioner) -> None:
    model.class_head, model.box_head = ClassHead(FEATURES, len(NAMES), MOST), BoxHead(FEATURES, MOST)


def losses_of_tasks(model: ImageCaptioner, batch: Batch) -> dict[str, Tensor]:
    memory, words = model.encode(batch.images), batch.words.flatten(0, 1)
    logits, _ = model.decoder(words[:, :-1], repeat(memory, batch.words.shape[1]))
    features = memory.values.flatten(1)
    return {
        "caption": scene_captions.cross_entropy(logits, words),
        "class": F.cross_entropy(model.class_head(features)[batch.mask], batch.classes[batch.mask]),
        "box": box_loss(model.box_head(features), batch.boxes / IMAGE, batch.mask),
    }


class Curriculum(Sampler[int]):
    """Epochs that are all as long: what the curriculum has so far comes more than once."""

    def __init__(self, difficulty: Tensor, seed: int) -> None:
        self.count = len(difficulty)
        self.sampler = CurriculumSampler(difficulty, EPOCHS - 1, start=0.3, seed=seed)

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return islice(cycle(self.sampler), self.count)


def curriculum(model: ImageCaptioner, data: Data, options: Options, difficulty: Tensor) -> None:
    sampler = Curriculum(difficulty, options.seed)
    scene_captions.train(model, data, options, epochs=EPOCHS, sampler=sampler, title="curriculum")


class Classifier(nn.Module):
    """Which objects an image shows, from left to right."""

    def __init__(self, encoder: ConvEncoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, ClassHead(FEATURES, len(NAMES), MOST)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images).values.flatten(1))


def pretrained_encoder(model: ImageCaptioner, data: Data, options: Options) -> None:
    """Of a classifier of objects. It is frozen at first, then its last layers are not, then none."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.images)[batch.mask], batch.classes[batch.mask])

    def score(model: nn.Module) -> float:
        batches = scene_captions.batches(data.validation)
        return -sum(loss(model, batch).item() for batch in batches) / len(batches)

    classifier = Classifier(model.encoder)
    scene_captions.train(
        classifier, data, options, epochs=EPOCHS, loss=loss, score=score, title="classifier of objects"
    )
    layers, third = model.encoder.layers, EPOCHS // 3
    freeze(model.encoder)
    scene_captions.train(model, data, options, epochs=third, title="encoder frozen")
    unfreeze(layers[len(layers) // 2 :])
    scene_captions.train(model, data, options, epochs=third, learning_rate=1e-3, title="its last layers not")
    unfreeze(model.encoder)
    scene_captions.train(model, data, options, epochs=third, learning_rate=5e-4, title="all")


def pretrained_decoder(model: ImageCaptioner, data: Data, options: Options) -> None:
    """It learns sentences before it is shown an image."""

    def loss(decoder: nn.Module, batch: Batch) -> Tensor:
        words = batch.words.flatten(0, 1)
        nothing = Memory(torch.zeros(len(words), 1, CHANNELS[-1]), None, torch.zeros(len(words), CHANNELS[-1]))
        return scene_captions.cross_entropy(decoder(words[:, :-1], nothing)[0], words)

    def score(decoder: nn.Module) -> float:
        batches = scene_captions.batches(data.validation)
        return -sum(loss(decoder, batch).item() for batch in batches) / len(batches)

    scene_captions.train(
        model.decoder, data, options, epochs=EPOCHS // 2, loss=loss, score=score, title="language model"
    )
    scene_captions.train(model, data, options, epochs=EPOCHS, title="captioner")


def speed(options: Options) -> list[Speed]:
    """Those of examples/systems/captioning.py."""
    return []
