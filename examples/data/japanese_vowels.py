"""Nine men who say the two Japanese vowels /ae/: 640 utterances, 12 LPC cepstrum coefficients in 7 to 29 frames each
(Kudo, Toyama & Shimbo 1999, https://doi.org/10.24432/C5NS47, CC BY 4.0), as the package `aeon` brings them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Utterances:
    frames: Tensor  # float32 (N, 29, 12), zeros behind the end
    lengths: Tensor  # int64 (N,)
    speakers: Tensor  # int64 (N,), 0 to 8

    def take(self, index: Tensor) -> Utterances:
        return Utterances(self.frames[index], self.lengths[index], self.speakers[index])


def load() -> tuple[Utterances, Utterances, Utterances]:
    """Training, validation and test part: 24 and 6 of each man of the source's training part, and its test part of 370.
    Coefficients are scaled by the training part's mean and deviation.
    """
    known, test = _read("TRAIN"), _read("TEST")
    rank = torch.cat([torch.arange(int(count)) for count in known.speakers.bincount()])
    order = known.speakers.argsort(stable=True)
    train, validation = known.take(order[rank < 24]), known.take(order[rank >= 24])
    there = train.frames[_mask(train)]
    mean, deviation = there.mean(0), there.std(0)

    def scaled(part: Utterances) -> Utterances:
        frames = ((part.frames - mean) / deviation).masked_fill(~_mask(part)[..., None], 0.0)
        return Utterances(frames, part.lengths, part.speakers)

    return scaled(train), scaled(validation), scaled(test)


def _mask(part: Utterances) -> Tensor:
    return torch.arange(part.frames.shape[1]) < part.lengths[:, None]


def _read(split: str) -> Utterances:
    package = importlib.util.find_spec("aeon")  # its file is read, the package is not imported: that asks for numba
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the Japanese vowels come with a package: pip install aeon")
    path = Path(package.origin).parent / "datasets" / "data" / "JapaneseVowels" / f"JapaneseVowels_{split}.ts"
    rows, speakers = [], []
    for line in path.read_text().lower().partition("@data\n")[2].splitlines():
        *channels, speaker = line.split(":")
        rows.append(torch.tensor([[float(value) for value in channel.split(",")] for channel in channels]).T)
        speakers.append(int(speaker) - 1)
    lengths = torch.tensor([len(row) for row in rows])
    longest = torch.zeros(29, 12)  # one more row, so that both parts are padded to the same length
    frames = pad_sequence([*rows, longest], batch_first=True)[:-1]
    return Utterances(frames, lengths, torch.tensor(speakers))
