"""Captions of films of three shots: by the mean of their frames, by attention over frames, over shots and frames.

A caption names what each shot shows, its colour, digit and motion, in the order of the film or against it. All are
trained alike, on all three captions of each film, kept at the epoch whose captions match best on validation data, and
judged on test films, of other digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from examples.data.drawn_scenes import Vocabulary
from examples.data.sprite_captions import NAMED, parse
from examples.systems import sprite_films
from examples.systems.scene_captions import cross_entropy
from examples.systems.sprite_films import CHANNELS, REGIONS, Data, Films
from examples.systems.table import Options, Row, Speed, plain_copy, time_in_turn
from examples.training import History, Plan, fit
from hybridops.evaluation import caption_errors, caption_scores
from hybridops.layers import ConvEncoder, PretrainedEncoder
from hybridops.layers.shots import by_shot
from hybridops.models import VideoCaptioner

CONTEXTS = ("mean", "temporal", "hierarchical")
PLAN = Plan(epochs=16, batch_size=32, learning_rate=4e-3)
EMBED, HIDDEN, ATTENTION = 64, 128, 64
LONGEST = 22  # words of a caption, its end among them


class Batch(NamedTuple):
    """Of B films."""

    maps: Tensor  # (B, T, DIM, 4, 4)
    lengths: Tensor  # (B, 3)
    words: Tensor  # (B, captions, longest), from start to end


def captioner(context: str, words: int, encoder: nn.Module | None = None) -> VideoCaptioner:
    """Of maps, or with an encoder of frames."""
    encoder = sprite_films.map_encoder() if encoder is None else encoder
    return VideoCaptioner(
        words, EMBED, HIDDEN, ATTENTION, context=context, encoder=encoder, regions=REGIONS, dropout=0.1
    )


def frames_of(model: VideoCaptioner, lengths: Tensor) -> Tensor:
    """What the model takes of the shots' lengths (B, 3)."""
    return lengths if model.context == "hierarchical" else lengths.sum(1)


def encode(films: Films, vocabulary: Vocabulary) -> Batch:
    texts = [text for clip in films.clips for text in clip.captions]
    return Batch(films.maps, films.shots.lengths, vocabulary.encode(texts).unflatten(0, (len(films.clips), -1)))


def repeat(memory: Any, times: int) -> Any:
    """Each entry of all its parts so many times, next to each other: a film is read once for all its captions."""
    if isinstance(memory, tuple):
        return type(memory)(*(repeat(part, times) for part in memory))
    return None if memory is None else memory.repeat_interleave(times, 0)


def attend(model: VideoCaptioner, batch: Batch, need_weights: bool = True) -> tuple[Tensor, Tensor | None]:
    """Logits and weights of all captions of each film, teacher forced."""
    memory = model.encode(batch.maps, frames_of(model, batch.lengths))
    return model.decoder(
        batch.words.flatten(0, 1)[:, :-1], repeat(memory, batch.words.shape[1]), need_weights=need_weights
    )


def loss(model: VideoCaptioner, batch: Batch) -> Tensor:
    return cross_entropy(attend(model, batch, need_weights=False)[0], batch.words.flatten(0, 1))


def describe(model: VideoCaptioner, films: Films, vocabulary: Vocabulary) -> list[str]:
    found = model.generate(films.maps, frames_of(model, films.shots.lengths), max_length=LONGEST)
    return [vocabulary.decode(words) for words in found.tokens]


def exact(captions: list[str], films: Films) -> float:
    """The share that is one of the film's captions, word for word."""
    return sum(text in clip.captions for text, clip in zip(captions, films.clips, strict=True)) / len(captions)


def judge(captions: list[str], films: Films) -> dict[str, float]:
    said, shown = [parse(text) for text in captions], [clip.graph for clip in films.clips]
    cider = caption_scores([clip.captions for clip in films.clips], captions, ["cider"])
    return {"exact": exact(captions, films), **cider, **caption_errors(said, shown)._asdict()}


@torch.no_grad()
def on_the_right_shot(model: VideoCaptioner, films: Films, vocabulary: Vocabulary) -> float:
    """Of the words of all captions that say what a shot shows, the share at which β is largest for that shot."""
    batch = encode(films, vocabulary)
    _, weights = attend(model, batch)
    assert weights is not None
    captions, steps = batch.words.shape[1], batch.words.shape[2] - 1
    lengths = batch.lengths.repeat_interleave(captions, 0)
    looked = by_shot(weights.transpose(1, 2), lengths).sum(2).argmax(1)  # (B·captions, S)
    about = torch.full((len(looked), steps), -1)
    clips = [(text, shots) for clip in films.clips for text, shots in zip(clip.captions, clip.shots, strict=True)]
    for row, (text, shots) in zip(about, clips, strict=True):
        for step, (word, shot) in enumerate(zip(text.split(), shots, strict=True)):
            row[step] = shot if word in NAMED else -1
    return float((looked == about)[about >= 0].double().mean())


def trained(context: str, data: Data, options: Options) -> tuple[VideoCaptioner, History]:
    torch.manual_seed(options.seed)
    model = captioner(context, len(data.words))
    train = encode(data.train, data.words)
    plan = replace(PLAN, seed=options.seed, epochs=1 if options.smoke else PLAN.epochs)

    held = encode(data.validation, data.words)

    def match(model: nn.Module) -> float:
        """Where no caption matches, the likelier ones are better."""
        assert isinstance(model, VideoCaptioner)
        found = exact(describe(model, data.validation, data.words), data.validation)
        return found - 1e-4 * float(loss(model, held))

    def batch(index: list[int]) -> Batch:
        return Batch(*(part[index] for part in train))

    history = fit(model, range(len(train.maps)), loss, match, plan, collate=batch, title=context)  # type: ignore[arg-type]
    return model, history


def run(options: Options) -> list[Row]:
    data = sprite_films.load(options)
    models, histories, scores, shares = {}, {}, {}, {}
    for context in CONTEXTS:
        models[context], histories[context] = trained(context, data, options)
        scores[context] = judge(describe(models[context], data.test, data.words), data.test)
        if context != "mean":
            shares[context] = on_the_right_shot(models[context], data.test, data.words)
            draw_attention(models[context], data, options)
    where = f"{len(data.train.clips)} films of 3 shots"
    mean = scores["mean"]
    rows = []
    for context in CONTEXTS[1:]:
        for metric, sign in ("exact", 1), ("cider", 1), ("attribute", -1):
            found, held = scores[context][metric], mean[metric]
            name = {"exact": "exact match", "cider": "CIDEr-D", "attribute": "attribute errors"}[metric]
            must = "> the mean of frames" if sign > 0 else "< the mean of frames"
            rows.append(Row(f"video captioning, {context}", where, name, found, held, must, sign * (found - held) > 0))
    rows.append(
        Row("video captioning, hierarchical", where, "words with β on their shot", shares["hierarchical"],
            shares["temporal"], ">= 0.9; chance 1/3, baseline: attention over frames", shares["hierarchical"] >= 0.9)
    )  # fmt: skip
    for context, found in scores.items():
        history = histories[context]
        note = ", ".join(f"{kind} {share:.3f}" for kind, share in found.items())
        note += f"; best of {len(history.scores)} epochs: {history.best_epoch + 1}, {history.seconds:.0f} s"
        rows.append(
            Row(
                f"video captioning, {context}",
                where,
                "relation errors",
                found["relation"],
                None,
                "as it is",
                True,
                note,
            )
        )
    return rows


@torch.no_grad()
def draw_attention(model: VideoCaptioner, data: Data, options: Options, number: int = 0) -> None:
    """Where each word of the model's own caption of a test film looks."""
    film = data.test.take(torch.tensor([number]))
    found = model.generate(film.maps, frames_of(model, film.shots.lengths), max_length=LONGEST, need_weights=True)
    words = data.words.decode(found.tokens[0]).split()
    if words and found.weights is not None:
        path = options.out / f"video_captioning_{model.context}.png"
        sprite_films.draw_strip(path, film, 0, found.weights[0, : len(words)], words)


def speed(options: Options) -> list[Speed]:
    """At the sizes that were trained, frames and all, and on features of a large network."""
    seconds = 0.1 if options.smoke else 2.0
    lengths, words = torch.tensor([[9, 6, 10], [6, 8, 8]]).repeat(16, 1), torch.randint(1, 32, (32, 20))
    frames = torch.rand(32, 25, 3, 32, 32)
    found = []
    for context in CONTEXTS[1:]:
        model = captioner(context, 32, ConvEncoder(3, CHANNELS))
        found += time_steps(f"video captioning, {context}", model, frames, words, lengths, seconds)
    if options.smoke:
        return found
    # 20 words of 10,000, 120 frames in 6 shots, of each a vector
    features, sentences = torch.randn(32, 120, 512, 1, 1), torch.randint(1, 10_000, (32, 20))
    lengths = torch.tensor([[20, 12, 28, 20, 25, 15]]).expand(32, -1)
    for context in CONTEXTS[1:]:
        encoder = PretrainedEncoder(nn.Identity(), 512)
        model = VideoCaptioner(10_000, 512, 512, context=context, encoder=encoder)
        name = f"video captioning, {context}, 120 frames, 512 channels"
        found += time_steps(name, model, features, sentences, lengths, seconds)
    return found


def time_steps(
    name: str, fused: VideoCaptioner, frames: Tensor, words: Tensor, lengths: Tensor, seconds: float
) -> list[Speed]:
    plain, lengths = plain_copy(fused), frames_of(fused, lengths)

    def training_step(model: VideoCaptioner) -> None:
        model.zero_grad()
        cross_entropy(model(frames, words[:, :-1], lengths), words).backward()

    def decoding_step(model: VideoCaptioner, beam: int) -> Callable[[], object]:
        with torch.no_grad():
            state = model.decoder.start(model.encode(frames, lengths))
        state = state.reorder(torch.arange(len(frames)).repeat_interleave(beam))
        return torch.no_grad()(partial(model.decoder.step, words[:, 0].repeat_interleave(beam), state))

    found = [time_in_turn(name, "training step", partial(training_step, plain), partial(training_step, fused), seconds)]
    plain.eval(), fused.eval()
    for what, beam in ("decoding step, greedy", 1), ("decoding step, beam 5", 5):
        found.append(time_in_turn(name, what, decoding_step(plain, beam), decoding_step(fused, beam), seconds))
    return found
