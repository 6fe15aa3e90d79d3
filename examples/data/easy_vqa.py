"""easy-VQA: 5,000 drawn images of one shape each, 48,248 questions about them, 13 answers (Victor Zhou 2019,
https://github.com/vzhou842/easy-VQA). The package `easy-vqa` has it all, and states no licence: read, not passed on.

    "what color is the circle?"   "is there not a red shape in the image?"   "does the image contain a rectangle?"
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PAD = 0
VALIDATION_IMAGES = 400  # of the 4,000 of the training part


@dataclass(frozen=True)
class Questions:
    """Of one part of the data, ordered by image."""

    images: Tensor  # uint8 (N, 3, 64, 64)
    words: Tensor  # int64 (M, T), PAD at the end
    lengths: Tensor  # int64 (M,)
    image_index: Tensor  # int64 (M,)
    answers: Tensor  # int64 (M,)

    def about(self, images: Sequence[int] | Tensor) -> Questions:
        """Those about the images of these numbers, which are numbered anew."""
        images = torch.as_tensor(images)
        place = torch.full((len(self.images),), -1)
        place[images] = torch.arange(len(images))
        index = place[self.image_index]
        kept = (index >= 0).nonzero().flatten()
        kept = kept[index[kept].argsort(stable=True)]
        return Questions(self.images[images], self.words[kept], self.lengths[kept], index[kept], self.answers[kept])


@dataclass(frozen=True)
class EasyVQA:
    train: Questions
    validation: Questions
    test: Questions
    vocabulary: list[str]  # vocabulary[PAD] is ""
    answers: list[str]

    def spell(self, words: Tensor) -> str:
        return " ".join(self.vocabulary[number] for number in words.tolist() if number != PAD) + "?"


def load() -> EasyVQA:
    """All of it, read once (3 s) and kept in $HYBRIDOPS_CACHE or ~/.cache/hybridops. The package's test part is the
    test part here; the last 400 images of its training part are for validation.
    """
    path = Path(os.environ.get("HYBRIDOPS_CACHE", "~/.cache/hybridops")).expanduser() / "easy_vqa.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        torch.save(_read(), unfinished)
        unfinished.replace(path)  # at once: another process may be at it too
    parts, vocabulary, answers = torch.load(path)
    train, test = (Questions(**part) for part in parts)
    images = torch.arange(len(train.images))
    return EasyVQA(
        train.about(images[:-VALIDATION_IMAGES]), train.about(images[-VALIDATION_IMAGES:]), test, vocabulary, answers
    )


def _read() -> tuple[list[dict[str, Tensor]], list[str], list[str]]:
    if importlib.util.find_spec("easy_vqa") is None:
        raise ModuleNotFoundError("easy-VQA's images and questions are a package: pip install easy-vqa")
    import easy_vqa

    answers = sorted(easy_vqa.get_answers())
    train = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    test = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    vocabulary = ["", *sorted({word for question in train[0][0] for word in _split(question)})]
    return [_part(*part, vocabulary, answers) for part in (train, test)], vocabulary, answers


def _part(
    asked: tuple[list[str], list[str], list[int]], paths: dict[int, str], vocabulary: list[str], answers: list[str]
) -> dict[str, Tensor]:
    numbers = {word: number for number, word in enumerate(vocabulary)}
    rows = [torch.tensor([numbers[word] for word in _split(question)]) for question in asked[0]]
    place = {image: number for number, image in enumerate(sorted(paths))}
    index = torch.tensor([place[image] for image in asked[2]])
    order = index.argsort(stable=True)
    pixels = [np.asarray(Image.open(paths[image]).convert("RGB")) for image in sorted(paths)]
    return {
        "images": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
        "words": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)[order],
        "lengths": torch.tensor([len(row) for row in rows])[order],
        "image_index": index[order],
        "answers": torch.tensor([answers.index(answer) for answer in asked[1]])[order],
    }


def _split(question: str) -> list[str]:
    return question.rstrip("?").split()
