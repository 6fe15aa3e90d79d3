"""The attention decoder's workloads: a sentence for each memory, given (teacher forcing) or searched for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import hybridops
from benchmarks.environment import Place, compiled_function
from hybridops import reference
from hybridops.reference.attention_decoder import AttentionDecoder

BEAMS = 5


@dataclass(frozen=True)
class AttentionDecoderWorkload:
    """Sentences of so many steps over a memory (batch, positions, memory_dim), an LSTM.

    Training and inference are of given inputs (batch, steps, input_dim). Greedy and beam search embed the word before,
    and score a vocabulary; the beams of a sentence share its memory. Beside the plain module and the fused ones:

        compiled    the plain module, whose step is compiled
        attention   the plain module's loop on the fused attention
        lstm        no attention: `nn.LSTM` of the same input, the memory's mean in place of the contexts: a floor
    """

    name: str
    batch: int
    positions: int
    steps: int
    memory_dim: int
    attn_dim: int
    hidden_dim: int
    input_dim: int
    vocabulary: int = 10_000
    location: str | None = None  # as in AttentionDecoder; what it takes is not counted
    dtype: torch.dtype = torch.float32
    tasks: tuple[str, ...] = ("inference", "training", "greedy", "beam")

    family: ClassVar[str] = "attention_decoder"
    unit: ClassVar[str] = "GFLOP/s"

    def operations(self, task: str) -> float:
        """Of the products, in training with their gradients; not of the scores, which `multiply_adds` counts."""
        return 2 * self._terms(task)

    def multiply_adds(self, task: str) -> float:
        """The fewest that do it: those of the products, and of the scores as AdditiveAttentionWorkload counts them."""
        rows = self._rows(task)
        per_pair = 14 / 4 + (15 / 2 if task == "training" else 0)
        return self._terms(task) + per_pair * rows * self.positions * self.attn_dim

    def _terms(self, task: str) -> float:
        rows, widths = self._rows(task), self.input_dim + self.memory_dim + self.hidden_dim
        step = 4 * self.hidden_dim * widths + self.hidden_dim * self.attn_dim + self.positions * self.memory_dim
        if self.searches(task):
            step += self.hidden_dim * self.vocabulary
        terms = rows * step + self.batch * self.positions * self.memory_dim * self.attn_dim
        return 3 * terms if task == "training" else terms

    def _rows(self, task: str) -> int:
        """Of all steps; a beam search begins with one for a sentence."""
        return self.batch * (1 + (self.steps - 1) * BEAMS if task == "beam" else self.steps)

    def searches(self, task: str) -> bool:
        return task in ("greedy", "beam")

    def to_check(self) -> AttentionDecoderWorkload:
        """The same code runs for three steps as for more, in less time."""
        return replace(self, steps=min(self.steps, 3))

    def inputs(self, task: str) -> tuple[Tensor, ...]:
        memory = torch.randn(self.batch, self.positions, self.memory_dim)
        if self.searches(task):  # as many words as there are steps
            return memory, torch.zeros(self.steps)
        return torch.randn(self.batch, self.steps, self.input_dim), memory

    def output_shape(self, task: str) -> tuple[int, ...]:
        return self.batch, self.steps, self.hidden_dim

    def function(self, task: str, variant: str, place: Place) -> Callable[..., Tensor]:
        if variant == "lstm":
            return MeanMemoryLSTM(self.input_dim, self.memory_dim, self.hidden_dim).to(**place)
        decoder = self.module(variant).to(**place)
        if not self.searches(task):
            return decoder
        torch.manual_seed(1)
        embedding = nn.Embedding(self.vocabulary, self.input_dim).to(**place)
        vocabulary = nn.Linear(self.hidden_dim, self.vocabulary).to(**place)
        search = greedy_search if task == "greedy" else beam_search
        return lambda memory, steps: search(decoder, embedding, vocabulary, memory, len(steps))

    def module(self, variant: str) -> nn.Module:
        sizes = (self.input_dim, self.hidden_dim, self.memory_dim, self.attn_dim)
        if variant not in ("eager", "compiled", "attention"):
            return hybridops.FusedAttentionDecoder(*sizes, location=self.location, backend=variant)
        module = reference.AttentionDecoder(*sizes, location=self.location)
        if variant == "compiled":
            module._step = compiled_function(module._step)
        if variant == "attention":
            hybridops.fuse(module.attention)
        return module


class MeanMemoryLSTM(nn.Module):
    def __init__(self, input_dim: int, memory_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_dim + memory_dim, hidden_dim, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        context = memory.mean(1, keepdim=True).expand(-1, x.shape[1], -1)
        return self.lstm(torch.cat([x, context], 2))[0]


def greedy_search(
    decoder: AttentionDecoder, embedding: nn.Module, vocabulary: nn.Module, memory: Tensor, steps: int
) -> Tensor:
    """The likeliest word at each step; their logits (B, S)."""
    state, found = decoder.start(memory, vocabulary=vocabulary), []
    words = torch.zeros(len(memory), dtype=torch.int64, device=memory.device)
    for _ in range(steps):
        output, _, _, state = decoder.step(embedding(words), state)
        best, words = state.logits(output).max(1)
        found.append(best)
    return torch.stack(found, 1)


def beam_search(
    decoder: AttentionDecoder, embedding: nn.Module, vocabulary: nn.Module, memory: Tensor, steps: int
) -> Tensor:
    """The log-probabilities of the likeliest sentences (B, BEAMS)."""
    batch = len(memory)
    first = torch.arange(batch, device=memory.device)[:, None]
    words = torch.zeros(batch, dtype=torch.int64, device=memory.device)
    output, _, _, state = decoder.step(embedding(words), decoder.start(memory, vocabulary=vocabulary))
    scores, words = state.likeliest(output, BEAMS)
    state = state.reorder(first.repeat_interleave(BEAMS))
    for _ in range(steps - 1):
        output, _, _, state = decoder.step(embedding(words.flatten()), state)
        found, likely = (each.unflatten(0, (batch, BEAMS)) for each in state.likeliest(output, BEAMS))
        scores, best = (scores[..., None] + found).flatten(1).topk(BEAMS)
        words = likely.flatten(1).gather(1, best)
        state = state.reorder((first * BEAMS + best // BEAMS).flatten())
    return scores


BFLOAT16: dict[str, Any] = {"dtype": torch.bfloat16, "tasks": ("inference", "training")}
WORKLOADS = (  # batch, positions, steps; memory, attention, hidden, input
    AttentionDecoderWorkload("captioning", 32, 196, 20, 512, 512, 512, 512),
    AttentionDecoderWorkload("captioning_resnet", 32, 196, 20, 2048, 512, 512, 512),
    AttentionDecoderWorkload("translation", 32, 50, 50, 1024, 512, 512, 512),
    AttentionDecoderWorkload("tacotron", 16, 120, 200, 512, 128, 1024, 256, location="convolution"),
    AttentionDecoderWorkload("toy", 64, 49, 12, 128, 128, 128, 128),
    # no searches: of two words that are all but equally likely, rounding would pick one, and another sentence
    AttentionDecoderWorkload("captioning_bfloat16", 32, 196, 20, 512, 512, 512, 512, **BFLOAT16),
    AttentionDecoderWorkload("translation_bfloat16", 32, 50, 50, 1024, 512, 512, 512, **BFLOAT16),
)
SMOKE_WORKLOADS = (AttentionDecoderWorkload("tiny", 2, 7, 3, 16, 32, 8, 12, vocabulary=20),)
