"""Searches, over decoders and over tables of probabilities in which the best sentence is known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from hybridops import FusedAttentionDecoder
from hybridops.layers import (
    AttentionTokenDecoder,
    Memory,
    RecurrentTokenDecoder,
    beam_search,
    greedy_search,
    sample,
    search_best,
    token_step,
)

VOCABULARY, END, LIMIT = 6, 2, 4
DECODERS = {
    "attention": lambda: AttentionTokenDecoder(VOCABULARY, 4, 8, 5, 7),
    "gru": lambda: AttentionTokenDecoder(VOCABULARY, 4, 8, 5, 7, cell="gru", query="current", context_gate=True),
    "initial": lambda: RecurrentTokenDecoder(VOCABULARY, 4, 8, 5, num_layers=2),
    "first": lambda: RecurrentTokenDecoder(VOCABULARY, 4, 8, 5, pooled_at="first", cell="gru"),
    "every": lambda: RecurrentTokenDecoder(VOCABULARY, 4, 8, 5, pooled_at="every"),
}


@pytest.fixture(params=DECODERS)
def decoder(request) -> nn.Module:
    torch.manual_seed(3)
    decoder = DECODERS[request.param]().double().eval()
    for parameter in decoder.parameters():
        parameter.data.mul_(3)  # opinions
    return decoder


@pytest.fixture
def memory() -> Memory:
    torch.manual_seed(4)
    mask = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    return Memory(torch.randn(3, 6, 5).double(), mask, torch.randn(3, 5).double())


def start(rows: int) -> Tensor:
    return torch.ones(rows, dtype=torch.int64)


def log_probability(decoder: nn.Module, memory: Memory, row: int, words: list[int]) -> float:
    alone = Memory(memory.values[row : row + 1], memory.mask[row : row + 1], memory.pooled[row : row + 1])
    logits, _ = decoder(torch.tensor([[1, *words[:-1]]]), alone)
    return logits[0].log_softmax(1).gather(1, torch.tensor(words)[:, None]).sum().item()


def sentences() -> list[list[int]]:
    """All that end within LIMIT words."""
    others = [word for word in range(VOCABULARY) if word != END]
    return [[*words, END] for length in range(LIMIT) for words in itertools.product(others, repeat=length)]


@torch.no_grad()
def test_steps_are_the_forward_one_word_at_a_time(decoder, memory):
    tokens = torch.randint(VOCABULARY, (3, 5))
    logits, weights = decoder(tokens, memory, need_weights=True)
    state = decoder.start(memory)
    for s in range(5):
        found, weight, state = decoder.step(tokens[:, s], state)
        torch.testing.assert_close(found, logits[:, s])
        if weights is not None:
            torch.testing.assert_close(weight, weights[:, s])


@torch.no_grad()
def test_greedy(decoder, memory):
    found = greedy_search(decoder.step, decoder.start(memory), start(3), end=END, max_length=LIMIT)
    for row in range(3):
        words: list[int] = []
        while len(words) < LIMIT and END not in words:
            alone = Memory(memory.values[row : row + 1], memory.mask[row : row + 1], memory.pooled[row : row + 1])
            words.append(decoder(torch.tensor([[1, *words]]), alone)[0][0, -1].argmax().item())
        assert found.tokens[row].tolist() == words + [END] * (found.tokens.shape[1] - len(words))
        assert found.lengths[row] == len(words)
        assert found.scores[row].item() == pytest.approx(log_probability(decoder, memory, row, words), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_a_wide_beam_finds_the_best_of_all_sentences(decoder, memory, penalty):
    found = beam_search(
        decoder.step, decoder.start(memory), start(3), end=END, max_length=LIMIT, beam_size=300, length_penalty=penalty
    )
    for row in range(3):
        scores = {
            tuple(words): log_probability(decoder, memory, row, words) / len(words) ** penalty for words in sentences()
        }
        ranked = sorted(scores, key=scores.get, reverse=True)
        for place in range(20):
            words = found.tokens[row, place, : found.lengths[row, place]].tolist()
            assert found.scores[row, place].item() == pytest.approx(scores[ranked[place]], rel=1e-4)
            assert scores[tuple(words)] == pytest.approx(scores[ranked[place]], rel=1e-4)


@torch.no_grad()
def test_samples_come_as_often_as_they_should(decoder, memory):
    rows, count = 3, 4000
    generator = torch.Generator().manual_seed(0)
    found = sample(
        decoder.step, decoder.start(memory), start(rows), end=END, max_length=2, num_samples=count, generator=generator
    )
    assert found.tokens.shape[0] == rows * count
    logits, _ = decoder(start(rows)[:, None], memory)
    for row, want in enumerate(logits[:, 0].softmax(1)):
        mine = slice(row * count, (row + 1) * count)
        often = torch.bincount(found.tokens[mine, 0], minlength=VOCABULARY) / count
        torch.testing.assert_close(often.double(), want, atol=4 * 0.5 / count**0.5, rtol=0)
    for index in (0, count, 2 * count + 1):
        words = found.tokens[index, : found.lengths[index]].tolist()
        want = log_probability(decoder, memory, index // count, words)
        assert found.scores[index].item() == pytest.approx(want, rel=1e-4)


@torch.no_grad()
def test_the_coldest_samples_are_greedy(decoder, memory):
    greedy = greedy_search(decoder.step, decoder.start(memory), start(3), end=END, max_length=LIMIT)
    for options in {"temperature": 1e-4}, {"top_k": 1}:
        found = sample(decoder.step, decoder.start(memory), start(3), end=END, max_length=LIMIT, **options)
        assert torch.equal(found.tokens, greedy.tokens)


@torch.no_grad()
@pytest.mark.parametrize("beam_size", [1, 3])
def test_weights_are_those_of_the_sentence(memory, beam_size):
    torch.manual_seed(0)
    decoder = DECODERS["attention"]().double().eval()
    options = {"end": END, "max_length": LIMIT, "beam_size": beam_size}
    assert search_best(decoder.step, decoder.start(memory), start(3), **options).weights is None
    found = search_best(decoder.step, decoder.start(memory), start(3), **options, need_weights=True)
    for row in range(3):
        length = found.lengths[row]
        alone = Memory(memory.values[row : row + 1], memory.mask[row : row + 1], memory.pooled[row : row + 1])
        before = torch.cat([start(1), found.tokens[row, : length - 1]])[None]
        _, weights = decoder(before, alone, need_weights=True)
        torch.testing.assert_close(found.weights[row, :length], weights[0])
        assert found.weights[row, length:].eq(0).all()


# ----------------------------------------------------------------------------------------------- a table of words


@dataclass(frozen=True)
class Chain:
    """A Markov chain as a decoder: its state is the rows there are."""

    rows: Tensor

    def reorder(self, index: Tensor) -> Chain:
        return Chain(self.rows[index])

    select = reorder


def chain_step(table: Tensor):
    """The next word's probabilities depend on the word before alone."""

    def step(tokens: Tensor, state: Chain) -> tuple[Tensor, None, Chain]:
        assert len(tokens) == len(state.rows)
        return table[tokens].log(), None, state

    return step


def test_beam_finds_what_greedy_misses():
    table = torch.full((5, 5), 1e-9)
    table[1, 3], table[1, 4] = 0.6, 0.4  # word 3 looks better at first ...
    table[3, 3], table[3, 2] = 0.5, 0.5
    table[4, 2] = 1.0  # ... but 4 ends at once
    step = chain_step(table / table.sum(1, keepdim=True))
    greedy = greedy_search(step, Chain(torch.arange(2)), start(2), end=2, max_length=5)
    beam = beam_search(step, Chain(torch.arange(2)), start(2), end=2, max_length=5, beam_size=2, length_penalty=0.0)
    assert greedy.tokens[:, 0].tolist() == [3, 3]
    assert beam.tokens[:, 0, :2].tolist() == [[4, 2], [4, 2]]
    assert (beam.scores[:, 0] > greedy.scores).all()


def test_sentences_that_do_not_end_come_last():
    table = torch.full((4, 4), 1e-9)
    table[1, 3], table[1, 2] = 0.9, 0.1
    table[3, 3], table[3, 2] = 1.0, 1e-12  # less than any other, so that what ends there is in no beam
    step = chain_step(table / table.sum(1, keepdim=True))
    found = beam_search(step, Chain(torch.arange(1)), start(1), end=2, max_length=3, beam_size=2, length_penalty=0.0)
    assert found.tokens[0, 0, 0] == 2
    assert found.lengths[0].tolist() == [1, 3]
    assert found.tokens[0, 1].tolist() == [3, 3, 3]


def test_more_beams_than_sentences():
    table = torch.zeros(3, 3)
    table[:, 2] = 1.0  # every sentence ends at once
    found = beam_search(chain_step(table), Chain(torch.arange(1)), start(1), end=2, max_length=3, beam_size=4)
    assert found.lengths[0].tolist() == [1, 0, 0, 0]
    assert found.scores[0, 1:].eq(-torch.inf).all()


def test_finished_sentences_leave_the_state():
    rows: list[int] = []

    def step(tokens: Tensor, state: Chain) -> tuple[Tensor, None, Chain]:
        rows.append(len(tokens))
        longer = state.rows >= len(rows)  # row n has n words and the end
        logits = torch.full((len(tokens), 4), -1e9)
        logits[longer, 3] = logits[~longer, 2] = 0.0
        return logits, None, state

    found = greedy_search(step, Chain(torch.arange(8)), start(8), end=2, max_length=20)
    assert found.lengths.tolist() == list(range(1, 9))
    assert rows == [8, 8, 8, 8, 4, 4, 2, 1]


@pytest.mark.parametrize("search", [greedy_search, beam_search, sample])
def test_no_sentences(search):
    found = search(chain_step(torch.ones(4, 4)), Chain(torch.arange(0)), start(0), end=2, max_length=3)
    assert len(found.tokens) == len(found.lengths) == len(found.scores) == 0


@torch.no_grad()
@pytest.mark.parametrize("search", [greedy_search, beam_search])
def test_a_decoder_is_searched_as_its_step_is(decoder, memory, search):
    """By the likeliest words, which some have without the logits of all."""
    options = {"end": END, "max_length": LIMIT, "need_weights": True}
    found, want = (search(how, decoder.start(memory), start(3), **options) for how in (decoder, decoder.step))
    assert torch.equal(found.tokens, want.tokens)
    assert torch.equal(found.lengths, want.lengths)
    torch.testing.assert_close((found.scores, found.weights), (want.scores, want.weights))


@torch.no_grad()
def test_on_a_decoder_and_an_embedding(memory):
    decoder, embedding = FusedAttentionDecoder(4, 8, 5, 7).double(), nn.Embedding(VOCABULARY, 4).double()
    vocabulary = nn.Linear(8, VOCABULARY).double()
    state = decoder.start(memory.values, mask=memory.mask, vocabulary=vocabulary)
    found = greedy_search(token_step(decoder, embedding), state, start(3), end=END, max_length=LIMIT)
    words = torch.cat([start(3)[:, None], found.tokens[:, :-1]], 1)
    output, *_ = decoder(embedding(words), memory.values, mask=memory.mask)
    best = vocabulary(output).argmax(2)
    for row, length in enumerate(found.lengths.tolist()):
        assert found.tokens[row, :length].tolist() == best[row, :length].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length must be a positive int"),
        ({"beam_size": 0}, "beam_size must be a positive int"),
        ({"beam_size": 2, "length_penalty": -1.0}, "length_penalty must be"),
        ({"start": torch.ones(2, 1, dtype=torch.int64)}, "start must have shape"),
    ],
)
def test_errors(options, message):
    arguments = {"start": start(2), "max_length": 3} | options
    with pytest.raises(ValueError, match=message):
        search_best(chain_step(torch.ones(4, 4)), Chain(torch.arange(2)), arguments.pop("start"), end=2, **arguments)
