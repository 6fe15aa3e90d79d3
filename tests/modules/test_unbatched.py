"""Inputs without a batch, as torch.nn's recurrent layers take them: the results of a batch of one, without it."""

from __future__ import annotations

import pytest
import torch

from hybridops import FusedAdditiveAttention, FusedAttentionDecoder, FusedConvLSTM, FusedConvLSTMCell, reference

PLAIN_AND_FUSED = {
    "cell": (reference.ConvLSTMCell, FusedConvLSTMCell),
    "conv_lstm": (reference.ConvLSTM, FusedConvLSTM),
    "attention": (reference.AdditiveAttention, FusedAdditiveAttention),
    "decoder": (reference.AttentionDecoder, FusedAttentionDecoder),
}


@pytest.fixture(params=[0, 1], ids=["plain", "fused"])
def kind_of(request):
    return lambda name: PLAIN_AND_FUSED[name][request.param]


@pytest.mark.parametrize("kernel", [(3,), (3, 5), (3, 3, 3)])
def test_cell(kind_of, kernel):
    cell, space = kind_of("cell")(2, 4, kernel), (5, 6, 7)[: len(kernel)]
    x, h, c = torch.randn(2, *space), torch.randn(4, *space), torch.randn(4, *space)
    for states, batched in ((None, None), ((h, c), (h[None], c[None]))):
        for found, wanted in zip(cell(x, states), cell(x[None], batched), strict=True):
            torch.testing.assert_close(found, wanted[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kernel", [(3,), (3, 5)])
def test_conv_lstm(kind_of, kernel, batch_first):
    lstm, space = kind_of("conv_lstm")(2, 4, kernel, 2, batch_first=batch_first), (5, 6)[: len(kernel)]
    x, h, c, dim = torch.randn(3, 2, *space), torch.randn(2, 4, *space), torch.randn(2, 4, *space), int(not batch_first)
    for states, batched in ((None, None), ((h, c), (h[:, None], c[:, None]))):
        output, last = lstm(x, states)
        wanted, wanted_last = lstm(x.unsqueeze(dim), batched)
        torch.testing.assert_close(output, wanted.squeeze(dim))
        for found, state in zip(last, wanted_last, strict=True):
            torch.testing.assert_close(found, state.squeeze(1))


def test_conv_lstm_with_states_of_each_size(kind_of):
    lstm = kind_of("conv_lstm")(2, [3, 4], 3, 2)
    x, states = torch.randn(3, 2, 5, 6), ([torch.randn(3, 5, 6), torch.randn(4, 5, 6)],) * 2
    output, (h, c) = lstm(x, states)
    batched = tuple([state[None] for state in each] for each in states)
    wanted, (wanted_h, wanted_c) = lstm(x[None], batched)
    torch.testing.assert_close(output, wanted[0])
    for found, state in zip((*h, *c), (*wanted_h, *wanted_c), strict=True):
        torch.testing.assert_close(found, state[0])


@pytest.mark.parametrize("need_lse", [False, True])
@pytest.mark.parametrize("queries", [(), (5,)])
def test_attention(kind_of, queries, need_lse):
    attention, key = kind_of("attention")(3, 4, 6), torch.randn(7, 4)
    query, mask = torch.randn(*queries, 3), torch.rand(7) > 0.3
    found = attention(query, key, mask=mask, need_lse=need_lse)
    wanted = attention(query[None], key[None], mask=mask[None], need_lse=need_lse)
    assert len(found) == len(wanted) == 2 + need_lse
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want[0])
    assert attention(query, key, need_weights=False)[1] is None


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_decoder(kind_of, cell):
    decoder = kind_of("decoder")(3, 4, 5, 6, cell=cell)
    x, memory, h, c = torch.randn(6, 3), torch.randn(7, 5), torch.randn(4), torch.randn(4)
    mask, lengths = torch.rand(7) > 0.3, torch.tensor(4)
    state, batched = ((h, c), (h[None], c[None])) if cell == "lstm" else (h, h[None])
    found = decoder(x, memory, state, mask=mask, lengths=lengths, need_weights=True)
    wanted = decoder(x[None], memory[None], batched, mask=mask[None], lengths=lengths[None], need_weights=True)
    for got, want in zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(got, want[0])


def test_gradients(kind_of):
    lstm, x = kind_of("conv_lstm")(2, 4, 3), torch.randn(3, 2, 5, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(lstm(x)[0].square().sum(), x)
    (wanted,) = torch.autograd.grad(lstm(x[None])[0].square().sum(), x)
    torch.testing.assert_close(grad, wanted)
