"""The next frames (Shi et al. 2015): of two digits that bounce, of three short films, and of a climate model's years.

A forecast is held against the last frame, copied, which is hard to beat where little moves, and temperatures against
the mean of the years that were trained on too. Films and years are split in time: trained on the first part, validated
on the next, judged on the last, and no window of frames is in two of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.data import air_temperature, clips
from examples.figures import save_figure
from examples.moving_digits import HELD_OUT, bounce, load_glyphs
from examples.systems.table import Options, Row, Speed, plain_copy, time_in_turn
from examples.training import Plan, fit
from hybridops.models import ConvLSTMForecaster

SYSTEM = "ConvLSTMForecaster"
Curves = tuple[str, dict[str, Tensor]]  # unit, and by name the error of each step (S,)
STILL = 2e-5  # squared error where hardly anything moves


@dataclass(frozen=True)
class Task:
    """Windows (N, T+S, 1, Y, X) of T frames to read and S to forecast."""

    title: str
    read: int  # T
    model: dict[str, Any]  # arguments of ConvLSTMForecaster
    plan: Plan
    train: Any  # a dataset, and what makes windows of some of it
    collate: Callable[[Sequence[Any]], Tensor]
    validation: Tensor
    test: dict[str, Tensor]  # by source
    unit: str = "10⁻³"
    climatology: Tensor | None = None  # (1, Y, X), the mean of all frames trained on

    def make_model(self, num_layers: int = 2, **options: Any) -> ConvLSTMForecaster:
        options |= {"steps": self.validation.shape[1] - self.read, "logits": False, "relative": True}
        model = ConvLSTMForecaster(num_layers=num_layers, **self.model, **options)
        nn.init.zeros_(model.head.weight)  # begin with the last frame
        nn.init.zeros_(model.head.bias)
        return model

    def loss(self, model: nn.Module, windows: Tensor, sampling: float | None = None) -> Tensor:
        """In units of what copying costs at each step: else it is mostly the loss of cuts, which nobody foresees.
        `sampling`: of a conditional model that is shown the true frames.
        """
        read, truth = windows[:, : self.read], windows[:, self.read :]
        forecasts = model(read) if sampling is None else model(read, truth, sampling=sampling)
        error, copied = ((truth - each).square().mean((2, 3, 4)) for each in (forecasts, read[:, -1:]))
        return (error / (copied + STILL)).mean()

    @torch.no_grad()
    def forecast(self, model: nn.Module, windows: Tensor) -> Tensor:
        return torch.cat([model(some[:, : self.read]) for some in windows.split(16)])

    def errors(self, forecasts: Tensor, windows: Tensor) -> Tensor:
        """Squared, of each step, in the task's unit: (S,). Forecasts may be one frame for all."""
        scale = 1e3 if self.unit == "10⁻³" else 1.0
        return scale * (windows[:, self.read :] - forecasts).square().mean((0, 2, 3, 4))


def moving_digits(options: Options) -> Task:
    """New films all the time; no digit of one part is in another."""
    glyphs, generator = load_glyphs(), torch.Generator().manual_seed(options.seed)
    held_out = glyphs[-HELD_OUT:].chunk(2)
    validation, test = (bounce(some, 16 if options.smoke else 64, 10, generator) for some in held_out)
    return Task(
        "moving digits", 5, {"hidden_dim": 32, "patch": 4}, Plan(7, batch_size=8, learning_rate=1e-2),
        range(16 if options.smoke else 400), lambda some: bounce(glyphs[:-HELD_OUT], len(some), 10, generator),
        validation, {"moving digits": test},
    )  # fmt: skip


def windows_of(frames: Tensor, steps: int) -> Tensor:
    """All windows of consecutive frames (T, Y, X): (N, steps, 1, Y, X)."""
    return frames.unfold(0, steps, 1).movedim(-1, 1)[:, :, None]


def films(options: Options) -> Task:
    """One model of all three: .6 of each to train on, .2 to validate on, .2 to judge."""
    read, steps = 4, 8
    parts: list[list[Tensor]] = [[], [], []]
    sources = clips.load()
    for frames in sources.values():
        ends = [round(part * len(frames)) for part in (0.6, 0.2)]
        for found, some in zip(parts, (frames / 255.0).split([*ends, len(frames) - sum(ends)]), strict=True):
            found.append(windows_of(some, steps)[: 8 if options.smoke else None])
    train, validation = (torch.cat(some) for some in parts[:2])
    return Task(
        "films", read, {"hidden_dim": 24, "patch": 2}, Plan(16, batch_size=4, learning_rate=4e-3),
        TensorDataset(train), lambda some: with_cuts(cropped(some), read), validation[::2],
        dict(zip(sources, parts[2], strict=True)),
    )  # fmt: skip


def cropped(some: Sequence[tuple[Tensor]]) -> Tensor:
    """Of each window a quarter of the picture, anywhere, half of them with left and right changed."""
    found = []
    for (window,) in some:
        height, width = (size // 2 for size in window.shape[2:])
        top, left = (int(torch.randint(size + 1, ())) for size in (height, width))
        part = window[..., top : top + height, left : left + width]
        found.append(part.flip(3) if torch.rand(()) < 0.5 else part)
    return torch.stack(found)


def with_cuts(windows: Tensor, read: int) -> Tensor:
    """A tenth of the windows have a cut in what is read, with another one's frames before it: the films have few."""
    cut = torch.randint(1, read, (len(windows),)) * (torch.rand(len(windows)) < 0.1)
    before = torch.arange(windows.shape[1]) < cut[:, None]
    return torch.where(before[..., None, None, None], windows.roll(1, 0), windows)


def temperatures(options: Options) -> Task:
    """Trained on both scenarios until 2019, validated on 2020 to 2049, judged on 2050 to 2099."""
    read, steps = 10, 15
    ends = 160, 190
    fields = air_temperature.load()
    parts = [windows_of(part, steps) for field in fields.values() for part in field.tensor_split(ends)]
    few = slice(None, 8 if options.smoke else None)
    train = torch.cat([parts[0], parts[3]])[few]
    validation = torch.cat([parts[1], parts[4]])[few]
    climatology = torch.cat([field[: ends[0]] for field in fields.values()]).mean(0, keepdim=True)
    return Task(
        "air temperature", read, {"hidden_dim": 16}, Plan(3, batch_size=8, learning_rate=3e-3),
        TensorDataset(train), lambda some: torch.stack([window for (window,) in some]), validation,
        {f"air temperature, {name}": part[few] for name, part in zip(fields, parts[2::3], strict=True)}, "K²",
        climatology,
    )  # fmt: skip


TASKS = {"digits": moving_digits, "films": films, "temperatures": temperatures}


Loss = Callable[[nn.Module, Tensor], Tensor]


def train(
    task: Task, num_layers: int, options: Options, loss: Loss | None = None, **arguments: Any
) -> tuple[ConvLSTMForecaster, str]:
    torch.manual_seed(options.seed)
    model = task.make_model(num_layers, **arguments)
    plan = replace(task.plan, epochs=1 if options.smoke else task.plan.epochs, seed=options.seed)

    def score(model: nn.Module) -> float:
        return -torch.stack([task.loss(model, some) for some in task.validation.split(16)]).mean().item()

    title = ", ".join((task.title, f"{num_layers} layer{'s' if num_layers > 1 else ''}", *arguments))
    history = fit(model, task.train, loss or task.loss, score, plan, collate=task.collate, title=title)
    return model, f"best of {len(history.scores)} epochs: {history.best_epoch + 1}, {history.seconds:.0f} s"


def run(options: Options) -> list[Row]:
    rows: list[Row] = []
    curves: dict[str, Curves] = {}
    for name, make in TASKS.items():
        task = make(options)
        found, errors, model = compare(task, options)
        rows += found
        curves |= errors
        draw_frames(task, model, options.out / f"video_forecasting_{name}.png")
        if name == "digits":
            rows += conditional(task, model, options)
    draw_errors(curves, options)
    return rows


def compare(task: Task, options: Options) -> tuple[list[Row], dict[str, Curves], ConvLSTMForecaster]:
    """Two layers with one layer, and with what needs no training; and the model of two layers."""
    models = {layers: train(task, layers, options) for layers in (1, 2)}
    errors = {
        layers: {source: task.errors(task.forecast(model, windows), windows) for source, windows in task.test.items()}
        for layers, (model, _) in models.items()
    }
    rows, curves = [], {}
    for source, windows in task.test.items():
        compared = baselines(task, windows)
        rows += rows_of(task, source, errors[2][source], compared, models[2][1])
        curves[source] = task.unit, {"two layers": errors[2][source], "one layer": errors[1][source], **compared}
    rows.append(two_against_one(task.title, [of_source for _, of_source in curves.values()], models[1][1]))
    return rows, curves, models[2][0]


def two_against_one(title: str, errors: Sequence[dict[str, Tensor]], note: str) -> Row:
    """By their shares of the error of copying, so that each source counts alike."""
    one, two = (
        statistics.mean((of_source[layers].mean() / of_source["last frame"].mean()).item() for of_source in errors)
        for layers in ("one layer", "two layers")
    )
    metric = "share of the last frame's error, two layers against one"
    return Row(SYSTEM, title, metric, two, one, "not above one layer", two <= one, note)


def conditional(task: Task, unconditional: nn.Module, options: Options) -> list[Row]:
    """Forecasters that read the frame before, the true one in training (teacher forcing) or every other time their own
    (scheduled sampling); when they forecast, they only have their own.
    """
    rows = []
    for source, windows in task.test.items():
        baseline = task.errors(task.forecast(unconditional, windows), windows).mean().item()
        for how, sampling in (("teacher forcing", 0.0), ("scheduled sampling", 0.5)):
            loss = partial(task.loss, sampling=sampling)
            model, note = train(task, 2, options, loss, conditional=True)
            score = task.errors(task.forecast(model, windows), windows).mean().item()
            metric = f"squared error, all frames, {task.unit}, reads the frame before, {how}"
            rows.append(Row(SYSTEM, source, metric, score, baseline, "as it is", True, note))
    return rows


def baselines(task: Task, windows: Tensor) -> dict[str, Tensor]:
    """Their errors at each step."""
    read = windows[:, : task.read]
    found = {
        "last frame": task.errors(read[:, -1:], windows),
        "mean of those read": task.errors(read.mean(1, True), windows),
    }
    if task.climatology is not None:
        found["mean of training"] = task.errors(task.climatology, windows)
    return found


def rows_of(task: Task, source: str, errors: Tensor, compared: dict[str, Tensor], note: str) -> list[Row]:
    """Of the next frame, and of all that are forecast."""
    rows = []
    must = "below the last frame" if task.climatology is None else "below the last frame and the mean of training"
    for what, steps in ("next frame", slice(0, 1)), (f"{len(errors)} frames", slice(None)):
        score, last, *others = (each[steps].mean().item() for each in (errors, *compared.values()))
        also = ", ".join(f"{name} {value:.3f}" for name, value in zip(list(compared)[1:], others, strict=True))
        baseline = min(last, *others[1:], torch.inf)
        rows.append(
            Row(
                SYSTEM, source, f"squared error, {what}, {task.unit}", score, last, must, score < baseline,
                f"{also}; {note}",
            )
        )  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------------ speed and pictures


def speed(options: Options) -> list[Speed]:
    speeds = []
    seconds = 0.5 if options.smoke else 6.0
    for make in TASKS.values():
        task = make(replace(options, smoke=True))
        model, windows = task.make_model(), task.validation[: 2 if options.smoke else 8]
        speeds.append(time_training(task, model, windows, seconds))
    return speeds


def time_training(task: Task, model: nn.Module, windows: Tensor, seconds: float) -> Speed:
    def step(model: nn.Module) -> None:
        model.zero_grad()
        task.loss(model, windows).backward()

    calls = partial(step, plain_copy(model)), partial(step, model)
    return time_in_turn(f"{SYSTEM}, {task.title}", "training step", *calls, seconds)


def draw_frames(task: Task, model: nn.Module, path: Path) -> None:
    """Of each source a window where more changes than in three of four: the last frame read, true ones, forecasts."""
    steps = range(0, task.validation.shape[1] - task.read, 2)
    with save_figure(path, rows=2 * len(task.test), columns=1 + len(steps), size=1.1) as axes:
        for pair, (source, windows) in zip(axes.reshape(-1, 2, 1 + len(steps)), task.test.items(), strict=True):
            changed = (windows[:, task.read :] - windows[:, task.read - 1, None]).square().mean((1, 2, 3, 4))
            window = windows[changed.argsort()[3 * len(changed) // 4], None]
            forecast = task.forecast(model, window)[0, :, 0]
            read, truth = window[0, task.read - 1, 0], window[0, task.read :, 0]
            for row, frames, name in zip(pair, (truth, forecast), ("true", "forecast"), strict=True):
                row[0].set_ylabel(name, fontsize=8)
                for ax, frame in zip(row, [read, *(frames[step] for step in steps)], strict=True):
                    show(task, ax, frame)
            pair[0, 0].set_title(f"{source}\nlast frame", fontsize=8)
            for ax, step in zip(pair[0, 1:], steps, strict=True):
                ax.set_title(f"+{step + 1}", fontsize=8)


def show(task: Task, ax: Any, frame: Tensor) -> None:
    if task.climatology is None:
        ax.imshow(frame, cmap="gray", vmin=0.0, vmax=1.0)
    else:  # warmer or colder than it was
        ax.imshow(frame - task.climatology[0], cmap="coolwarm", vmin=-8.0, vmax=8.0, origin="lower")
    ax.set(xticks=[], yticks=[])


def draw_errors(curves: dict[str, Curves], options: Options) -> None:
    """By how far ahead."""
    with save_figure(options.out / "video_forecasting_errors.png", rows=2, columns=3, size=3.2) as axes:
        for ax, (source, (unit, errors)) in zip(axes.flat, curves.items(), strict=True):
            for name, error in errors.items():
                if name != "mean of training":  # far above the others
                    ax.plot(range(1, 1 + len(error)), error, label=name, linestyle="-" if "layer" in name else "--")
            ax.set_title(source, fontsize=9)
            ax.set(xlabel="frames ahead", ylabel=f"squared error, {unit}", ylim=(0, None))
        axes[0, 0].legend(fontsize=7)
