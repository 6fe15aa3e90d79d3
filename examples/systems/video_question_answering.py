"""Questions about films of three shots: how a digit moves, its colour, what comes before or after it, and which one
moves in some way. Answers are drawn evenly, so that the question alone is at chance; a mean over frames has all shots
at once, and temporal attention the frames that the question is about (document 002).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.data.drawn_scenes import Vocabulary
from examples.data.sprite_captions import KINDS, answers, encode_questions
from examples.systems import sprite_films
from examples.systems.sprite_films import CHANNELS, REGIONS, Data, Films
from examples.systems.table import Options, Row, Speed, plain_copy, time_in_turn
from examples.training import History, Plan, fit
from hybridops.layers import ConvEncoder
from hybridops.layers.shots import by_shot
from hybridops.models import VideoQuestionAnswering

SYSTEM = "video question answering"
PLAN = Plan(epochs=32, batch_size=16, learning_rate=5e-3)  # batches of films, each with all its questions
FUSIONS = {  # of VideoQuestionAnswering: what it is
    "additive": "temporal attention",
    "product": "mean of frames, product",
    "bilinear": "mean of frames, bilinear",
    "none": "question alone",
}


class Questions(NamedTuple):
    """About B films, Q each."""

    maps: Tensor  # (B, T, DIM, 4, 4)
    lengths: Tensor  # (B, 3)
    words: Tensor  # (B, Q, longest)
    word_counts: Tensor  # (B, Q)
    answers: Tensor  # (B, Q)


def encode(films: Films, vocabulary: Vocabulary) -> Questions:
    return Questions(films.maps, films.shots.lengths, *encode_questions(films.clips, vocabulary))


def make_model(fusion: str, words: int, encoder: nn.Module | None = None) -> VideoQuestionAnswering:
    encoder = sprite_films.map_encoder() if encoder is None else encoder
    return VideoQuestionAnswering(
        words, len(answers()), fusion=fusion, embed_dim=64, hidden_dim=96, fused_dim=96, encoder=encoder,
        regions=REGIONS, bidirectional=True, shots=True,
    )  # fmt: skip


def inputs(part: Questions) -> tuple[Tensor, ...]:
    """What a model takes."""
    films, each = part.words.shape[:2]
    index = torch.arange(films).repeat_interleave(each)
    return part.maps, part.words.flatten(0, 1), part.word_counts.flatten(), index, part.lengths


def loss(model: nn.Module, part: Questions) -> Tensor:
    return F.cross_entropy(model(*inputs(part)), part.answers.flatten())


@torch.no_grad()
def right(model: nn.Module, part: Questions) -> Tensor:
    """(B, Q), which questions it answers."""
    return (model(*inputs(part)).argmax(1) == part.answers.flatten()).unflatten(0, part.answers.shape)


def by_kind(found: Tensor, films: Films) -> dict[str, float]:
    """The share of True in (B, Q), of the questions of each kind."""
    kinds = [question.kind for question in films.clips[0].questions]
    places = {kind: [place for place, each in enumerate(kinds) if each == kind] for kind in KINDS}
    return {kind: float(found[:, place].double().mean()) for kind, place in places.items()}


def trained(fusion: str, data: Data, options: Options) -> tuple[VideoQuestionAnswering, History]:
    torch.manual_seed(options.seed)
    model = make_model(fusion, len(data.asked))
    train, validation = (encode(part, data.asked) for part in (data.train, data.validation))
    plan = replace(PLAN, seed=options.seed, epochs=1 if options.smoke else PLAN.epochs)

    def batch(index: list[int]) -> Questions:
        return Questions(*(part[index] for part in train))

    def score(model: nn.Module) -> float:
        return float(right(model, validation).double().mean())

    films = range(len(train.maps))
    history = fit(model, films, loss, score, plan, collate=batch, title=FUSIONS[fusion])  # type: ignore[arg-type]
    return model, history


@torch.no_grad()
def on_the_right_shot(model: VideoQuestionAnswering, films: Films, vocabulary: Vocabulary) -> Tensor:
    """(B, Q), which questions look most at the shot that their answer is of."""
    part = encode(films, vocabulary)
    weights = model.weights(*inputs(part))
    lengths = part.lengths.repeat_interleave(part.words.shape[1], 0)
    looked = by_shot(weights[..., None], lengths).sum((2, 3)).argmax(1).unflatten(0, part.answers.shape)
    return looked == torch.tensor([[question.shot for question in clip.questions] for clip in films.clips])


def run(options: Options) -> list[Row]:
    data = sprite_films.load(options)
    test = encode(data.test, data.asked)
    models, scores, notes = {}, {}, {}
    for fusion in FUSIONS:
        models[fusion], history = trained(fusion, data, options)
        found = right(models[fusion], test)
        scores[fusion] = float(found.double().mean())
        notes[fusion] = ", ".join(f"{kind} {share:.3f}" for kind, share in by_kind(found, data.test).items())
        notes[fusion] += f"; best of {len(history.scores)} epochs: {history.best_epoch + 1}, {history.seconds:.0f} s"
    where = f"{len(data.train.clips)} films of 3 shots"
    rows = []
    for fusion, name in FUSIONS.items():
        others = [score for other, score in scores.items() if other != "additive"]
        held = None if fusion == "none" else scores["none"] if fusion != "additive" else max(others)
        must = "" if held is None else "> question alone" if fusion != "additive" else "> all others"
        reached = held is None or scores[fusion] > held
        rows.append(Row(SYSTEM, where, f"accuracy, {name}", scores[fusion], held, must, reached, notes[fusion]))
    shares = by_kind(on_the_right_shot(models["additive"], data.test, data.asked), data.test)
    draw_attention(models["additive"], data, options)
    for kind, share in shares.items():
        rows.append(Row(SYSTEM, where, f"'{kind}' looks at the shot", share, 1 / 3, "as it is", True))
    return rows


@torch.no_grad()
def draw_attention(model: VideoQuestionAnswering, data: Data, options: Options, number: int = 0) -> None:
    """Where each question about a test film looks, with the model's answer."""
    film = data.test.take(torch.tensor([number]))
    part = encode(film, data.asked)
    weights, said = model.weights(*inputs(part)), model(*inputs(part)).argmax(1).tolist()
    labels = [f"{q.text}? {answers()[a]}" for q, a in zip(film.clips[0].questions, said, strict=True)]
    sprite_films.draw_strip(options.out / "video_question_answering.png", film, 0, weights, labels)


def speed(options: Options) -> list[Speed]:
    """Of temporal attention, frames and all: the sizes that were trained."""
    lengths, frames = torch.tensor([[9, 6, 10], [6, 8, 8]]).repeat(4, 1), torch.rand(8, 25, 3, 32, 32)
    counts = torch.randint(3, 7, (8, 13))
    part = Questions(frames, lengths, torch.randint(1, 30, (8, 13, 6)), counts, torch.zeros_like(counts))
    fused = make_model("additive", 30, ConvEncoder(3, CHANNELS))
    plain = plain_copy(fused)

    def step(model: nn.Module) -> None:
        model.zero_grad()
        loss(model, part).backward()

    seconds = 0.1 if options.smoke else 2.0
    steps = time_in_turn(SYSTEM, "training step", partial(step, plain), partial(step, fused), seconds)
    fused.eval(), plain.eval()
    with torch.no_grad():
        answer = time_in_turn(
            SYSTEM, "inference", partial(plain, *inputs(part)), partial(fused, *inputs(part)), seconds
        )
    return [steps, answer]
