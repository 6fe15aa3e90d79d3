"""What each part of a captioner is worth: all are trained alike, each without one part or with another in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.console import Console
from torch import Tensor, nn

from examples.systems import scene_captions
from examples.systems.scene_captions import EMBED, HIDDEN, Data
from examples.systems.table import Options, Row, Speed
from hybridops.evaluation import ablate
from hybridops.layers import AttentionPooling, AttentionTokenDecoder, ConvEncoder, Memory, TokenDecoder
from hybridops.models import ImageCaptioner

SCENES, EPOCHS = 2000, 5  # half of what the captioners have, for less than half as long
WHOLE, BLIND = "attention, LSTM", "no image"


@dataclass(frozen=True, eq=False)
class WordCount:
    """Of a PooledTokenDecoder: R rows."""

    total: Tensor  # (R, E), of the words so far
    count: int
    whole: Tensor  # (R, H)

    def reorder(self, index: Tensor) -> WordCount:
        return replace(self, total=self.total[index], whole=self.whole[index])

    select = reorder  # greedy search has one row an entry


class PooledTokenDecoder(TokenDecoder):
    """No recurrence: the mean of the words so far, the last word and the image.

    logits_s = W_o tanh(W [mean_{r <= s} E[w_r]; E[w_s]] + W_p pooled)
    """

    def __init__(self, words: int, memory_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, EMBED, padding_idx=0)
        self.hidden = nn.Linear(2 * EMBED, HIDDEN)
        self.pooled = nn.Linear(memory_dim, HIDDEN)
        self.vocabulary = nn.Linear(HIDDEN, words)

    def forward(self, tokens: Tensor, memory: Memory, *, need_weights: bool = False) -> tuple[Tensor, None]:
        x = self.embedding(tokens)
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        hidden = self.hidden(torch.cat([x.cumsum(1) / count, x], 2)) + self.pooled(memory.pooled)[:, None]
        return self.vocabulary(torch.tanh(hidden)), None

    def start(self, memory: Memory) -> WordCount:
        return WordCount(memory.pooled.new_zeros(len(memory.pooled), EMBED), 0, self.pooled(memory.pooled))

    def step(self, tokens: Tensor, state: WordCount) -> tuple[Tensor, None, WordCount]:
        x = self.embedding(tokens)
        state = replace(state, total=state.total + x, count=state.count + 1)
        hidden = self.hidden(torch.cat([state.total / state.count, x], 1)) + state.whole
        return self.vocabulary(torch.tanh(hidden)), None, state


class Pooled(nn.Module):
    """An encoder, its regions pooled in another way than by their mean."""

    def __init__(self, encoder: nn.Module, pooling: nn.Module) -> None:
        super().__init__()
        self.encoder, self.pooling, self.dim = encoder, pooling, encoder.dim

    def forward(self, images: Tensor) -> Memory:
        values, mask, _ = self.encoder(images)
        return Memory(values, mask, self.pooling(values, mask))


class Blind(nn.Module):
    """An encoder that sees nothing."""

    dim = scene_captions.CHANNELS[-1]

    def forward(self, images: Tensor) -> Memory:
        return Memory(images.new_zeros(len(images), 1, self.dim), None, images.new_zeros(len(images), self.dim))


def captioners(words: int) -> dict[str, Callable[[], ImageCaptioner]]:
    """What makes each, by what is another in it."""
    make, dim = partial(scene_captions.captioner, words=words), scene_captions.CHANNELS[-1]

    def convolutions(*channels: int) -> nn.Module:
        return ConvEncoder(3, channels, pool_last=False).to(memory_format=torch.channels_last)

    def regions() -> nn.Module:
        return convolutions(*scene_captions.CHANNELS)

    def decoded(kind: str, decoder: TokenDecoder) -> ImageCaptioner:
        model = make(kind)
        model.decoder = decoder
        return model

    sizes = words, EMBED, HIDDEN, dim, scene_captions.ATTENTION
    return {
        WHOLE: lambda: make("spatial"),
        # without a part
        "no attention, the mean at every word": lambda: make("global", encoder=regions()),
        "one vector of all regions, at every word": lambda: make("global"),
        "one vector of all regions, as the first state": lambda: make("global", image_at="initial"),
        "the mean of the words in place of the LSTM": lambda: decoded("global", PooledTokenDecoder(words, dim)),
        BLIND: lambda: make("spatial", encoder=Blind()),
        # with another
        "three convolutions, 12 x 12 regions": lambda: make("spatial", encoder=convolutions(16, 32, 64)),
        "GRU": lambda: make("spatial", cell="gru"),
        "adaptive attention": lambda: make("adaptive"),
        "adaptive attention of document 002": lambda: make("adaptive", fallback="global"),
        "no gate on the context": lambda: decoded("spatial", AttentionTokenDecoder(*sizes, dropout=0.1)),
        "one vector of all regions, before the first word": lambda: make("global", image_at="first"),
        "one vector, attention over the regions": lambda: make(
            "global", encoder=Pooled(regions(), AttentionPooling(dim))
        ),
    }


def run(options: Options) -> list[Row]:
    data = scene_captions.load(options, SCENES)
    make = captioners(len(data.vocabulary))
    variants = {name: partial(train_and_judge, make[name], name, data, options) for name in make}
    variants[f"{WHOLE}, another seed"] = lambda seed: variants[WHOLE](seed + 1)
    table = ablate(variants, [options.seed])
    Console(highlight=False).print(table.rich())
    (options.out / "ablations.md").write_text(table.markdown() + "\n")
    scores = {name: found["cider"][0] for name, found in table.scores.items()}
    whole, blind = scores[WHOLE], scores[BLIND]
    where = f"{len(data.train)} drawn scenes, {EPOCHS} epochs"
    rows = []
    for name, score in scores.items():
        errors = {metric: values[0] for metric, values in table.scores[name].items() if metric != "cider"}
        note = ", ".join(f"{metric} {value:.3f}" for metric, value in errors.items())
        must, reached = ("> no image", score > blind) if name != BLIND else ("< with one", score < whole)
        rows.append(Row(f"ablations, {name}", where, "CIDEr-D", score, whole, must, reached, note))
    return rows


def train_and_judge(
    make: Callable[[], ImageCaptioner], name: str, data: Data, options: Options, seed: int
) -> dict[str, float]:
    torch.manual_seed(seed)
    model = make()
    scene_captions.train(model, data, replace(options, seed=seed), epochs=EPOCHS, title=name[:24])
    return scene_captions.judge(scene_captions.describe(model, data.test, data), data.test)


def speed(options: Options) -> list[Speed]:
    """Those of examples/systems/captioning.py."""
    return []
