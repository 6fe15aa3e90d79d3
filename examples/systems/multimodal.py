"""A voice and a picture (document 003): a lock that six of nine men may open, each by his own digit.

A man says a vowel and shows a handwritten digit: he is a stranger (0), known but with another's digit (1), or known and
with his own (2). A third of all tries each. The voice tells who is a stranger, and so gets at most 2/3 right; a digit
that is nobody's is wrong whoever shows it, so the picture gets at most 13/27. Whether a digit is a man's own is in
neither, and in no sum of what each says: that takes a product.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.data import japanese_vowels
from examples.data.japanese_vowels import Utterances
from examples.systems.table import Options, Row, Speed
from examples.training import Plan, fit
from hybridops.models import MultimodalClassifier

SYSTEM = "multimodal classifier"
KNOWN = 6  # men 0 to 5, whose digits are 0 to 5
PLAN = Plan(epochs=15, batch_size=64, learning_rate=5e-3)
TRIES = {"train": 6000, "validation": 1000, "test": 2000}
VARIANTS = {  # branches, fusion, what it must reach
    "image alone": ("image", "concat", None),
    "voice alone": ("sequence", "concat", None),
    "late fusion": ("both", "late", None),
    "concat": ("both", "concat", None),
    "product": ("both", "product", 0.85),
    "mfb": ("both", "mfb", 0.85),
}


def make_model(branches: str, fusion: str) -> MultimodalClassifier:
    return MultimodalClassifier(
        12, 1, 3, branches=branches, fusion=fusion, bidirectional=True, hidden_dim=32, branch_dim=64, dropout=0.2
    )


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    frames, lengths, images, labels = batch
    return F.cross_entropy(model(frames, images, lengths), labels)


@torch.no_grad()
def accuracy(model: nn.Module, tries: TensorDataset) -> float:
    frames, lengths, images, labels = tries.tensors
    return float((model(frames, images, lengths).argmax(1) == labels).double().mean())


def draw_tries(
    voices: Utterances, digits: tuple[Tensor, Tensor], count: int, generator: torch.Generator
) -> TensorDataset:
    """Utterances and pictures in pairs, a third of them of each class."""
    pictures, shown = digits
    labels = torch.randint(3, (count,), generator=generator)

    def any_of(fits: Tensor) -> Tensor:
        return torch.multinomial(fits.float(), 1, generator=generator)[:, 0]

    known = voices.speakers < KNOWN
    voice = any_of(known == (labels > 0)[:, None])
    own = shown == voices.speakers[voice][:, None]
    evenly = 1.0 / shown.bincount()[shown]  # each digit as often as another
    wanted = torch.where((labels == 0)[:, None], torch.ones_like(own), own == (labels == 2)[:, None])
    some = voices.take(voice)
    return TensorDataset(some.frames, some.lengths, pictures[any_of(wanted * evenly)], labels)


def load(options: Options) -> dict[str, TensorDataset]:
    """No utterance and no picture of one part is in another."""
    generator = torch.Generator().manual_seed(options.seed)
    source = load_digits()
    pictures, shown = torch.tensor(source.images / 16.0).float()[:, None], torch.tensor(source.target)
    order = torch.randperm(len(shown), generator=generator)
    thirds = order.split([1197, 300, 300])
    return {
        name: draw_tries(voices, (pictures[index], shown[index]), 64 if options.smoke else TRIES[name], generator)
        for name, voices, index in zip(TRIES, japanese_vowels.load(), thirds, strict=True)
    }


def run(options: Options) -> list[Row]:
    parts = load(options)
    plan = replace(PLAN, seed=options.seed, epochs=1 if options.smoke else PLAN.epochs)
    validate = partial(accuracy, tries=parts["validation"])
    rows: list[Row] = []
    for name, (branches, fusion, must) in VARIANTS.items():
        torch.manual_seed(options.seed)
        model = make_model(branches, fusion)
        history = fit(model, parts["train"], loss, validate, plan, title=name)
        score = accuracy(model, parts["test"])
        alone = max((row.score for row in rows[:2]), default=None)
        rows.append(
            Row(
                SYSTEM, "Japanese vowels + digits", f"accuracy, {name}", score, alone if branches == "both" else None,
                "" if must is None else f">= {must}, more than either alone",
                must is None or (score >= must and alone is not None and score > alone),
                f"best of {len(history.scores)} epochs: {history.best_epoch + 1}, {history.seconds:.0f} s",
            )
        )  # fmt: skip
    return rows


def speed(options: Options) -> list[Speed]:
    """None: neither branch has a fused op."""
    return []
