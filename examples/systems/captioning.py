"""Captions of drawn scenes, by captioners that have the image as one vector, as regions, as objects, as their graph.

All are trained alike, on all four captions of each scene, kept at the epoch whose captions match best on validation
data, and judged on test scenes, of which even the digits are others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from examples.data.drawn_scenes import Vocabulary
from examples.figures import save_figure
from examples.systems import scene_captions
from examples.systems.scene_captions import LONGEST, Data
from examples.systems.table import Options, Row, Speed, plain_copy, time_in_turn
from examples.training import History
from hybridops.evaluation import attention_figure
from hybridops.layers import PretrainedEncoder
from hybridops.models import ImageCaptioner

PENALTY = 0.001  # λ of the doubly stochastic penalty, a sum over regions
KINDS = {  # name: context, penalty
    "spatial": ("spatial", 0.0),
    "global": ("global", 0.0),
    "doubly stochastic": ("spatial", PENALTY),
    "adaptive": ("adaptive", 0.0),
    "objects": ("objects", 0.0),
    "graph": ("graph", 0.0),
}
FUNCTION_WORDS = {"a", "is", "there", "to", "the", "of"}


def run(options: Options) -> list[Row]:
    data = scene_captions.load(options)
    models, histories, captions = {}, {}, {}
    for name in KINDS:
        models[name], histories[name] = trained(name, data, options)
        captions[name] = scene_captions.describe(models[name], data.test, data)
    draw_captions(options, data, captions)
    draw_curves(options, histories)
    for name in ("spatial", "adaptive"):
        draw_attention(options, name, models[name], data)

    scores = {name: scene_captions.judge(found, data.test) for name, found in captions.items()}
    spatial, one_vector, objects, graph = (scores[name] for name in ("spatial", "global", "objects", "graph"))
    function, content = (weight_of_the_sentinel(models["adaptive"], data, function) for function in (True, False))
    entropy, penalty = scene_captions.attended(models["spatial"], data.test)
    held_entropy, held_penalty = scene_captions.attended(models["doubly stochastic"], data.test)

    where = f"{len(data.train)} drawn scenes"
    rows = [
        Row("captioning, regions", where, "exact match", spatial["exact"], one_vector["exact"],
            "> 0.316, > one vector", spatial["exact"] > max(0.316, one_vector["exact"])),
        Row("captioning, regions", where, "attribute errors", spatial["attribute"], one_vector["attribute"],
            "< one vector", spatial["attribute"] < one_vector["attribute"]),
        Row("captioning, regions", where, "relation errors", spatial["relation"], one_vector["relation"],
            "< one vector", spatial["relation"] < one_vector["relation"]),
        Row("captioning, adaptive", where, "β of function words", function, content, "> β of content words",
            function > content),
        Row("captioning, graph", where, "relation errors", graph["relation"], objects["relation"], "<= objects alone",
            graph["relation"] <= objects["relation"]),
        Row("captioning, doubly stochastic", where, "Σ(1 - Σα)²", held_penalty, penalty,
            "< without, cross-entropy within 2 %", held_penalty < penalty and held_entropy < 1.02 * entropy,
            f"cross-entropy {held_entropy:.4f}, without {entropy:.4f}"),
    ]  # fmt: skip
    for name, found in scores.items():
        errors = ", ".join(f"{kind} {share:.3f}" for kind, share in found.items() if kind not in ("exact", "cider"))
        rows.append(Row(f"captioning, {name}", where, "CIDEr-D", found["cider"], None, "as it is", True,
                        f"exact match {found['exact']:.3f}, errors: {errors}"))  # fmt: skip
    return rows


def trained(name: str, data: Data, options: Options) -> tuple[ImageCaptioner, History]:
    """One of KINDS. Each epoch is kept in the folder of the pictures, and training goes on from there."""
    kind, penalty = KINDS[name]
    torch.manual_seed(options.seed)
    model = scene_captions.captioner(kind, len(data.vocabulary))
    checkpoint = None if options.smoke else options.out / f"captioner {name}.pt"
    if checkpoint is not None and checkpoint.exists():
        print(f"{name}: goes on from {checkpoint}")
    loss, score = partial(scene_captions.caption_loss, penalty=penalty), partial(scene_captions.match, data=data)
    return model, scene_captions.train(model, data, options, loss=loss, score=score, title=name, checkpoint=checkpoint)


def weight_of_the_sentinel(model: ImageCaptioner, data: Data, function: bool) -> float:
    """The mean β of the words that the model writes about test scenes, function words or all others."""
    found = model.generate(data.test.drawn.images, max_length=LONGEST, need_weights=True)
    beta = 1 - found.weights.sum(2)
    numbers = torch.tensor([data.vocabulary.words.index(word) for word in FUNCTION_WORDS])
    written = (torch.arange(beta.shape[1]) < found.lengths[:, None]) & (found.tokens != Vocabulary.END)
    return beta[written & (torch.isin(found.tokens, numbers) == function)].mean().item()


def draw_captions(
    options: Options, data: Data, captions: dict[str, list[str]], rows: int = 2, columns: int = 3
) -> None:
    """What each model says about the first test scenes."""
    with save_figure(options.out / "captioning_captions.png", 2, 3, size=5.0) as axes:
        for number, place in enumerate(axes.flat):
            place.imshow(data.test.drawn.images[number].permute(1, 2, 0))
            lines = [data.test.drawn.scenes[number].captions[0] + " (true)"]
            lines += [f"{found[number]} ({name})" for name, found in captions.items()]
            place.set_title("\n".join(lines), fontsize=8)
            place.axis("off")


def draw_attention(options: Options, name: str, model: ImageCaptioner, data: Data, count: int = 2) -> None:
    """Where it looks at each word; the number beside a word is how much of it comes from there."""
    images = data.test.drawn.images[:count]
    found = model.generate(images, max_length=LONGEST, need_weights=True)
    for number, (image, words, weights) in enumerate(zip(images, found.tokens, found.weights, strict=True)):
        text = data.vocabulary.decode(words).split()
        titles = [f"{word} {share:.2f}" for word, share in zip(text, weights.sum(1).tolist(), strict=False)]
        figure = attention_figure(image, titles, weights[: len(text)], scene_captions.GRID)
        figure.savefig(options.out / f"captioning_attention_{name}_{number}.png")


def draw_curves(options: Options, histories: dict[str, History]) -> None:
    with save_figure(options.out / "captioning_curves.png", 1, 2, size=5.0) as axes:
        losses, scores = axes[0]
        for name, history in histories.items():
            steps = len(history.losses) // len(history.scores)
            means = torch.tensor(history.losses).unflatten(0, (-1, steps)).mean(1)
            losses.plot(range(1, len(means) + 1), means, label=name)
            scores.plot(range(1, len(history.scores) + 1), history.scores)
        losses.set(xlabel="epoch", ylabel="training loss", yscale="log")
        losses.legend()
        scores.set(xlabel="epoch", ylabel="exact match, validation")


def speed(options: Options) -> list[Speed]:
    """Of attention over regions: at the sizes that were trained, and at those of photographs."""
    seconds = 0.1 if options.smoke else 2.0
    scenes = scene_captions.load(Options(smoke=True, out=options.out))
    images, words, *_ = next(iter(DataLoader(scenes.train, scene_captions.BATCH)))
    words = words[:, 0]
    trained = scene_captions.captioner("spatial", len(scenes.vocabulary))
    speeds = time_steps("captioning", trained, images, words, seconds)
    if options.smoke:
        return speeds
    # 20 words of 10,000, 196 regions of what a pretrained network gives
    features, sentences = torch.randn(32, 512, 14, 14), torch.randint(1, 10_000, (32, 21))
    large = ImageCaptioner(10_000, 512, 512, encoder=PretrainedEncoder(nn.Identity(), 512))
    return speeds + time_steps("captioning, 196 regions, 512 channels", large, features, sentences, seconds)


def time_steps(name: str, fused: ImageCaptioner, images: Tensor, words: Tensor, seconds: float) -> list[Speed]:
    plain = plain_copy(fused)

    def training_step(model: ImageCaptioner) -> None:
        model.zero_grad()
        scene_captions.cross_entropy(model(images, words[:, :-1]), words).backward()

    def decoding_step(model: ImageCaptioner, beam: int) -> Callable[[], object]:
        with torch.no_grad():
            state = model.decoder.start(model.encode(images))
        state = state.reorder(torch.arange(len(images)).repeat_interleave(beam))
        return torch.no_grad()(partial(model.decoder.step, words[:, 0].repeat_interleave(beam), state))

    found = [time_in_turn(name, "training step", partial(training_step, plain), partial(training_step, fused), seconds)]
    plain.eval(), fused.eval()
    for what, beam in ("decoding step, greedy", 1), ("decoding step, beam 5", 5):
        found.append(time_in_turn(name, what, decoding_step(plain, beam), decoding_step(fused, beam), seconds))
    return found
