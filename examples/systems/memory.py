"""A network with a memory beside it (document 002): lists longer than any it was trained on.

The Neural Turing Machine and an LSTM with at least as many weights are trained alike, on lists drawn anew for every
step, and then asked for longer ones. What the LSTM knows of a list is in its state, as far as there is room; the other
writes down one item after the other, and goes back to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.data import memory_tasks
from examples.data.memory_tasks import Task
from examples.systems.table import Options, Row, Speed
from examples.training import Plan, fit
from hybridops.layers import ConvEncoder, FrameEncoder, Memory, PretrainedEncoder, RNNEncoder
from hybridops.models import NeuralTuringMachine

SYSTEM = "memory"
BATCH = 16
MOST, LEAST = {"bits": 0.01, "digits": 0.1}, {"bits": 0.1, "digits": 0.3}  # wrong ones: of the NTM, of the LSTM
CONTROLLER, ROWS, WIDTH = 64, 64, 16  # channels, and a memory of so many rows of so many channels


@dataclass(frozen=True)
class Lists:
    draw: Callable[..., Task]  # (count, length, generator)
    channels: int  # of an input, encoded
    outputs: int
    lengths: tuple[int, int]  # trained on
    longer: tuple[int, ...]  # not trained on
    batches: int  # in an epoch
    epochs: int
    make_encoder: Callable[[Options], nn.Module] | None = None  # trained: both models get it, as it is


def digit_encoder(options: Options) -> FrameEncoder:
    """A CNN that first learned what a single image shows, and is then frozen: 12 scores for each."""
    cnn = nn.Sequential(ConvEncoder(1, (16, 32)).layers, nn.Flatten(), nn.Linear(128, memory_tasks.IMAGES))
    train, validation = (TensorDataset(*memory_tasks.single_images(part)) for part in ("train", "validation"))
    images, classes = validation.tensors
    fit(
        cnn,
        train,
        lambda cnn, batch: F.cross_entropy(cnn(batch[0]), batch[1]),
        lambda cnn: float((cnn(images).argmax(1) == classes).double().mean()),
        Plan(epochs=1 if options.smoke else 15, learning_rate=3e-3, seed=options.seed),
        title="single images",
    )
    return FrameEncoder(PretrainedEncoder(cnn, memory_tasks.IMAGES))


LISTS = {
    "copy": Lists(memory_tasks.copy, 9, 8, (1, 10), (20, 40), 250, 12),
    "associative recall": Lists(memory_tasks.associative_recall, 8, 6, (2, 6), (10, 15), 250, 16),
    "copy digits": Lists(memory_tasks.copy_digits, 12, 10, (1, 10), (20, 40), 250, 12, digit_encoder),
}


class RecurrentNetwork(nn.Module):
    """The LSTM in the place of the Neural Turing Machine."""

    def __init__(self, input_dim: int, output_dim: int, hidden_dim: int, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.recurrent = encoder, RNNEncoder(input_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.encoder is not None:
            memory: Memory = self.encoder(x)
            x = memory.values
        logits: Tensor = self.output(self.recurrent(x).values)
        return logits


def count_weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def make_models(lists: Lists, options: Options) -> dict[str, nn.Module]:
    """Both, with one encoder; the LSTM is the smallest that has at least as many weights."""
    encoder = None if lists.make_encoder is None else lists.make_encoder(options)
    ntm = NeuralTuringMachine(lists.channels, lists.outputs, CONTROLLER, ROWS, WIDTH, encoder=encoder)
    hidden, weights = CONTROLLER, count_weights(ntm)
    while count_weights(lstm := RecurrentNetwork(lists.channels, lists.outputs, hidden, encoder)) < weights:
        hidden += 1
    return {"NTM": ntm, "LSTM": lstm}


def answer(model: nn.Module, task: Task) -> Tensor:
    """Logits of the steps that are asked for."""
    logits: Tensor = model(task.inputs)[:, -task.targets.shape[1] :]
    return logits


def loss(model: nn.Module, task: Task) -> Tensor:
    logits = answer(model, task)
    if task.targets.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, task.targets)
    return F.cross_entropy(logits.flatten(0, 1), task.targets.flatten())


@torch.no_grad()
def wrong(model: nn.Module, task: Task) -> float:
    """The share of wrong bits, or classes."""
    logits = answer(model, task)
    if task.targets.is_floating_point():
        return float(((logits > 0) != (task.targets > 0.5)).double().mean())
    return float((logits.argmax(2) != task.targets).double().mean())


def train(model: nn.Module, lists: Lists, options: Options, title: str) -> str:
    """Lists of a length each batch; the best epoch is that with the least loss on the longest of those lengths."""
    generator = torch.Generator().manual_seed(options.seed)
    first, last = lists.lengths

    def batch(_: object) -> Task:
        length = int(torch.randint(first, last + 1, (), generator=generator))
        return lists.draw(BATCH, length, generator)

    held_out = {"part": "validation"} if lists.make_encoder is not None else {}
    validation = lists.draw(200, last, torch.Generator().manual_seed(1000 + options.seed), **held_out)
    plan = Plan(lists.epochs, batch_size=1, learning_rate=3e-3, seed=options.seed)
    batches = range(4 if options.smoke else lists.batches)
    if options.smoke:
        plan = replace(plan, epochs=1)
    history = fit(
        model,
        batches,
        loss,
        lambda model: -loss(model, validation).item(),
        plan,
        collate=batch,
        title=title,  # type: ignore[arg-type]
    )
    return f"{count_weights(model)} weights, {history.seconds:.0f} s"


def tested(lists: Lists, length: int, options: Options) -> Task:
    held_out = {"part": "test"} if lists.make_encoder is not None else {}
    generator = torch.Generator().manual_seed(2000 + options.seed)
    return lists.draw(10 if options.smoke else 500, length, generator, **held_out)


def run(options: Options) -> list[Row]:
    rows = []
    for name, lists in LISTS.items():
        torch.manual_seed(options.seed)
        models = make_models(lists, options)
        notes = {kind: train(model, lists, options, f"{name}, {kind}") for kind, model in models.items()}
        note = "; ".join(f"{kind}: {note}" for kind, note in notes.items())
        what = "bits" if lists.make_encoder is None else "digits"
        for length in (lists.lengths[1], *lists.longer):
            task = tested(lists, length, options)
            ntm, lstm = (wrong(model, task) for model in models.values())
            must, reached = f"<= {MOST[what]}", ntm <= MOST[what]
            if length in lists.longer:
                must, reached = f"{must}, the LSTM > {LEAST[what]}", reached and lstm > LEAST[what]
            data = f"lists of {length}, trained on {lists.lengths[0]} to {lists.lengths[1]}"
            rows.append(Row(f"{SYSTEM}, {name}", data, f"wrong {what}", ntm, lstm, must, reached, note))
        draw_lengths(models, name, lists, options)
        if name == "copy":
            draw_memory(models["NTM"], lists, options)
    return rows


def speed(options: Options) -> list[Speed]:
    """None: no part of it has a fused op."""
    return []


@torch.no_grad()
def draw_lengths(models: dict[str, nn.Module], name: str, lists: Lists, options: Options) -> None:
    """What is wrong, by the length of a list."""
    first, last = lists.lengths
    lengths = range(first, max(lists.longer) + 1, 12 if options.smoke else 2)
    figure, axes = plt.subplots(figsize=(5.5, 3.2))
    for kind, model in models.items():
        axes.plot(lengths, [wrong(model, tested(lists, length, options)) for length in lengths], label=kind)
    axes.axvspan(first, last, color="0.9", label="trained on")
    axes.set(
        xlabel="items in a list", ylabel=f"wrong {'bits' if lists.make_encoder is None else 'digits'}", ylim=(0, None)
    )
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(options.out / f"memory_{name.replace(' ', '_')}.png", dpi=100)
    plt.close(figure)


@torch.no_grad()
def draw_memory(model: nn.Module, lists: Lists, options: Options) -> None:
    """A list twice as long as any trained on: what came in and out, where the heads were, what stood in the memory."""
    task = lists.draw(1, 2 * lists.lengths[1], torch.Generator().manual_seed(options.seed))
    states = model.states(task.inputs)
    said = torch.sigmoid(model(task.inputs))[0]
    middle = len(states) // 2  # after the delimiter
    panels = {
        "input": task.inputs[0].T,
        "output": F.pad(said[middle + 1 :], (0, 0, middle + 1, 0)).T,
        "write head": torch.stack([state.weights[0, 1] for state in states], 1),
        "read head": torch.stack([state.weights[0, 0] for state in states], 1),
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), height_ratios=(1, 3), sharex=True)
    for (title, values), axis in zip(panels.items(), axes.flat, strict=True):
        axis.imshow(values, cmap="gray", aspect="auto", interpolation="nearest")
        axis.set_title(title, fontsize=9)
    for axis in axes[1]:
        axis.set(xlabel="step", ylabel="row of the memory")
    figure.tight_layout()
    figure.savefig(options.out / "memory_heads.png", dpi=90)
    plt.close(figure)
