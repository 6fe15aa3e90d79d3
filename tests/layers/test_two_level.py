"""Attention in two levels: against loops over shots, and against one attention over all frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hybridops
from hybridops import FusedAdditiveAttention
from hybridops.layers import (
    AttentionTokenDecoder,
    Memory,
    ShotMemory,
    TwoLevelAttention,
    TwoLevelTokenDecoder,
    beam_search,
    greedy_search,
)
from tests import tolerances

VOCAB, E, H, D, A, P = 11, 6, 8, 5, 7, 4
B, N, S, T = 3, 3, 4, 9
LENGTHS = torch.tensor([[3, 1, 4], [2, 5, 0], [0, 0, 0]])


def memory() -> ShotMemory:
    torch.manual_seed(2)
    mask, pooled = torch.arange(T) < LENGTHS.sum(1, keepdim=True), torch.randn(B, P).double()
    frames, shots = torch.randn(B, T, D).double(), torch.randn(B, N, D).double()
    frames, shots = frames * mask[..., None], shots * (LENGTHS > 0)[..., None]
    return ShotMemory(Memory(frames, mask, pooled), Memory(shots, LENGTHS > 0, pooled), LENGTHS)


def rows(read: ShotMemory, row: int) -> ShotMemory:
    frames, shots, lengths = read
    one = slice(row, row + 1)
    frames, shots = (Memory(*(part[one] for part in level)) for level in (frames, shots))
    return ShotMemory(frames, shots, lengths[one])


def attention(beta: str = "shots") -> TwoLevelAttention:
    torch.manual_seed(1)
    return TwoLevelAttention(H, D, D, A, beta=beta).double()


def decoder(beta: str = "shots", cell: str = "lstm") -> TwoLevelTokenDecoder:
    torch.manual_seed(1)
    return TwoLevelTokenDecoder(VOCAB, E, H, D, A, pooled_dim=P, beta=beta, cell=cell).double()


def tokens() -> Tensor:
    return torch.randint(1, VOCAB, (B, S), generator=torch.Generator().manual_seed(3))


def scores(module: FusedAdditiveAttention, query: Tensor, keys: Tensor) -> Tensor:
    """(T,) of a query (Q,) and keys (T, K)."""
    return (torch.tanh(module.query_proj(query) + module.key_proj(keys)) @ module.v.weight[0]).flatten()


def in_a_loop(module: TwoLevelAttention, query: Tensor, read: ShotMemory) -> tuple[Tensor, Tensor]:
    """Context and weights of one query (Q,) and one film, a shot at a time."""
    counts = [count for count in read.lengths[0].tolist() if count]
    context, weights = torch.zeros(D).double(), torch.zeros(T).double()
    if not counts:
        return context, weights
    parts = read.frames.values[0, : sum(counts)].split(counts)
    of_frames = [scores(module.frame_attention, query, part) for part in parts]
    if module.shot_attention is None:
        of_shots = torch.stack([each.logsumexp(0) for each in of_frames])
    else:
        of_shots = scores(module.shot_attention, query, read.shots.values[0, : len(counts)])
    for beta, each, part in zip(of_shots.softmax(0), of_frames, parts, strict=True):
        context = context + beta * (each.softmax(0) @ part)
    weights = torch.cat([b * each.softmax(0) for b, each in zip(of_shots.softmax(0), of_frames, strict=True)])
    return context, torch.cat([weights, torch.zeros(T - sum(counts)).double()])


@pytest.mark.parametrize("beta", ["shots", "frames"])
@pytest.mark.parametrize("m", [1, 3])
def test_it_is_a_loop_over_shots(beta, m):
    module, read = attention(beta), memory()
    query = torch.randn(B * m, H).double()
    context, weights = module(query, module.prepare(read))
    for row, each in enumerate(query):
        expected = in_a_loop(module, each, rows(read, row // m))
        torch.testing.assert_close((context[row], weights[row]), expected, **tolerances.FLOAT64)
    without, none = module(query, module.prepare(read), need_weights=False)
    assert none is None
    torch.testing.assert_close(without, context, **tolerances.FLOAT64)
    with torch.no_grad():  # a step of decoding is another op
        torch.testing.assert_close(module(query, module.prepare(read)), (context, weights), **tolerances.FLOAT64)


def test_by_log_sum_exp_it_is_one_attention_over_all_frames():
    module, read = attention("frames"), memory()
    query = torch.randn(B, H).double()
    found = module(query, module.prepare(read))
    torch.testing.assert_close(
        found, module.frame_attention(query, read.frames.values, mask=read.frames.mask), **tolerances.FLOAT64
    )


def test_by_scores_of_their_own_shots_share_out_the_weight():
    module, read = attention(), memory()
    query = torch.randn(B, H).double()
    _, weights = module(query, module.prepare(read))
    _, beta = module.shot_attention(query, read.shots.values, mask=read.shots.mask)
    for row, counts in enumerate(LENGTHS[:2].tolist()):
        shares = torch.stack([part.sum() for part in weights[row, : sum(counts)].split(counts)])
        torch.testing.assert_close(shares, beta[row], **tolerances.FLOAT64)
    assert not torch.allclose(module.frame_attention(query, read.frames.values, mask=read.frames.mask)[1], weights)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_decoder_whose_shots_are_scored_by_frames_is_the_flat_one(cell):
    """The fused decoder has the same parameters under other names."""
    two, read, words = decoder("frames", cell), memory(), tokens()
    flat = AttentionTokenDecoder(VOCAB, E, H, D, A, pooled_dim=P, cell=cell).double()
    names = {"decoder.attention.": "attention.frame_attention.", "decoder.cell.": "cell."}
    state = two.state_dict()
    for name in flat.state_dict():
        for new, old in names.items():
            if name.startswith(new):
                state[name] = state.pop(name.replace(new, old))
    flat.load_state_dict(state)
    expected = flat(words, read.frames, need_weights=True)
    torch.testing.assert_close(two(words, read, need_weights=True), expected, **tolerances.FLOAT64)


@pytest.mark.parametrize("beta", ["shots", "frames"])
def test_gradients_are_those_of_plain_pytorch(beta):
    grads = []
    for backend in (None, "reference"):
        model, read = decoder(beta), memory()
        inputs = read.frames.values, read.shots.values, read.frames.pooled
        for part in inputs:
            part.requires_grad_()
        with hybridops.use_backend(backend):
            logits, weights = model(tokens(), read, need_weights=True)
            (logits.logsumexp(2).sum() + weights.square().sum()).backward()
        used = [part for part in inputs if part is not read.shots.values or beta == "shots"]
        grads.append([part.grad for part in (*used, *model.parameters())])
    for fused, plain in zip(*grads, strict=True):
        torch.testing.assert_close(fused, plain, **tolerances.FLOAT64)
        assert fused.isfinite().all()
        assert fused.abs().max() > 0


@pytest.mark.parametrize("beta", ["shots", "frames"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_steps_are_those_of_a_sentence(beta, cell):
    model, read, words = decoder(beta, cell), memory(), tokens()
    logits, weights = model(words, read, need_weights=True)
    assert model(words, read)[1] is None
    state = model.start(read)
    for s in range(S):
        got_logits, got_weights, state = model.step(words[:, s], state)
        torch.testing.assert_close(got_logits, logits[:, s], **tolerances.FLOAT64)
        torch.testing.assert_close(got_weights, weights[:, s], **tolerances.FLOAT64)


def test_no_words():
    logits, weights = decoder()(tokens()[:, :0], memory(), need_weights=True)
    assert logits.shape == (B, 0, VOCAB)
    assert weights.shape == (B, 0, T)


@pytest.mark.parametrize("beta", ["shots", "frames"])
def test_a_state_is_searched(beta):
    model, read = decoder(beta).eval(), memory()
    start = torch.ones(B, dtype=torch.int64)
    torch.manual_seed(3)
    with torch.no_grad():
        nn.init.normal_(model.vocabulary.weight)  # so that sentences differ, and end
    greedy = greedy_search(model.step, model.start(read), start, end=2, max_length=12, need_weights=True)
    beam = beam_search(
        model.step, model.start(read), start, end=2, max_length=12, beam_size=4, length_penalty=0.0, need_weights=True
    ).best()
    for found in greedy, beam:
        for row, length in enumerate(found.lengths.tolist()):  # log p and weights of what was found, by teacher forcing
            words = found.tokens[row : row + 1, :length]
            before = torch.cat([start[:1, None], words[:, :-1]], 1)
            logits, weights = model(before, rows(read, row), need_weights=True)
            if found is greedy:
                assert torch.equal(logits.argmax(2), words)
            log_p = logits.log_softmax(2).gather(2, words[..., None]).sum()
            torch.testing.assert_close(found.scores[row], log_p.float(), **tolerances.LOG_PROBABILITY)
            torch.testing.assert_close(found.weights[row, :length], weights[0], **tolerances.FLOAT64)
    assert len(set(greedy.lengths.tolist())) > 1


def test_a_selected_state_is_that_of_its_films():
    model, read = decoder(), memory()
    state = model.start(read).reorder(torch.arange(B).repeat_interleave(2))
    words = torch.arange(2 * B) + 2
    _, _, state = model.step(words, state)
    left = state.select(torch.tensor([2, 0]))
    kept = torch.tensor([4, 5, 0, 1])
    for found, whole in zip(model.step(words[kept], left)[:2], model.step(words, state)[:2], strict=True):
        torch.testing.assert_close(found, whole[kept], **tolerances.FLOAT64)


@pytest.mark.slow
def test_it_compiles():
    model, read = decoder(), memory()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens(), read)[0], model(tokens(), read)[0], **tolerances.FLOAT64)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"beta must be one of 'shots', 'frames', got 'words'"):
        attention("words")
    with pytest.raises(ValueError, match=r"cell must be one of 'lstm', 'gru', got 'rnn'"):
        decoder(cell="rnn")
    model, read = decoder(), memory()
    with pytest.raises(ValueError, match=r"tokens must have shape \(3, S\), got \(2, 4\)"):
        model(tokens()[:2], read)
    with pytest.raises(ValueError, match=r"values of frames must have shape \(B, T, 5\), got \(3, 9, 4\)"):
        model(tokens(), read._replace(frames=read.frames._replace(values=read.frames.values[..., :4])))
    with pytest.raises(ValueError, match=r"values of shots must have shape \(3, 3, 5\), got \(3, 2, 5\)"):
        model(tokens(), read._replace(shots=read.shots._replace(values=read.shots.values[:, :2])))
    prepared = model.attention.prepare(read)
    with pytest.raises(ValueError, match=r"query must have shape \(m·B, 8\), got \(3, 7\)"):
        model.attention(torch.zeros(3, 7).double(), prepared)
