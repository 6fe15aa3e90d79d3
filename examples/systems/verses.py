"""Sequence to sequence with attention (document 001): English verses into Spanish.

The same model with and without attention on the same verses, judged by BLEU of lower-case tokens (sacrebleu).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sacrebleu
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from examples.data import verses
from examples.systems.table import Options, Row, Speed, plain_copy, time_in_turn
from examples.training import Plan, fit
from hybridops.models import Seq2Seq

PAD, START, END, UNKNOWN = range(4)
LONGEST = 22  # tokens that a search may give
Pair = tuple[list[str], list[str]]
Batch = tuple[Tensor, Tensor, Tensor]  # source (B, T), lengths (B), target (B, S), from START to END


@dataclass(frozen=True)
class Verses:
    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    source: list[str]  # words by number
    target: list[str]

    def collate(self, pairs: Sequence[Pair]) -> Batch:
        numbers = [{word: n for n, word in enumerate(words)} for words in (self.source, self.target)]
        source = [torch.tensor([numbers[0].get(word, UNKNOWN) for word in pair[0]]) for pair in pairs]
        target = [torch.tensor([START, *(numbers[1].get(word, UNKNOWN) for word in pair[1]), END]) for pair in pairs]
        lengths = torch.tensor([len(row) for row in source])
        return pad_sequence(source, True, PAD), lengths, pad_sequence(target, True, PAD)


def load(smoke: bool = False) -> Verses:
    """Every 17th pair is for the test, the one after it for validation."""
    pairs = verses.load()
    test, validation = pairs[::17], pairs[1::17]
    train = [pair for n, pair in enumerate(pairs) if n % 17 > 1]
    if smoke:
        train, validation, test = train[:64], validation[:8], test[:8]
    return Verses(train, validation, test, *(_vocabulary(pair[side] for pair in train) for side in (0, 1)))


def _vocabulary(sentences: Iterable[list[str]]) -> list[str]:
    """What comes three times or more."""
    counts = Counter(word for sentence in sentences for word in sentence)
    return ["<pad>", "<start>", "<end>", "<unknown>", *(word for word, count in counts.most_common() if count >= 3)]


def make_model(data: Verses, attention: bool = True) -> Seq2Seq:
    return Seq2Seq(len(data.source), len(data.target), 128, 192, attention=attention, dropout=0.3)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    source, lengths, target = batch
    logits = model(source, target[:, :-1], lengths)
    return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD, label_smoothing=0.1)


def translate(model: Seq2Seq, data: Verses, pairs: Sequence[Pair], beam_size: int) -> list[str]:
    source, lengths, _ = data.collate(pairs)
    found = model.generate(source, lengths, max_length=LONGEST, beam_size=beam_size)
    return [
        " ".join(data.target[word] for word in row[:length] if word != END)
        for row, length in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)
    ]


def bleu(model: Seq2Seq, data: Verses, pairs: Sequence[Pair], beam_size: int = 1) -> float:
    references = [" ".join(spanish) for _, spanish in pairs]
    said = translate(model, data, pairs, beam_size)
    return sacrebleu.corpus_bleu(said, [references], tokenize="none").score


def run(options: Options) -> list[Row]:
    data = load(options.smoke)
    plan = Plan(epochs=1 if options.smoke else 12, batch_size=64, learning_rate=3e-3, seed=options.seed)
    models = {}
    for attention in (False, True):
        torch.manual_seed(options.seed)
        model = make_model(data, attention)
        fit(
            model, data.train, loss, lambda model: bleu(model, data, data.validation), plan, collate=data.collate,
            title="verses, with attention" if attention else "verses, without",
        )  # fmt: skip
        models[attention] = model
    scores = {
        (attention, beam_size): bleu(models[attention], data, data.test, beam_size)
        for attention in (False, True)
        for beam_size in (1, 5)
    }
    lines = [
        f"{' '.join(english)}\n    {ours}\n    {' '.join(theirs)}"
        for (english, theirs), ours in zip(data.test, translate(models[True], data, data.test[:10], 5), strict=False)
    ]
    (options.out / "verses.txt").write_text("\n".join(lines) + "\n")
    without, greedy, beam = scores[False, 1], scores[True, 1], scores[True, 5]
    source = f"{len(data.test)} verses, English to Spanish"
    return [
        Row(
            "Seq2Seq, attention", source, "BLEU", greedy, without, "above the model without attention", greedy > without
        ),
        Row("Seq2Seq, beam 5", source, "BLEU", beam, greedy, "no lower than greedy", beam >= greedy),
    ]


def speed(options: Options) -> list[Speed]:
    data, seconds = load(options.smoke), 0.1 if options.smoke else 6.0
    fused = make_model(data)
    plain, batch = plain_copy(fused), data.collate(data.train[:64])

    def train(model: nn.Module) -> None:
        model.train()
        loss(model, batch).backward()

    def search(model: Seq2Seq, beam_size: int) -> None:
        model.eval()
        model.generate(*batch[:2], max_length=LONGEST, beam_size=beam_size)

    name = "Seq2Seq, verses"
    return [
        time_in_turn(name, "training step", lambda: train(plain), lambda: train(fused), seconds),
        time_in_turn(name, "greedy search", lambda: search(plain, 1), lambda: search(fused, 1), seconds),
        time_in_turn(name, "beam search, 5", lambda: search(plain, 5), lambda: search(fused, 5), seconds),
    ]
