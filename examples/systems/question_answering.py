"""Questions about images (document 002): what each fusion makes of easy-VQA.

Half of the questions are answered by yes or no, so the question alone gets two of three right. What the shape is, and
which colour, is in the image; whether the answer is yes depends on both at once. A sum of the two cannot express that;
a product can, and so can a hidden layer after a concatenation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import Tensor, nn

from examples.data import easy_vqa
from examples.data.easy_vqa import EasyVQA, Questions
from examples.systems.table import Options, Row, Speed, plain_copy, time_in_turn
from examples.training import History, Plan, fit
from hybridops.models import VisualQuestionAnswering

SYSTEM = "question answering"
PLAN = Plan(epochs=12, batch_size=16, learning_rate=2e-3)  # batches of images, each with its ten questions
MUST = {  # of the accuracy on test questions
    "none": None,
    "concat": None,
    "product": 0.95,
    "elementwise": 0.9,
    "gated": 0.9,
    "bilinear": 0.9,
    "mcb": 0.9,
    "mlb": 0.9,
    "mfb": 0.9,
    "cross_modal": 0.9,
    "additive": 0.9,
    "co_attention": 0.9,
    "alternating_co_attention": 0.9,
}


def make_model(data: EasyVQA, fusion: str) -> VisualQuestionAnswering:
    return VisualQuestionAnswering(
        len(data.vocabulary), len(data.answers), fusion=fusion, embed_dim=32, hidden_dim=64, channels=(16, 32, 64),
        fused_dim=512 if fusion == "mcb" else 128,  # hashing 64 · 64 products to fewer numbers mixes too many
    )  # fmt: skip


def answer(model: nn.Module, part: Questions) -> Tensor:
    """Logits, of all its questions."""
    logits: Tensor = model(part.images / 255.0, part.words, part.lengths, part.image_index)
    return logits


def loss(model: nn.Module, part: Questions) -> Tensor:
    return F.cross_entropy(answer(model, part), part.answers)


@torch.no_grad()
def accuracy(model: nn.Module, part: Questions) -> float:
    right = 0
    for images in torch.arange(len(part.images)).split(200):
        some = part.about(images)
        right += int((answer(model, some).argmax(1) == some.answers).sum())
    return right / len(part.answers)


def train(data: EasyVQA, fusion: str, options: Options) -> tuple[VisualQuestionAnswering, History]:
    torch.manual_seed(options.seed)
    model = make_model(data, fusion)
    plan = replace(PLAN, seed=options.seed, epochs=1 if options.smoke else PLAN.epochs)
    validate = partial(accuracy, part=data.validation)
    images = range(len(data.train.images))
    history = fit(model, images, loss, validate, plan, collate=data.train.about, title=fusion)  # type: ignore[arg-type]
    return model, history


def run(options: Options) -> list[Row]:
    data = easy_vqa.load()
    if options.smoke:
        few = torch.arange(32)
        data = replace(data, **{part: getattr(data, part).about(few) for part in ("train", "validation", "test")})
    rows, curves, blind = [], {}, None
    for fusion, must in MUST.items():
        model, history = train(data, fusion, options)
        score = accuracy(model, data.test)
        blind = score if fusion == "none" else blind
        curves[fusion] = history.scores
        rows.append(
            Row(
                SYSTEM, "easy-VQA", f"accuracy, {fusion}", score, None if fusion == "none" else blind,
                "" if must is None else f">= {must}", must is None or score >= must,
                f"best of {len(history.scores)} epochs: {history.best_epoch + 1}, {history.seconds:.0f} s",
            )
        )  # fmt: skip
        if fusion == "alternating_co_attention":
            draw_attention(model, data, options)
    draw_curves(curves, options)
    return rows


def speed(options: Options) -> list[Speed]:
    """Of the model with three additive attentions."""
    data = easy_vqa.load()
    part = data.train.about(range(4 if options.smoke else 16))
    fused = make_model(data, "alternating_co_attention")
    plain = plain_copy(fused)

    def step(model: nn.Module) -> None:
        model.zero_grad()
        loss(model, part).backward()

    steps = time_in_turn(SYSTEM, "training step", partial(step, plain), partial(step, fused))
    fused.eval(), plain.eval()
    with torch.no_grad():
        return [steps, time_in_turn(SYSTEM, "inference", partial(answer, plain, part), partial(answer, fused, part))]


def draw_curves(curves: dict[str, list[float]], options: Options) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for fusion, scores in curves.items():
        axes.plot(range(1, len(scores) + 1), scores, label=fusion)
    axes.set(xlabel="epoch", ylabel="accuracy on validation questions")
    axes.legend(fontsize="small", ncols=2)
    figure.tight_layout()
    figure.savefig(options.out / "question_answering.png", dpi=120)
    plt.close(figure)


@torch.no_grad()
def draw_attention(model: VisualQuestionAnswering, data: EasyVQA, options: Options) -> None:
    """Of a question each to six test images: where it looks."""
    part = data.test.about(range(6))
    first = torch.stack([(part.image_index == image).nonzero()[0, 0] for image in range(6)])
    words, lengths = part.words[first], part.lengths[first]
    images = part.images / 255.0
    answers = model(images, words, lengths).argmax(1)
    weights = model.weights(images, words, lengths)
    side = round(weights.shape[1] ** 0.5)
    figure, axes = plt.subplots(1, 6, figsize=(13, 2.8))
    for i, axis in enumerate(axes):
        axis.imshow(part.images[i].permute(1, 2, 0))
        heat = F.interpolate(weights[i].view(1, 1, side, side), 64, mode="bilinear")[0, 0]
        axis.imshow(heat, cmap="inferno", alpha=0.5)
        axis.set_title(f"{data.spell(words[i])}\n{data.answers[answers[i]]}", fontsize=7)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(options.out / "question_answering_attention.png", dpi=120)
    plt.close(figure)
