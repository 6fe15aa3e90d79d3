"""Sequence to sequence with attention (document 001): English words to their pronunciation, from CMUdict.

The same model with and without attention, on the same words; greedy and beam search. The error rate is the edit
distance between phonemes, over as many as there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.figures import save_figure
from examples.grapheme_to_phoneme import BOUNDARY, PAD, Lexicon, load_lexicon
from examples.systems.table import Options, Row, Speed, plain_copy, time_in_turn
from examples.training import History, Plan, fit
from hybridops.models import Seq2Seq

NAME = "translation"
LONGEST = 20  # phonemes that a search may give


@dataclass(frozen=True)
class Words:
    letters: Tensor  # (N, T)
    lengths: Tensor  # (N)
    phonemes: Tensor  # (N, S + 2), from BOUNDARY to BOUNDARY

    def rows(self, rows: slice) -> Words:
        return Words(self.letters[rows], self.lengths[rows], self.phonemes[rows])


def run(options: Options) -> list[Row]:
    lexicon = load_lexicon()
    words = Words(lexicon.letters, (lexicon.letters != PAD).sum(1), lexicon.pronunciations)
    test, validation = words.rows(slice(0, 1000)), words.rows(slice(1000, 2000))
    train = words.rows(slice(2000, 2512 if options.smoke else None))
    if options.smoke:
        test, validation = test.rows(slice(64)), validation.rows(slice(64))
    plan = Plan(epochs=1 if options.smoke else 8, batch_size=128, learning_rate=3e-3, seed=options.seed)
    models, histories = {}, {}
    for attention in (False, True):
        torch.manual_seed(options.seed)
        model = make_model(lexicon, attention=attention)
        title = "Seq2Seq with attention" if attention else "Seq2Seq without"
        histories[title] = fit(
            model, TensorDataset(train.letters, train.lengths, train.phonemes), loss,
            lambda model: -error_rate(model, validation), plan, title=title,
        )  # fmt: skip
        models[attention] = model
    without, greedy, beam = (
        error_rate(models[False], test), error_rate(models[True], test), error_rate(models[True], test, beam_size=5)
    )  # fmt: skip
    draw(models[True], lexicon, test, histories, options)
    metric, data = "phoneme error rate", "CMUdict, 1,000 words"
    return [
        Row(
            "Seq2Seq, attention",
            data,
            metric,
            greedy,
            without,
            "below the same model without attention",
            greedy < without,
        ),
        Row("Seq2Seq, beam 5", data, metric, beam, greedy, "no higher than greedy", beam <= greedy),
    ]


def make_model(lexicon: Lexicon, attention: bool = True, hidden_dim: int = 128) -> Seq2Seq:
    return Seq2Seq(
        27, 2 + len(lexicon.phonemes), 64, hidden_dim, attention=attention, dropout=0.2, pad=PAD, start=BOUNDARY,
        end=BOUNDARY,
    )  # fmt: skip


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    letters, lengths, phonemes = batch
    letters, phonemes = letters[:, : lengths.max()], phonemes[:, : (phonemes != PAD).any(0).sum()]
    logits = model(letters, phonemes[:, :-1], lengths)
    return F.cross_entropy(logits.flatten(0, 1), phonemes[:, 1:].flatten(), ignore_index=PAD)


def error_rate(model: Seq2Seq, words: Words, beam_size: int = 1) -> float:
    found = model.generate(words.letters, words.lengths, max_length=LONGEST, beam_size=beam_size)
    errors = count = 0
    for said, true in zip(found.tokens.tolist(), words.phonemes[:, 1:].tolist(), strict=True):
        said, true = (row[: row.index(BOUNDARY)] if BOUNDARY in row else row for row in (said, true))
        errors += Levenshtein.distance(said, true)
        count += len(true)
    return errors / count


def draw(model: Seq2Seq, lexicon: Lexicon, test: Words, histories: dict[str, History], options: Options) -> None:
    """Attention of some words, and the validation curves."""
    some = test.rows(slice(6))
    found = model.generate(some.letters, some.lengths, max_length=LONGEST, need_weights=True)
    assert found.weights is not None
    with save_figure(options.out / "translation_attention.png", rows=2, columns=3, size=3) as axes:
        for ax, word, tokens, weights in zip(axes.flat, lexicon.words, found.tokens, found.weights, strict=False):
            said = lexicon.spell(tokens)
            ax.imshow(weights[: len(said), : len(word)], cmap="Blues", vmin=0, vmax=1, aspect="auto")
            ax.set_xticks(range(len(word)), word)
            ax.set_yticks(range(len(said)), said, fontsize=8)
    with save_figure(options.out / "translation_curves.png", rows=1, columns=1, size=5) as axes:
        for title, history in histories.items():
            axes[0, 0].plot(range(1, 1 + len(history.scores)), [-score for score in history.scores], label=title)
        axes[0, 0].set(xlabel="epoch", ylabel="phoneme error rate, validation", title="CMUdict")
        axes[0, 0].legend()


def speed(options: Options) -> list[Speed]:
    """At the trained size, and at one of translation: (32, 50 words of 50) with 512 channels and 10,000 words."""
    lexicon = load_lexicon()
    phonemes = lexicon.pronunciations[:128]
    batch = lexicon.letters[:128], (lexicon.letters[:128] != PAD).sum(1), phonemes
    torch.manual_seed(options.seed)
    found = _speeds("Seq2Seq, CMUdict", make_model(lexicon), batch, options)
    if not options.smoke:
        words = torch.randint(3, 10_000, (32, 50))
        batch = words, torch.full((32,), 50), torch.cat([torch.full((32, 1), 1), words], 1)
        found += _speeds("Seq2Seq, 512 channels", Seq2Seq(10_000, 10_000, 512, 512, cell="lstm"), batch, options)
    return found


def _speeds(name: str, fused: Seq2Seq, batch: tuple[Tensor, ...], options: Options) -> list[Speed]:
    plain, seconds = plain_copy(fused), 0.1 if options.smoke else 6.0
    letters, lengths, targets = batch

    def train(model: nn.Module) -> None:
        model.train()
        loss(model, batch).backward()

    def search(model: Seq2Seq, beam_size: int) -> None:
        model.eval()
        model.generate(letters, lengths, max_length=targets.shape[1], beam_size=beam_size)

    return [
        time_in_turn(name, "training step", lambda: train(plain), lambda: train(fused), seconds),
        time_in_turn(name, "greedy search", lambda: search(plain, 1), lambda: search(fused, 1), seconds),
        time_in_turn(name, "beam search, 5", lambda: search(plain, 5), lambda: search(fused, 5), seconds),
    ]
