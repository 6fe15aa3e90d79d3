"""Films of moving sprites as networks read them: what a small convolutional network, trained on single frames and then
kept as it is, makes of each frame. So the systems about films train on features, as those of the papers do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.data import sprite_captions
from examples.data.drawn_scenes import Vocabulary
from examples.data.moving_sprites import COLOURS, DIGITS, Shots
from examples.data.sprite_captions import Clip
from examples.figures import save_figure
from examples.systems.table import Options
from examples.training import Plan, fit
from hybridops.layers import ConvEncoder, PretrainedEncoder

SIZES = {"train": 2000, "validation": 200, "test": 400}
CHANNELS = (8, 16, 32)
DIM = CHANNELS[-1]
REGIONS = 16  # of a frame, 4 × 4: 32 pixels, halved three times
FRAMES = 8  # of each clip that the frame encoder is trained on
PLAN = Plan(epochs=6, batch_size=64, learning_rate=5e-3)


class FrameClassifier(nn.Module):
    """Digit and colour of single frames: logits (N, 10 + 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ConvEncoder(3, CHANNELS)
        self.head = nn.Sequential(
            nn.Linear(REGIONS * DIM, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, len(DIGITS) + len(COLOURS))
        )

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(frames / 255.0).values.flatten(1))
        return logits


@dataclass(frozen=True)
class Films:
    """N films of one part."""

    maps: Tensor  # (N, T, DIM, 4, 4), what the frame encoder gives
    shots: Shots
    clips: tuple[Clip, ...]

    def take(self, index: Tensor) -> Films:
        shots = Shots(
            *(getattr(self.shots, name)[index] for name in ("frames", "lengths", "digit", "motion", "colour"))
        )
        return Films(self.maps[index], shots, tuple(self.clips[number] for number in index.tolist()))


@dataclass(frozen=True)
class Data:
    train: Films
    validation: Films
    test: Films
    words: Vocabulary  # of captions
    asked: Vocabulary  # of questions


def load(options: Options) -> Data:
    sizes = {part: 24 if options.smoke else count for part, count in SIZES.items()}
    parts = {part: sprite_captions.load(part, count, options.seed) for part, count in sizes.items()}
    encoder = train_frames(*(parts[part].shots for part in ("train", "validation")), options)
    films = {
        part: Films(encode_frames(encoder, captioned.shots.frames), captioned.shots, captioned.clips)
        for part, captioned in parts.items()
    }
    clips = films["train"].clips
    words = Vocabulary.of(text for clip in clips for text in clip.captions)
    asked = Vocabulary.of(question.text for clip in clips for question in clip.questions)
    return Data(*films.values(), words, asked)


def train_frames(train: Shots, validation: Shots, options: Options) -> ConvEncoder:
    torch.manual_seed(options.seed)
    model = FrameClassifier()
    model.to(memory_format=torch.channels_last)
    held = single_frames(validation, options.seed)

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        frames, digit, colour = batch
        of_digit, of_colour = model(frames).split([len(DIGITS), len(COLOURS)], 1)
        return F.cross_entropy(of_digit, digit) + F.cross_entropy(of_colour, colour)

    def score(model: nn.Module) -> float:
        frames, digit, colour = held.tensors
        of_digit, of_colour = model(frames).split([len(DIGITS), len(COLOURS)], 1)
        return float(((of_digit.argmax(1) == digit) & (of_colour.argmax(1) == colour)).double().mean())

    plan = replace(PLAN, seed=options.seed, epochs=1 if options.smoke else PLAN.epochs)
    fit(model, single_frames(train, options.seed), loss, score, plan, title="single frames")
    return model.encoder


def single_frames(shots: Shots, seed: int) -> TensorDataset:
    """FRAMES frames of each clip, with digit and colour."""
    generator = torch.Generator().manual_seed(seed)
    films = torch.arange(len(shots.frames)).repeat_interleave(FRAMES)
    step = (torch.rand(len(films), generator=generator) * shots.lengths.sum(1)[films]).long()
    shot = (step[:, None] >= shots.lengths.cumsum(1)[films]).sum(1)
    return TensorDataset(shots.frames[films, step], shots.digit[films, shot], shots.colour[films, shot])


@torch.no_grad()
def encode_frames(encoder: ConvEncoder, frames: Tensor) -> Tensor:
    """uint8 (N, T, 3, Y, X) -> (N, T, DIM, 4, 4)."""
    maps = [encoder.layers(some.flatten(0, 1) / 255.0).unflatten(0, some.shape[:2]) for some in frames.split(50)]
    return torch.cat(maps)


def map_encoder() -> PretrainedEncoder:
    """Of maps: they are what they are."""
    return PretrainedEncoder(nn.Identity(), DIM)


def draw_strip(path: Path, films: Films, number: int, weights: Tensor, labels: list[str]) -> None:
    """A film, frame beside frame, and over it for each label its weights (labels, T), by frames; lines are cuts."""
    lengths = films.shots.lengths[number]
    count = int(lengths.sum())
    strip = torch.cat([*films.shots.frames[number, :count]], 2)  # (3, Y, T·X)
    with save_figure(path, 1, 1, size=5.0) as axes:
        axis = axes[0, 0]
        axis.figure.set_size_inches(0.33 * count + 2.0, 0.2 * len(labels) + 0.8)
        heights = len(labels), 1.6
        axis.imshow(weights[:, :count], cmap="inferno", aspect="auto", extent=(0, count, heights[0], 0), vmin=0)
        axis.imshow(strip.permute(1, 2, 0), aspect="auto", extent=(0, count, sum(heights), heights[0]))
        axis.set(xlim=(0, count), ylim=(sum(heights), 0), xticks=[])
        axis.set_yticks([row + 0.5 for row in range(len(labels))], labels, fontsize=8)
        for cut in lengths.cumsum(0)[:-1].tolist():
            axis.axvline(cut, color="white", linewidth=1.5)
