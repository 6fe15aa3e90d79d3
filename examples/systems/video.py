"""Classifiers of video (document 002), on moving sprites: which digit it is, every frame shows; how it moves, only the
order of frames does. So of digit × motion a mean over frames knows the one half, and optical flow the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.data import moving_sprites
from examples.data.flow import clips_with_flow, stacks
from examples.data.moving_sprites import DIGITS, FRAME, MOTIONS, Clips, Needles
from examples.figures import save_figure
from examples.systems import video_lengths
from examples.systems.table import Options, Row, Speed, plain_copy, time_in_turn
from examples.systems.video_training import (
    CHANNELS,
    REGIONS,
    accuracy,
    answer,
    channels_last,
    half_size,
    image_encoder,
    loss,
    note,
    predict,
    trained,
)
from hybridops.models import (
    Conv3dClassifier,
    ConvLSTMClassifier,
    SegmentClassifier,
    TwoStreamClassifier,
    VideoClassifier,
)

SIZES = {"train": 1200, "validation": 300, "test": 1000}  # clips
FLOW_SIZES = {"train": 800, "validation": 200, "test": 500}  # whose flow takes minutes, the first time
FLOWS = 3  # L: so many in a row are one input
STRETCH = 8  # frames of each of the four stretches of a long clip
CLASSES = len(DIGITS) * len(MOTIONS)
CHANCE = 1 / len(MOTIONS)


def run(options: Options) -> list[Row]:
    parts = motion, two_streams, needles, segments, video_lengths.run
    return [row for part in parts for row in part(options)]


def sizes_of(options: Options, sizes: dict[str, int] = SIZES) -> dict[str, int]:
    return dict.fromkeys(sizes, 32) if options.smoke else sizes


def frame_mean(in_channels: int = 1) -> VideoClassifier:
    """For which order does not count. It has where things are, as the CNN-LSTM does."""
    encoder = image_encoder(in_channels)
    return VideoClassifier(in_channels, CLASSES, cell=None, pooling="mean", encoder=encoder, regions=REGIONS)


def frame_lstm(num_classes: int = CLASSES) -> VideoClassifier:
    return VideoClassifier(1, num_classes, 96, encoder=image_encoder(1), regions=REGIONS)


def conv_lstm() -> ConvLSTMClassifier:
    return ConvLSTMClassifier(1, CLASSES, 32, channels=CHANNELS[:2])


def conv3d(num_classes: int = CLASSES) -> Conv3dClassifier:
    return Conv3dClassifier(1, num_classes, channels=CHANNELS)


def two_stream() -> TwoStreamClassifier:
    return TwoStreamClassifier(frame_mean(), frame_mean(2 * FLOWS), learned=True, average="logits")


class Scores(NamedTuple):
    """Accuracies of digit × motion, and of the same answers those of the digit and of the motion."""

    both: float
    digit: float
    motion: float


def scores_of(model: nn.Module, clips: TensorDataset) -> Scores:
    found, label, kinds = predict(model, clips), clips.tensors[-1], len(MOTIONS)
    hits = found == label, found // kinds == label // kinds, found % kinds == label % kinds
    return Scores(*(float(hit.double().mean()) for hit in hits))


# ------------------------------------------------------------------------------------------------------------- motion


def motion(options: Options) -> list[Row]:
    clips = {part: moving_sprites.clips(part, count, seed=options.seed) for part, count in sizes_of(options).items()}
    train, validation, test = (TensorDataset(half_size(part.frames), part.label) for part in clips.values())
    rows: list[Row] = []
    mean: Scores | None = None
    for name, make, of_motion, of_both in (
        ("mean over frames", frame_mean, 0.0, 0.0),
        ("CNN-LSTM", frame_lstm, 0.9, 0.0),
        ("3D CNN", conv3d, 0.9, 0.0),
        ("ConvLSTM", conv_lstm, 0.95, 0.75),
    ):
        model, history = trained(make, train, validation, options, name)
        found = scores_of(model, test)
        of_digit = f"digit {found.digit:.3f}; {note(history)}"
        if mean is None:
            mean = found
            chance = abs(found.motion - CHANCE) <= 0.05
            rows += [
                Row("video", "clips", f"motion, {name}", found.motion, None, f"chance, {CHANCE} ± .05", chance),
                Row("video", "clips", f"digit × motion, {name}", found.both, None, "", True, of_digit),
            ]
        else:
            more, most = found.both > mean.both and found.both >= of_both, found.motion >= of_motion
            said = f"> mean, >= {of_both}" if of_both else "> mean"
            rows += [
                Row("video", "clips", f"motion, {name}", found.motion, mean.motion, f">= {of_motion}", most),
                Row("video", "clips", f"digit × motion, {name}", found.both, mean.both, said, more, of_digit),
            ]
    return rows


# -------------------------------------------------------------------------------------------------------- two streams


def two_streams(options: Options) -> list[Row]:
    """Each stream a mean over its steps, trained alone; then their mixture, and one that is trained as a whole."""
    frames, flows, both = {}, {}, {}
    for part, count in sizes_of(options, FLOW_SIZES).items():
        clips, flow = clips_with_flow(part, count, seed=options.seed)
        stacked = stacks(half_size(flow), FLOWS).contiguous()
        frames[part] = TensorDataset(half_size(clips.frames), clips.label)
        flows[part] = TensorDataset(stacked, clips.label)
        both[part] = TensorDataset(half_size(clips.frames), stacked, clips.label)
        if part == "test":
            draw_flow(options, clips, flow)

    def fitted(name: str, make: Callable[[], nn.Module], data: dict[str, TensorDataset]) -> tuple[nn.Module, str]:
        model, history = trained(make, data["train"], data["validation"], options, name)
        return model, note(history)

    frame_stream, of_frames = fitted("frames alone", frame_mean, frames)
    flow_stream, of_flow = fitted("flow alone", lambda: frame_mean(2 * FLOWS), flows)
    mixture = TwoStreamClassifier(frame_stream, flow_stream).eval()
    whole, of_whole = fitted("both streams", two_stream, both)

    rows: list[Row] = []
    for name, model, data, said in (
        ("frames alone", frame_stream, frames, of_frames),
        ("flow alone", flow_stream, flows, of_flow),
        ("both, α = .5", mixture, both, "the two above"),
        ("both, trained as a whole, α learned", whole, both, of_whole),
    ):
        found = scores_of(model, data["test"])
        alone = max(row.score for row in rows[:2]) if len(rows) >= 2 else None
        rows.append(
            Row(
                "video", "clips and flow", f"digit × motion, {name}", found.both, alone,
                "" if alone is None else "> either alone", alone is None or found.both > alone,
                f"digit {found.digit:.3f}, motion {found.motion:.3f}; {said}",
            )
        )  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------- attention, over frames


def needle_finder(pooling: str) -> VideoClassifier:
    return VideoClassifier(1, len(DIGITS), cell=None, pooling=pooling, encoder=image_encoder(1), attn_dim=32)


def needles(options: Options) -> list[Row]:
    """One frame of 16 has a digit; the others have scraps of digits."""
    clips = {part: moving_sprites.needles(part, count, seed=options.seed) for part, count in sizes_of(options).items()}
    train, validation, test = (TensorDataset(half_size(part.frames), part.digit) for part in clips.values())
    mean, of_mean = trained(partial(needle_finder, "mean"), train, validation, options, "needles: mean")
    model, history = trained(partial(needle_finder, "attention"), train, validation, options, "needles: attention")
    baseline, score = accuracy(mean, test), accuracy(model, test)
    weights = frame_weights(model, clips["test"])
    there = float(weights.gather(1, clips["test"].at[:, None]).double().mean())
    draw_attention(options, clips["test"], weights)
    return [
        Row("video", "needles", "digit, mean over frames", baseline, None, "", True, note(of_mean)),
        Row("video", "needles", "digit, attention", score, baseline, "> mean", score > baseline, note(history)),
        Row(
            "video", "needles", "weight on the frame with the digit", there, 1 / weights.shape[1], "> 0.8", there > 0.8
        ),
    ]


@torch.no_grad()
def frame_weights(model: nn.Module, clips: Needles) -> Tensor:
    assert isinstance(model, VideoClassifier)
    return torch.cat([model.weights(frames / 255.0) for frames in half_size(clips.frames).split(100)])


# ----------------------------------------------------------------------------------------------------------- segments


def segments(options: Options) -> list[Row]:
    """In one of four stretches the sprite drifts, in the others it jumps about: how it drifts."""
    clips = {
        part: moving_sprites.long_clips(part, count, STRETCH, options.seed) for part, count in sizes_of(options).items()
    }
    train, validation, test = (TensorDataset(half_size(part.frames), part.motion) for part in clips.values())
    rows: list[Row] = []
    for number in (1, 4):
        model, history = trained(
            lambda number=number: SegmentClassifier(frame_lstm(len(MOTIONS)), number),  # type: ignore[misc]
            train, validation, options, f"segments: {number}",
        )  # fmt: skip
        score, one = accuracy(model, test), rows[0].score if rows else None
        rows.append(
            Row(
                "video", "long clips", f"motion, {number} segment{'s' if one is not None else ''}", score, one,
                "" if one is None else "> one segment", one is None or score > one, note(history),
            )
        )  # fmt: skip
    return rows


# -------------------------------------------------------------------------------------------------- speed and pictures


def speed(options: Options) -> list[Speed]:
    """Of those with an op that is fused: attention over frames, and the ConvLSTM."""
    clips = moving_sprites.needles("train", 4 if options.smoke else 32)
    frames = half_size(clips.frames)
    return [
        *times("needles", needle_finder("attention"), [frames, clips.digit], options),
        *times("ConvLSTM", channels_last(conv_lstm()), [frames, clips.digit], options),
    ]


def times(what: str, fused: nn.Module, batch: list[Tensor], options: Options) -> list[Speed]:
    plain = plain_copy(fused)

    def step(model: nn.Module) -> None:
        model.zero_grad()
        loss(model, batch).backward()

    seconds = 1.0 if options.smoke else 4.0
    training = time_in_turn("video", f"training step, {what}", partial(step, plain), partial(step, fused), seconds)
    fused.eval(), plain.eval()
    with torch.no_grad():
        calls = partial(answer, plain, batch[:1]), partial(answer, fused, batch[:1])
        return [training, time_in_turn("video", f"inference, {what}", *calls, seconds)]


def draw_attention(options: Options, clips: Needles, weights: Tensor, rows: int = 2) -> None:
    """A strip of frames for each of the first clips, with the weight of each frame as a bar below it."""
    with save_figure(options.out / "video_attention.png", 2 * rows, weights.shape[1], 0.5) as axes:
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
        for row in range(rows):
            for t, weight in enumerate(weights[row].tolist()):
                axes[2 * row, t].imshow(clips.frames[row, t, 0], cmap="gray")
                axes[2 * row + 1, t].bar(0, weight, color="tab:green" if t == clips.at[row] else "tab:red")
                axes[2 * row + 1, t].set(xlim=(-1, 1), ylim=(0, 1))


def draw_flow(options: Options, clips: Clips, flow: Tensor) -> None:
    """A clip of each motion: a frame, and where its pixels go until the next one."""
    grid = torch.arange(1, FRAME, 3)
    with save_figure(options.out / "video_flow.png", 1, len(MOTIONS), 2.2) as axes:
        for number, (axis, name) in enumerate(zip(axes[0], MOTIONS, strict=True)):
            row = int((clips.motion == number).int().argmax())
            x, y = flow[row, 0].float()[:, grid][:, :, grid]
            axis.imshow(clips.frames[row, 0, 0], cmap="gray")
            axis.quiver(grid, grid, x, y, color="tab:orange", angles="xy", scale_units="xy", scale=1, width=0.008)
            axis.set(title=name, xticks=[], yticks=[])
