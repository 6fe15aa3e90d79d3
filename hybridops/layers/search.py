"""Search for the words of a sentence, one step at a time, over any decoder of words and its state.

A decoder is a `TokenDecoder` of `layers.decoding`, what `token_step` gives, or a function of one step:

    step(tokens (R,), state) -> logits (R, V), weights (R, T) or None, the state after the step
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hybridops.checks import check_number, check_positive_int, check_shape
from hybridops.layers.decoding import SearchState
from hybridops.reference.attention_decoder import AttentionDecoder, DecoderState, likeliest

S = TypeVar("S", bound=SearchState)
Step = Callable[[Tensor, S], tuple[Tensor, "Tensor | None", S]]


class Steps(Protocol[S]):
    """A decoder of words: `layers.decoding` says what each gives."""

    def step(self, tokens: Tensor, state: S) -> tuple[Tensor, Tensor | None, S]: ...
    def likeliest(self, tokens: Tensor, state: S, count: int) -> tuple[Tensor, Tensor, Tensor | None, S]: ...


@dataclass(frozen=True)
class StepsOfFunction(Generic[S]):
    """Of one that gives logits."""

    step: Step[S]

    def likeliest(self, tokens: Tensor, state: S, count: int) -> tuple[Tensor, Tensor, Tensor | None, S]:
        logits, weights, state = self.step(tokens, state)
        return *likeliest(logits, count), weights, state


def steps_of(decoder: Steps[S] | Step[S]) -> Steps[S]:
    return StepsOfFunction(decoder) if not hasattr(decoder, "likeliest") else decoder  # type: ignore[return-value]


class Hypotheses(NamedTuple):
    """Sentences that were found, (B,) of them, of a beam search (B, K), the best first."""

    tokens: Tensor  # (..., L), the end token included if it came, then `end` again
    lengths: Tensor  # (...) int64, the end token included
    scores: Tensor  # (...) log-probability, of a beam search divided by length ** length_penalty
    weights: Tensor | None  # (..., L, T) of the attention, zeros behind the end

    def best(self) -> Hypotheses:
        """Of a beam search: the first of each, (B,)."""
        weights = None if self.weights is None else self.weights[:, 0]
        return Hypotheses(self.tokens[:, 0], self.lengths[:, 0], self.scores[:, 0], weights)


def token_step(decoder: AttentionDecoder, embedding: nn.Module) -> Steps[DecoderState]:
    """A decoder of words of a `FusedAttentionDecoder`, whose state is to be started with a vocabulary."""
    return StepsOfEmbedded(decoder, embedding)


@dataclass(frozen=True)
class StepsOfEmbedded:
    decoder: AttentionDecoder
    embedding: nn.Module

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, Tensor | None, DecoderState]:
        output, _, weights, state = self.decoder.step(self.embedding(tokens), state)
        return state.logits(output), weights, state

    def likeliest(
        self, tokens: Tensor, state: DecoderState, count: int
    ) -> tuple[Tensor, Tensor, Tensor | None, DecoderState]:
        output, _, weights, state = self.decoder.step(self.embedding(tokens), state)
        return *state.likeliest(output, count), weights, state


def search_best(
    decoder: Steps[S] | Step[S],
    state: S,
    start: Tensor,
    *,
    end: int,
    max_length: int,
    beam_size: int = 1,
    length_penalty: float = 1.0,
    need_weights: bool = False,
) -> Hypotheses:
    """The best sentence of each entry: by `greedy_search`, or by `beam_search` where beam_size > 1."""
    if check_positive_int("beam_size", beam_size) == 1:
        return greedy_search(decoder, state, start, end=end, max_length=max_length, need_weights=need_weights)
    return beam_search(
        decoder, state, start, end=end, max_length=max_length, beam_size=beam_size, length_penalty=length_penalty,
        need_weights=need_weights,
    ).best()  # fmt: skip


@torch.no_grad()
def greedy_search(
    decoder: Steps[S] | Step[S], state: S, start: Tensor, *, end: int, max_length: int, need_weights: bool = False
) -> Hypotheses:
    """The likeliest word at each step.

    Args:
        decoder: a `TokenDecoder`, or one of the others that this module begins with.
        state: what its `start` gave.
        start: int64 (B,), the word that each sentence begins with; it is not part of the result.
        end: the word that ends a sentence.
        max_length: steps, then sentences end as they are.
        need_weights: whether the attention's weights are kept.
    """
    steps = steps_of(decoder)

    def likeliest_word(tokens: Tensor, state: S) -> tuple[Tensor, Tensor, Tensor | None, S]:
        log_p, words, weights, state = steps.likeliest(tokens, state, 1)
        return words.squeeze(1), log_p.squeeze(1), weights, state

    return _follow(likeliest_word, state, start, end, max_length, need_weights)


@torch.no_grad()
def sample(
    decoder: Steps[S] | Step[S],
    state: S,
    start: Tensor,
    *,
    end: int,
    max_length: int,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    need_weights: bool = False,
) -> Hypotheses:
    """Words drawn from softmax(logits / temperature), of the `top_k` likeliest alone if given.

    Gives sentences (num_samples·B,), the num_samples of an entry next to each other; scores are log-probabilities of
    what was drawn from, temperature 1 and all words.

    Args: as in `greedy_search`.
    """
    check_positive_int("num_samples", num_samples)
    check_number("temperature", temperature, 1e-6)
    if top_k is not None:
        check_positive_int("top_k", top_k)

    steps = steps_of(decoder)

    def draw(tokens: Tensor, state: S) -> tuple[Tensor, Tensor, Tensor | None, S]:
        logits, weights, state = steps.step(tokens, state)
        log_p = logits.float().log_softmax(1)
        scores = log_p / temperature
        if top_k is not None and top_k < scores.shape[1]:
            scores = scores.masked_fill(scores < scores.topk(top_k, 1).values[:, -1:], -torch.inf)
        word = torch.multinomial(scores.softmax(1), 1, generator=generator)
        return word.squeeze(1), log_p.gather(1, word).squeeze(1), weights, state

    if num_samples > 1:
        index = torch.arange(len(start), device=start.device).repeat_interleave(num_samples)
        state, start = state.reorder(index), start[index]
    return _follow(draw, state, start, end, max_length, need_weights, rows=num_samples)


def _follow(
    next_word: Callable[[Tensor, S], tuple[Tensor, Tensor, Tensor | None, S]],
    state: S,
    start: Tensor,
    end: int,
    max_length: int,
    need_weights: bool,
    rows: int = 1,
) -> Hypotheses:
    """One word after the other. next_word(tokens (R,), state) -> the next ones (R,), their log-probabilities (R,),
    weights, the state after the step; `rows` of the state an entry.
    """
    check_shape("start", start, ("B",))
    check_positive_int("max_length", max_length)
    count, device = len(start), start.device
    tokens = start.new_full((count, max_length), end)
    lengths = torch.full_like(start, max_length)
    scores = torch.zeros(count, device=device)
    all_weights: Tensor | None = None
    going = torch.arange(count, device=device)  # rows of the result that the state still has
    ended = torch.zeros(count, dtype=torch.bool, device=device)  # of those
    before = start
    for position in range(max_length if count else 0):
        word, log_p, weights, state = next_word(before, state)
        word = torch.where(ended, end, word)
        tokens[going, position] = word
        scores[going] += torch.where(ended, 0.0, log_p.float())
        if need_weights and weights is not None:
            if all_weights is None:
                all_weights = weights.new_zeros(count, max_length, weights.shape[1])
            all_weights[going, position] = torch.where(ended[:, None], 0.0, weights)
        ends_here = ~ended & (word == end)
        lengths[going] = torch.where(ends_here, position + 1, lengths[going])
        ended = ended | ends_here
        entries = (~ended.view(-1, rows)).any(1)  # that still have a sentence to end
        left = int(entries.sum())
        if left == 0:
            break
        if 2 * left <= len(entries):  # taking the others away copies what is kept, so not at each one
            kept = entries.nonzero().squeeze(1)
            state = state.select(kept)
            going, ended, word = (t.view(-1, rows)[kept].flatten() for t in (going, ended, word))
        before = word
    longest = int(lengths.max()) if count else 0
    all_weights = None if all_weights is None else all_weights[:, :longest]
    return Hypotheses(tokens[:, :longest], lengths, scores, all_weights)


@torch.no_grad()
def beam_search(
    decoder: Steps[S] | Step[S],
    state: S,
    start: Tensor,
    *,
    end: int,
    max_length: int,
    beam_size: int = 5,
    length_penalty: float = 1.0,
    need_weights: bool = False,
) -> Hypotheses:
    """The `beam_size` best sentences, by log p / length ** length_penalty, that a beam of as many finds.

    At each step the best `beam_size` unfinished ones of all continuations go on; one that ends joins those that ended
    if it is among the best 2·beam_size continuations. The search stops when nothing that goes on could still be better
    than those that ended, or at `max_length`: what has not ended then is given behind all that did.

    Gives sentences (B, beam_size); where there are fewer, the rest have length 0 and score -inf.

    Args:
        decoder, state, start, end, max_length, need_weights: as in `greedy_search`.
        length_penalty: 0 compares log-probabilities, which favours short sentences; 1 their mean over the words.
    """
    check_shape("start", start, ("B",))
    check_positive_int("max_length", max_length)
    check_number("length_penalty", length_penalty, 0.0)
    k, batch = check_positive_int("beam_size", beam_size), len(start)
    if batch == 0:
        nothing = start.new_zeros(0, k)
        return Hypotheses(start.new_zeros(0, k, 0), nothing, nothing.float(), None)
    first = torch.arange(batch, device=start.device)[:, None]
    state = state.reorder(first.repeat_interleave(k))
    live = _Beams.start(batch, k, max_length, end, start.device)
    live.scores[:, 1:] = -torch.inf  # all k are the same sentence until the first word
    done = _Beams.start(batch, k, max_length, end, start.device)
    done.scores.fill_(-torch.inf)
    words, steps = start.repeat_interleave(k), steps_of(decoder)
    for position in range(max_length):
        log_p, likely, weights, state = steps.likeliest(words, state, 2 * k)  # none behind them is among the best 2k
        if not need_weights:
            weights = None
        each = log_p.shape[1]
        candidates = (live.scores[..., None] + log_p.float().unflatten(0, (batch, k))).flatten(1)
        scores, best = candidates.topk(min(2 * k, k * each), 1)  # half of them may end
        parent, word = best // each, likely.unflatten(0, (batch, k)).flatten(1).gather(1, best)
        grown = live.grow(parent, word, scores, position, weights)
        ends = word == end
        finished = grown.with_scores(torch.where(ends, scores / (position + 1) ** length_penalty, -torch.inf))
        done = _Beams.best_of(done, finished, k)
        live, chosen = grown.with_scores(torch.where(ends, -torch.inf, scores)).best(k)
        state = state.reorder((first * k + parent.gather(1, chosen)).flatten())
        words = word.gather(1, chosen).flatten()
        # log p only falls, and no sentence becomes longer than max_length
        could_reach = live.scores[:, 0] / max_length**length_penalty
        if bool((done.scores[:, -1] >= could_reach).all()):
            break
    # behind those that ended, those that did not
    rest = live.with_scores(live.scores / max(position + 1, 1) ** length_penalty)
    ended = torch.isfinite(done.scores)
    places = torch.arange(k, device=start.device) - ended.sum(1, keepdim=True)
    fill = places.clamp(min=0)
    found = done.where(ended, rest.take(fill))
    lengths = torch.where(torch.isfinite(found.scores), found.lengths, 0)
    longest = int(lengths.max())
    kept = None if found.weights is None else found.weights[:, :, :longest]
    return Hypotheses(found.tokens[:, :, :longest], lengths, found.scores, kept)


class _Beams(NamedTuple):
    """(B, N) sentences."""

    tokens: Tensor  # (B, N, max_length)
    lengths: Tensor  # (B, N)
    scores: Tensor  # (B, N)
    weights: Tensor | None  # (B, N, max_length, T)

    @staticmethod
    def start(batch: int, count: int, max_length: int, end: int, device: torch.device) -> _Beams:
        tokens = torch.full((batch, count, max_length), end, device=device)
        lengths = torch.zeros(batch, count, dtype=torch.int64, device=device)
        return _Beams(tokens, lengths, torch.zeros(batch, count, device=device), None)

    def with_scores(self, scores: Tensor) -> _Beams:
        return self._replace(scores=scores)

    def take(self, index: Tensor) -> _Beams:
        """Those at `index` (B, M)."""
        row = torch.arange(len(index), device=index.device)[:, None]
        weights = None if self.weights is None else self.weights[row, index]
        return _Beams(self.tokens[row, index], self.lengths[row, index], self.scores[row, index], weights)

    def best(self, count: int) -> tuple[_Beams, Tensor]:
        index = self.scores.topk(count, 1).indices
        return self.take(index), index

    def grow(self, parent: Tensor, word: Tensor, scores: Tensor, position: int, weights: Tensor | None) -> _Beams:
        """The sentences at `parent`, each with one more word."""
        batch, count, steps = self.tokens.shape
        known = self
        if weights is not None and self.weights is None:
            known = self._replace(weights=weights.new_zeros(batch, count, steps, weights.shape[1]))
        grown = known.take(parent)
        grown.tokens[:, :, position] = word
        grown.lengths.fill_(position + 1)
        if weights is not None and grown.weights is not None:
            row = torch.arange(batch, device=parent.device)[:, None]
            grown.weights[:, :, position] = weights.unflatten(0, (batch, count))[row, parent]
        return grown.with_scores(scores)

    @staticmethod
    def best_of(a: _Beams, b: _Beams, count: int) -> _Beams:
        if a.weights is None and b.weights is not None:
            a = a._replace(weights=b.weights.new_zeros(*a.tokens.shape, b.weights.shape[3]))
        return a.combine(b, lambda x, y: torch.cat([x, y], 1)).best(count)[0]

    def where(self, condition: Tensor, other: _Beams) -> _Beams:
        """Those of self where the condition (B, N) is true, else other's."""
        return self.combine(
            other, lambda x, y: torch.where(condition.view(*condition.shape, *(1,) * (x.dim() - 2)), x, y)
        )

    def combine(self, other: _Beams, f: Callable[[Tensor, Tensor], Tensor]) -> _Beams:
        weights = None if self.weights is None or other.weights is None else f(self.weights, other.weights)
        return _Beams(
            f(self.tokens, other.tokens), f(self.lengths, other.lengths), f(self.scores, other.scores), weights
        )
