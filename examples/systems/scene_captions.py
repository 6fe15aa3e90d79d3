"""Captions of drawn scenes: batches, training and judging, which all systems that write captions share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from examples.data.drawn_scenes import DrawnScenes, Vocabulary, draw_scenes, parse
from examples.systems.table import Options
from examples.training import History, Plan, fit
from hybridops.evaluation import CaptionErrors, caption_errors
from hybridops.layers import ConvEncoder, ObjectEncoder
from hybridops.models import ImageCaptioner, SceneGraphCaptioner, doubly_stochastic_penalty

SIZES = {"train": 4000, "validation": 500, "test": 1000}
EPOCHS = 12
CHANNELS = (32, 64, 128)
GRID = (12, 12)  # regions: 48 pixels, halved twice
EMBED, HIDDEN, ATTENTION = 128, 256, 128
LONGEST = 16  # words of a caption, its end among them
BATCH = 32


class CaptionedScenes(Dataset):
    """Scenes, each with one of its captions, another every time: images, words (from start to end), boxes, their mask."""

    def __init__(self, drawn: DrawnScenes, vocabulary: Vocabulary) -> None:
        self.drawn = drawn
        texts = [caption for scene in drawn.scenes for caption in scene.captions]
        self.words = vocabulary.encode(texts).unflatten(0, (len(drawn.scenes), -1))  # (N, captions, longest)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        which = int(torch.randint(self.words.shape[1], ()))
        drawn = self.drawn
        return drawn.images[index], self.words[index, which], drawn.boxes[index], drawn.mask[index]


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


def captioner(kind: str, words: int, **options: object) -> ImageCaptioner:
    """A context of `ImageCaptioner`, or "graph"; at the sizes above."""
    encoder: nn.Module = ConvEncoder(3, CHANNELS, pool_last=False)
    sizes = {"embed_dim": EMBED, "hidden_dim": HIDDEN, "attn_dim": ATTENTION, "dropout": 0.1} | options
    if kind in ("objects", "graph"):
        encoder = ObjectEncoder(encoder.layers, encoder.dim, HIDDEN)
    if kind == "graph":
        return SceneGraphCaptioner(words, encoder=encoder, **sizes)
    return ImageCaptioner(words, context=kind, encoder=encoder, **sizes)


def inputs(model: ImageCaptioner, boxes: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """What the model takes besides images."""
    return (boxes, mask) if model.context == "objects" else ()


def cross_entropy(logits: Tensor, words: Tensor) -> Tensor:
    """Of each word after the first of (B, S), given logits after all but the last."""
    return F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=Vocabulary.PAD)


def caption_loss(model: ImageCaptioner, batch: tuple[Tensor, ...], penalty: float = 0.0) -> Tensor:
    """Cross-entropy, and so many times the doubly stochastic penalty."""
    images, words, boxes, mask = batch
    logits, weights = model.attend(images, words[:, :-1], *inputs(model, boxes, mask), need_weights=penalty > 0)
    loss = cross_entropy(logits, words)
    if weights is not None:
        loss = loss + penalty * doubly_stochastic_penalty(weights, words[:, 1:] != Vocabulary.PAD)
    return loss


def train(
    model: ImageCaptioner,
    data: Data,
    options: Options,
    *,
    epochs: int = EPOCHS,
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor] = caption_loss,
    learning_rate: float = 1e-3,
    title: str = "captioner",
) -> History:
    """Of all epochs the one whose captions match best on validation data is kept."""
    torch.manual_seed(options.seed)  # which captions, and dropout
    plan = Plan(1 if options.smoke else epochs, BATCH, learning_rate, seed=options.seed)
    return fit(
        model, data.train, loss, lambda m: exact(describe(m, data.validation, data), data.validation), plan, title=title
    )


def describe(model: ImageCaptioner, scenes: CaptionedScenes, data: Data, beam_size: int = 1) -> list[str]:
    """A caption for every scene."""
    captions = []
    drawn = scenes.drawn
    for images, boxes, mask in zip(drawn.images.split(100), drawn.boxes.split(100), drawn.mask.split(100), strict=True):
        found = model.generate(images, *inputs(model, boxes, mask), max_length=LONGEST, beam_size=beam_size)
        captions += [data.vocabulary.decode(words) for words in found.tokens]
    return captions


def exact(captions: list[str], scenes: CaptionedScenes) -> float:
    """The share that is one of the scene's captions, word for word."""
    return sum(text in scene.captions for text, scene in zip(captions, scenes.drawn.scenes, strict=True)) / len(
        captions
    )


def errors(captions: list[str], scenes: CaptionedScenes) -> CaptionErrors:
    return caption_errors([parse(text) for text in captions], [scene.graph for scene in scenes.drawn.scenes])


def test_cross_entropy(model: ImageCaptioner, scenes: CaptionedScenes) -> tuple[float, float]:
    """Of all captions of all scenes: cross-entropy a word, and the mean of Σ_i (1 - Σ_s α_si)²."""
    drawn, captions = scenes.drawn, scenes.words.shape[1]
    entropy, coverage = [], []
    with torch.no_grad():
        for number in range(captions):
            for rows in torch.arange(len(drawn.images)).split(100):
                words, extra = scenes.words[rows, number], inputs(model, drawn.boxes[rows], drawn.mask[rows])
                logits, weights = model.attend(drawn.images[rows], words[:, :-1], *extra)
                entropy.append(cross_entropy(logits, words))
                coverage.append(doubly_stochastic_penalty(weights, words[:, 1:] != Vocabulary.PAD))
    return torch.stack(entropy).mean().item(), torch.stack(coverage).mean().item()
