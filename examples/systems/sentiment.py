"""Good or bad (documents 000 and 004): film reviews, a CNN-RNN and a bidirectional LSTM against a bag of words.

The words' vectors begin as what counts of neighbouring words in the training texts of both parts give, without labels:
from random ones a CNN-RNN learns less from 6,530 sentences than a bag of words does. Both networks train them further.
Late fusion adds the bag of words' log-odds to a network's, weighted on validation data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from examples.data import movie_reviews
from examples.data.movie_reviews import PAD, Reviews, Split, Vocabulary, tokenize
from examples.figures import save_figure
from examples.systems.table import Options, Row, Speed
from examples.training import Plan, fit
from hybridops.models import SentimentClassifier, TextClassifier

EMBED_DIM = 100


@dataclass(frozen=True)
class Part:
    """What is trained on and judged by."""

    title: str
    max_tokens: int  # the last of a text, where it comes to its verdict; those before are not read
    multiple: int  # of so many tokens, where a text has more than that
    must: float
    plan: Plan


PARTS = {
    "rotten_tomatoes": Part("Rotten Tomatoes", 60, 1, 0.74, Plan(6, batch_size=50, learning_rate=1e-3, patience=2)),
    "imdb": Part("IMDB", 256, 16, 0.86, Plan(5, batch_size=50, learning_rate=2e-3)),
}

Texts = list[tuple[Tensor, int]]  # numbers of words (T,), label
Batch = tuple[Tensor, Tensor, Tensor]  # numbers (B, T), lengths (B,), labels (B,)


def run(options: Options) -> list[Row]:
    splits = {part: load(part, options.smoke) for part in PARTS}
    words = [tokenize(text) for split in splits.values() for text in split.train.texts]
    vocabulary = Vocabulary(words, max_size=20_000)
    vectors = co_occurrence_vectors(words, vocabulary)
    rows, curves = [], {}
    for name, part in PARTS.items():
        odds_of_words = bag_of_words(splits[name])
        for title, model in models(vocabulary, vectors, options.seed).items():
            plan = Plan(1, batch_size=50) if options.smoke else replace(part.plan, seed=options.seed)
            found, curves[f"{title}, {part.title}"] = judge(
                title, model, vocabulary, part, splits[name], odds_of_words, plan
            )
            rows += found
    with save_figure(options.out / "sentiment_curves.png", rows=1, columns=1, size=6) as axes:
        for title, scores in curves.items():
            axes[0, 0].plot(range(1, 1 + len(scores)), scores, marker="o", label=title)
        axes[0, 0].set(xlabel="epoch", ylabel="accuracy, validation")
        axes[0, 0].legend()
    return rows


def judge(
    title: str,
    model: nn.Module,
    vocabulary: Vocabulary,
    part: Part,
    split: Split,
    odds_of_words: tuple[np.ndarray, np.ndarray],
    plan: Plan,
) -> tuple[list[Row], list[float]]:
    """Train the model: what it reached on the test, and its validation accuracies."""
    train, validation, test = (encode(some, vocabulary, part) for some in (split.train, split.validation, split.test))
    history = fit(
        model, train, loss, lambda model: accuracy(log_odds(model, validation), split.validation), plan,
        collate=collate, sampler=LengthSampler(train, plan.batch_size, plan.seed), title=f"{title}, {part.title}",
    )  # fmt: skip
    bag_validation, bag_test = odds_of_words
    weight = best_weight(log_odds(model, validation), bag_validation, split.validation)
    odds = log_odds(model, test)
    alone, fused, bag = (accuracy(some, split.test) for some in (odds, odds + weight * bag_test, bag_test))
    change, data = largest_change(model, test[:100]), f"{part.title}, {len(test):,} test reviews"
    rows = [
        Row(title, data, "accuracy", alone, bag, f"{part.must}", alone >= part.must, "baseline: bag of words"),
        Row(
            f"{title} + bag of words", data, "accuracy", fused, bag, "the bag of words", fused >= bag,
            f"the bag of words counts {weight:g} times",
        ),
        Row(title, data, "change of logits by 50 tokens of padding", change, None, "0", change == 0.0),
    ]  # fmt: skip
    return rows, history.scores


def speed(options: Options) -> list[Speed]:
    """Nothing in them is fused."""
    return []


def load(part: str, smoke: bool) -> Split:
    if smoke:
        return movie_reviews.load(part, train=300, validation=100, test=100)
    if part == "imdb":
        return movie_reviews.load(part, train=10_000, validation=2_500, test=2_500)
    return movie_reviews.load(part, validation=1_000, test=1_000)


def co_occurrence_vectors(texts: Sequence[Sequence[str]], vocabulary: Vocabulary, window: int = 5) -> Tensor:
    """(V, EMBED_DIM): a factorisation of how much more often than by chance words stand near each other (positive
    pointwise mutual information, Levy, Goldberg & Dagan 2015, https://aclanthology.org/Q15-1016). Zero for PAD.

    A neighbour at distance d counts 1/d; contexts are smoothed by the power 0.75.
    """
    size, gap = len(vocabulary), np.full(window, PAD)  # so that no word neighbours one of another text
    numbers = np.concatenate([np.concatenate([vocabulary.encode(words).numpy(), gap]) for words in texts])
    counts = sparse.csr_matrix((size, size), dtype=np.float32)
    for distance in range(1, window + 1):
        left, right = numbers[:-distance], numbers[distance:]
        words = (left > movie_reviews.UNKNOWN) & (right > movie_reviews.UNKNOWN)
        weights = np.full(words.sum(), 1 / distance, dtype=np.float32)
        counts += sparse.csr_matrix((weights, (left[words], right[words])), shape=(size, size))
    pairs = (counts + counts.T).tocoo()
    word, context = np.bincount(pairs.row, pairs.data, size), np.bincount(pairs.col, pairs.data, size) ** 0.75
    information = np.log(pairs.data * context.sum() / (word[pairs.row] * context[pairs.col]))
    positive = sparse.csr_matrix((information.clip(min=0), (pairs.row, pairs.col)), shape=(size, size))
    left, scale, _ = randomized_svd(positive, EMBED_DIM, n_iter=3, random_state=0)
    vectors = left * np.sqrt(scale)
    return torch.from_numpy(vectors / vectors.std()).float()


def models(vocabulary: Vocabulary, vectors: Tensor, seed: int) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    found: dict[str, nn.Module] = {
        "CNN-RNN": TextClassifier(len(vocabulary), EMBED_DIM, 2, 64, 2, dropout=0.5),
        "BiLSTM": SentimentClassifier(len(vocabulary), EMBED_DIM, 64, 2, 1, dropout=0.5),
    }
    for model in found.values():
        model.embedding.weight.data.copy_(0.3 * vectors)  # gates saturate where words are as large as 1
    return found


def encode(reviews: Reviews, vocabulary: Vocabulary, part: Part) -> Texts:
    texts = []
    for text, label in zip(reviews.texts, reviews.labels.tolist(), strict=True):
        words = tokenize(text)[-part.max_tokens :]
        if len(words) > part.multiple:
            words = words[len(words) % part.multiple :]
        texts.append((vocabulary.encode(words), label))
    return texts


class LengthSampler(Sampler[int]):
    """A random order in which batches of `batch_size` have texts of one length, as far as there are enough of it: no
    padding is computed on. Another order in each epoch, the same for the same seed: see `set_epoch`.
    """

    def __init__(self, texts: Texts, batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor([len(numbers) for numbers, _ in texts])
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        *batches, last = order[self.lengths[order].argsort(stable=True)].split(self.batch_size)
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[batch].tolist()
        yield from last.tolist()  # which may be smaller, so that the others stay whole


def collate(texts: Texts) -> Batch:
    numbers, labels = zip(*texts, strict=True)
    lengths = torch.tensor([len(row) for row in numbers])
    return pad_sequence(numbers, batch_first=True, padding_value=PAD), lengths, torch.tensor(labels)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    numbers, lengths, labels = batch
    return F.cross_entropy(model(numbers, lengths), labels)


@torch.no_grad()
def log_odds(model: nn.Module, texts: Texts) -> np.ndarray:
    """log p(good) - log p(bad), (N,). Texts of like length go together, which leaves little padding to compute on."""
    odds = np.zeros(len(texts))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
    for start in range(0, len(order), 100):
        index = order[start : start + 100]
        numbers, lengths, _ = collate([texts[i] for i in index])
        logits = model(numbers, lengths)
        odds[index] = (logits[:, 1] - logits[:, 0]).numpy()
    return odds


def bag_of_words(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of validation and test reviews, by logistic regression on which words are in them."""
    vectorizer = TfidfVectorizer(tokenizer=tokenize, token_pattern=None, min_df=2, sublinear_tf=True)
    classifier = LogisticRegression(C=4.0, max_iter=1000)
    classifier.fit(vectorizer.fit_transform(split.train.texts), split.train.labels.numpy())
    return tuple(
        classifier.decision_function(vectorizer.transform(some.texts)) for some in (split.validation, split.test)
    )


def best_weight(odds: np.ndarray, bag_odds: np.ndarray, reviews: Reviews) -> float:
    """Of the bag of words, by accuracy on `reviews`."""
    return max((0.25, 0.5, 1.0, 2.0, 4.0), key=lambda weight: accuracy(odds + weight * bag_odds, reviews))


def accuracy(odds: np.ndarray, reviews: Reviews) -> float:
    return float(np.mean((odds > 0) == (reviews.labels.numpy() == 1)))


@torch.no_grad()
def largest_change(model: nn.Module, texts: Texts) -> float:
    """Of the logits, where 50 words more stand behind the end of the longest of these texts."""
    numbers, lengths, _ = collate(texts)
    longer = F.pad(numbers, (0, 50), value=PAD + 2)
    return (model(numbers, lengths) - model(longer, lengths)).abs().max().item()
