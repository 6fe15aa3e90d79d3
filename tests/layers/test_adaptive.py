"""Adaptive attention against the paper's formula: a softmax over the regions and the sentinel together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hybridops
from hybridops.layers import Memory
from hybridops.layers.adaptive import AdaptiveTokenDecoder
from hybridops.layers.search import beam_search, greedy_search
from tests import tolerances

VOCAB, E, H, D, A, P = 11, 6, 8, 5, 7, 4
B, S, T = 3, 4, 9
MASK = torch.arange(T) < torch.tensor([[9], [3], [0]])


def decoder(fallback: str = "sentinel", dropout: float = 0.0) -> AdaptiveTokenDecoder:
    torch.manual_seed(1)
    return AdaptiveTokenDecoder(VOCAB, E, H, D, A, pooled_dim=P, fallback=fallback, dropout=dropout).double()


def memory(mask: Tensor | None = None) -> Memory:
    torch.manual_seed(2)
    return Memory(torch.randn(B, T, D).double(), mask, torch.randn(B, P).double())


def tokens() -> Tensor:
    return torch.randint(1, VOCAB, (B, S), generator=torch.Generator().manual_seed(3))


def by_the_paper(model: AdaptiveTokenDecoder, words: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """Logits and weights, one step at a time, equations (6) to (13)."""
    values = torch.relu(model.value_proj(memory.values))
    pooled = torch.relu(model.pooled_proj(memory.pooled))
    attention, h, m = model.attention, torch.zeros(B, H).double(), torch.zeros(B, H).double()
    masked = torch.zeros(B, T, dtype=torch.bool) if memory.mask is None else ~memory.mask
    all_logits, all_weights = [], []
    for word in words.unbind(1):
        x, before = torch.cat([model.embedding(word), pooled[:, :E]], 1), h
        h, m = model.cell(x, (h, m))
        z = attention.v(torch.tanh(attention.key_proj(values) + attention.query_proj(h)[:, None])).squeeze(2)
        z = z.masked_fill(masked, -torch.inf)
        if model.fallback == "sentinel":
            s = torch.sigmoid(model.sentinel_gate(torch.cat([x, before], 1))) * torch.tanh(m)
            score = attention.v(torch.tanh(model.sentinel_proj(s) + attention.query_proj(h)))
            alpha = torch.softmax(torch.cat([z, score], 1), 1)
            weights, beta = alpha[:, :-1], alpha[:, -1:]
        else:
            s, beta = pooled[:, E:], torch.sigmoid(model.beta(h))
            weights = (1 - beta) * torch.softmax(z, 1).nan_to_num(0.0)
        context = beta * s + (weights[..., None] * values).sum(1)
        all_logits.append(model.vocabulary(context + h))
        all_weights.append(weights)
    return torch.stack(all_logits, 1), torch.stack(all_weights, 1)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("fallback", ["sentinel", "global"])
def test_it_is_the_paper_s(fallback, mask):
    model, read = decoder(fallback), memory(mask)
    logits, weights = model(tokens(), read, need_weights=True)
    for got, expected in zip((logits, weights), by_the_paper(model, tokens(), read), strict=True):
        torch.testing.assert_close(got, expected, **tolerances.FLOAT64)
    assert model(tokens(), read)[1] is None


@pytest.mark.parametrize("fallback", ["sentinel", "global"])
def test_gradients_are_those_of_plain_pytorch(fallback):
    grads = []
    for backend in (None, "reference"):
        model, read = decoder(fallback), memory(MASK)
        read.values.requires_grad_(), read.pooled.requires_grad_()
        with hybridops.use_backend(backend):
            logits, weights = model(tokens(), read, need_weights=True)
            (logits.logsumexp(2).sum() + weights.square().sum()).backward()
        grads.append([read.values.grad, read.pooled.grad, *(p.grad for p in model.parameters())])
    for fused, plain in zip(*grads, strict=True):
        torch.testing.assert_close(fused, plain, **tolerances.FLOAT64)
        assert fused.abs().max() > 0


@pytest.mark.parametrize("fallback", ["sentinel", "global"])
def test_what_is_masked_does_not_count(fallback):
    model, read = decoder(fallback), memory(MASK)
    garbage = read._replace(values=read.values.masked_fill(~MASK[..., None], torch.nan))
    longer = Memory(
        torch.cat([read.values, torch.full((B, 2, D), torch.inf).double()], 1),
        torch.cat([MASK, torch.zeros(B, 2, dtype=torch.bool)], 1), read.pooled,
    )  # fmt: skip
    expected = model(tokens(), read)[0]
    for other in (garbage, longer):
        torch.testing.assert_close(model(tokens(), other)[0], expected, **tolerances.FLOAT64)


def test_a_memory_without_anything_leaves_the_sentinel():
    _, weights = decoder()(tokens(), memory(MASK), need_weights=True)
    torch.testing.assert_close(weights[2], torch.zeros(S, T).double(), **tolerances.EXACT)
    share = weights[:2].sum(2)
    assert ((share > 0) & (share < 1)).all()


@pytest.mark.parametrize("fallback", ["sentinel", "global"])
def test_steps_are_those_of_a_sentence(fallback):
    model, read, words = decoder(fallback), memory(MASK), tokens()
    logits, weights = model(words, read, need_weights=True)
    state = model.start(read)
    for s in range(S):
        got_logits, got_weights, state = model.step(words[:, s], state)
        torch.testing.assert_close(got_logits, logits[:, s], **tolerances.FLOAT64)
        torch.testing.assert_close(got_weights, weights[:, s], **tolerances.FLOAT64)


def test_a_state_is_searched():
    model, read = decoder().eval(), memory()
    start = torch.ones(B, dtype=torch.int64)
    with torch.no_grad():
        nn.init.normal_(model.vocabulary.weight)  # so that sentences differ, and end
    greedy = greedy_search(model.step, model.start(read), start, end=2, max_length=12, need_weights=True)
    beam = beam_search(
        model.step, model.start(read), start, end=2, max_length=12, beam_size=4, length_penalty=0.0, need_weights=True
    ).best()
    for found in greedy, beam:
        for row, length in enumerate(found.lengths.tolist()):  # log p and weights of what was found, by teacher forcing
            words = found.tokens[row : row + 1, :length]
            alone = Memory(read.values[row : row + 1], None, read.pooled[row : row + 1])
            logits, weights = model(torch.cat([start[:1, None], words[:, :-1]], 1), alone, need_weights=True)
            if found is greedy:
                assert torch.equal(logits.argmax(2), words)
            log_p = logits.log_softmax(2).gather(2, words[..., None]).sum()
            torch.testing.assert_close(found.scores[row], log_p.float(), **tolerances.LOG_PROBABILITY)
            torch.testing.assert_close(found.weights[row, :length], weights[0], **tolerances.FLOAT64)
    assert len(set(greedy.lengths.tolist())) > 1


def test_dropout_is_of_training_alone():
    model, read = decoder(dropout=0.5), memory()
    assert not torch.equal(model(tokens(), read)[0], model(tokens(), read)[0])
    model.eval()
    assert torch.equal(model(tokens(), read)[0], model(tokens(), read)[0])


@pytest.mark.slow
def test_it_compiles_whole():
    model, read = decoder(), memory(MASK)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens(), read)[0], model(tokens(), read)[0], **tolerances.FLOAT64)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"fallback must be one of 'sentinel', 'global', got 'none'"):
        decoder("none")
    model, read = decoder(), memory()
    with pytest.raises(ValueError, match=r"values must have shape \(B, T, 5\), got \(3, 9, 4\)"):
        model(tokens(), read._replace(values=read.values[..., :4]))
    with pytest.raises(ValueError, match=r"pooled must have shape \(3, 4\), got \(3, 3\)"):
        model(tokens(), read._replace(pooled=read.pooled[:, :3]))
    with pytest.raises(ValueError, match=r"tokens must have shape \(3, S\), got \(2, 4\)"):
        model(tokens()[:2], read)
