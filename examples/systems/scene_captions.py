"""Captions of drawn scenes: batches, training and judging, which all systems that write captions share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from examples.data.drawn_scenes import DrawnScenes, Vocabulary, draw_scenes, parse
from examples.systems.table import Options
from examples.training import History, Plan, fit
from hybridops.evaluation import caption_errors, caption_scores
from hybridops.layers import ConvEncoder, Memory, ObjectEncoder
from hybridops.models import ImageCaptioner, SceneGraphCaptioner
from hybridops.training import doubly_stochastic_penalty

SIZES = {"train": 4000, "validation": 500, "test": 1000}
EPOCHS = 28  # with 12, relations are not learned yet, and which model has learned more is chance
CHANNELS = (16, 32, 64, 128)
GRID = (6, 6)  # regions: 48 pixels, halved three times
EMBED, HIDDEN, ATTENTION = 64, 128, 64
LONGEST = 16  # words of a caption, its end among them
BATCH = 32


class Batch(NamedTuple):
    """Of B scenes."""

    images: Tensor  # (B, 3, 48, 48)
    words: Tensor  # (B, captions, longest), from start to end
    boxes: Tensor  # (B, objects, 4)
    classes: Tensor  # (B, objects)
    mask: Tensor  # (B, objects)
    number: Tensor  # (B,), which scenes they are


class CaptionedScenes(Dataset):
    def __init__(self, drawn: DrawnScenes, vocabulary: Vocabulary) -> None:
        self.drawn = drawn
        texts = [caption for scene in drawn.scenes for caption in scene.captions]
        self.words = vocabulary.encode(texts).unflatten(0, (len(drawn.scenes), -1))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> Batch:
        """A batch without its first dimension."""
        drawn = self.drawn
        parts = (part[index] for part in (drawn.images, self.words, drawn.boxes, drawn.classes, drawn.mask))
        return Batch(*parts, torch.tensor(index))


@dataclass(frozen=True)
class Data:
    train: CaptionedScenes
    validation: CaptionedScenes
    test: CaptionedScenes
    vocabulary: Vocabulary


def load(options: Options, count: int = SIZES["train"]) -> Data:
    """`count` scenes to train on; of all splits, and seconds' worth of them with `smoke`."""
    sizes = {**SIZES, "train": count}
    drawn = {split: draw_scenes(32 if options.smoke else sizes[split], split, options.seed) for split in sizes}
    vocabulary = Vocabulary.of(text for scene in drawn["train"].scenes for text in scene.captions)
    return Data(*(CaptionedScenes(drawn[split], vocabulary) for split in sizes), vocabulary)


class OneVector(nn.Module):
    """An encoder whose whole is made of all its regions, each with weights of its own: their mean does not say where
    things are.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim
        self.proj = nn.Linear(GRID[0] * GRID[1] * encoder.dim, encoder.dim)

    def forward(self, images: Tensor) -> Memory:
        values, mask, _ = self.encoder(images)
        return Memory(values, mask, torch.relu(self.proj(values.flatten(1))))


def image_encoder(kind: str) -> nn.Module:
    encoder = ConvEncoder(3, CHANNELS, pool_last=False)
    encoder.to(memory_format=torch.channels_last)  # a CPU convolves that in half the time
    if kind == "global":
        return OneVector(encoder)
    return ObjectEncoder(encoder.layers, encoder.dim, HIDDEN) if kind in ("objects", "graph") else encoder


def captioner(kind: str, words: int, *, encoder: nn.Module | None = None, **options: object) -> ImageCaptioner:
    """A context of `ImageCaptioner`, or "graph"; at the sizes above."""
    encoder = image_encoder(kind) if encoder is None else encoder
    options = {"embed_dim": EMBED, "hidden_dim": HIDDEN, "attn_dim": ATTENTION, "dropout": 0.1} | options
    if kind == "global":
        options = {"image_at": "every"} | options
    if kind == "graph":
        return SceneGraphCaptioner(words, encoder=encoder, **options)
    return ImageCaptioner(words, context=kind, encoder=encoder, **options)


def inputs(model: ImageCaptioner, batch: Batch | DrawnScenes) -> tuple[Tensor, ...]:
    """What the model takes of scenes."""
    return (batch.images, batch.boxes, batch.mask) if model.context == "objects" else (batch.images,)


def cross_entropy(logits: Tensor, words: Tensor) -> Tensor:
    """Of each word after the first of (B, S), given logits after all but the last."""
    return F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=Vocabulary.PAD)


def caption_loss(model: ImageCaptioner, batch: Batch, penalty: float = 0.0) -> Tensor:
    """The cross-entropy of all captions of each scene, and so many times the doubly stochastic penalty."""
    memory, words = model.encode(*inputs(model, batch)), batch.words.flatten(0, 1)
    logits, weights = model.decoder(words[:, :-1], repeat(memory, batch.words.shape[1]), need_weights=penalty > 0)
    loss = cross_entropy(logits, words)
    if weights is not None:
        loss = loss + penalty * doubly_stochastic_penalty(weights, words[:, 1:] != Vocabulary.PAD)
    return loss


def repeat(memory: Memory, times: int) -> Memory:
    """Each entry so many times, next to each other: an image is read once for all its captions."""
    return Memory(*(None if part is None else part.repeat_interleave(times, 0) for part in memory))


def train(
    model: ImageCaptioner,
    data: Data,
    options: Options,
    *,
    epochs: int = EPOCHS,
    loss: Callable[[nn.Module, Batch], Tensor] = caption_loss,
    score: Callable[[nn.Module], float] | None = None,
    sampler: Sampler[int] | None = None,
    learning_rate: float = 2e-3,
    title: str = "captioner",
    checkpoint: Path | None = None,
) -> History:
    """The best epoch is kept: by `score`, or by CIDEr-D of validation data."""
    torch.manual_seed(options.seed)  # of dropout
    plan = Plan(1 if options.smoke else epochs, BATCH, learning_rate, seed=options.seed, checkpoint=checkpoint)
    return fit(model, data.train, loss, score or partial(cider, data=data), plan, sampler=sampler, title=title)


def batches(scenes: CaptionedScenes) -> DataLoader:
    return DataLoader(scenes, 100)


def describe(model: ImageCaptioner, scenes: CaptionedScenes, data: Data, beam_size: int = 1) -> list[str]:
    """A caption for every scene."""
    found = [
        model.generate(*inputs(model, batch), max_length=LONGEST, beam_size=beam_size) for batch in batches(scenes)
    ]
    return [data.vocabulary.decode(words) for part in found for words in part.tokens]


def exact(captions: list[str], scenes: CaptionedScenes) -> float:
    """The share that is one of the scene's captions, word for word."""
    pairs = zip(captions, scenes.drawn.scenes, strict=True)
    return sum(text in scene.captions for text, scene in pairs) / len(captions)


def match(model: ImageCaptioner, data: Data) -> float:
    """`exact` of validation data. It is 0 in all epochs of a short training, and tells none of them from the others."""
    return exact(describe(model, data.validation, data), data.validation)


def cider(model: ImageCaptioner, data: Data) -> float:
    """CIDEr-D of validation data."""
    references = [scene.captions for scene in data.validation.drawn.scenes]
    return caption_scores(references, describe(model, data.validation, data), ["cider"])["cider"]


def judge(captions: list[str], scenes: CaptionedScenes) -> dict[str, float]:
    """Exact match, CIDEr-D and all shares of errors."""
    references = [scene.captions for scene in scenes.drawn.scenes]
    said, shown = [parse(text) for text in captions], [scene.graph for scene in scenes.drawn.scenes]
    cider = caption_scores(references, captions, ["cider"])
    return {"exact": exact(captions, scenes), **cider, **caption_errors(said, shown)._asdict()}


def attended(model: ImageCaptioner, scenes: CaptionedScenes) -> tuple[float, float]:
    """Of all captions: cross-entropy a word, and the doubly stochastic penalty."""
    entropy, penalty = [], []
    with torch.no_grad():
        for batch in batches(scenes):
            memory, words = model.encode(*inputs(model, batch)), batch.words.flatten(0, 1)
            logits, weights = model.decoder(words[:, :-1], repeat(memory, batch.words.shape[1]), need_weights=True)
            entropy.append(cross_entropy(logits, words))
            penalty.append(doubly_stochastic_penalty(weights, words[:, 1:] != Vocabulary.PAD))
    return torch.stack(entropy).mean().item(), torch.stack(penalty).mean().item()
