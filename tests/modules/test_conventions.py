"""What a user of torch.nn expects of every fused module, and of the plain one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hybridops import (
    FusedAdditiveAttention,
    FusedAttentionDecoder,
    FusedConcatAttention,
    FusedConvLSTM,
    FusedConvLSTMCell,
    reference,
)

FUSED = {
    "FusedConvLSTMCell": lambda **options: FusedConvLSTMCell(3, 4, 3, peephole="channel", **options),
    "FusedConvLSTM": lambda **options: FusedConvLSTM(3, 4, 3, 2, **options),
    "FusedConcatAttention": lambda **options: FusedConcatAttention(4, **options),
    "FusedAdditiveAttention": lambda **options: FusedAdditiveAttention(3, 5, 4, bias=True, **options),
    "FusedAdditiveAttention, 2 heads": lambda **options: FusedAdditiveAttention(3, 6, 4, num_heads=2, **options),
    "FusedAttentionDecoder": lambda **options: FusedAttentionDecoder(
        3, 4, 5, 6, context_gate=True, location="convolution", **options
    ),
}


@pytest.fixture(params=FUSED)
def make(request):
    return FUSED[request.param]


def test_a_wrong_back_end_fails_when_the_module_is_made(make):
    with pytest.raises(ValueError, match="backend must be one of 'reference', 'native', 'triton', got 'cuda'"):
        make(backend="cuda")


def test_the_repr_names_the_back_end_that_was_named(make):
    assert "backend" not in repr(make())
    assert "backend='native'" in repr(make(backend="native"))


def test_the_repr_names_save():
    assert "save='recompute'" in repr(FusedConvLSTM(3, 4, 3, save="recompute"))


def test_reset_parameters_draws_every_parameter_as_it_was_drawn(make):
    """From the same seed, the values a new module has."""
    torch.manual_seed(0)
    module = make()
    first = copy.deepcopy(module.state_dict())
    for parameter in module.parameters():
        nn.init.constant_(parameter, 7.0)
    torch.manual_seed(0)
    module.reset_parameters()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=0)


def test_sizes_as_nn_lstm_names_them():
    for module in (FusedConvLSTM(3, 4, 3), FusedConvLSTMCell(3, 4, 3), FusedAttentionDecoder(3, 4, 5, 6)):
        assert (module.input_size, module.hidden_size) == (module.input_dim, module.hidden_dim) == (3, 4)


@pytest.mark.parametrize("kind", [reference.AdditiveAttention, FusedAdditiveAttention])
def test_a_float_mask_is_told_where_it_belongs(kind):
    with pytest.raises(TypeError, match="what is added to scores is `score_bias`"):
        kind(3, 5, 4)(torch.randn(2, 3), torch.randn(2, 6, 5), mask=torch.zeros(2, 6))


@pytest.mark.parametrize("kind", [reference.AdditiveAttention, FusedAdditiveAttention])
def test_prepared_keys_are_sliced_and_moved(kind):
    attention, key, mask = kind(3, 5, 4), torch.randn(4, 6, 5), torch.rand(4, 6) > 0.2
    query = torch.randn(4, 3)
    with torch.no_grad():
        keys = attention.prepare(key, mask=mask)
        whole, _ = attention(query, keys)
        torch.testing.assert_close(attention(query[1:3], keys[1:3])[0], whole[1:3])
        torch.testing.assert_close(attention(query[::2], keys[::2])[0], whole[::2])
        order = torch.tensor([2, 0, 0])
        torch.testing.assert_close(attention(query[order], keys.reorder(order))[0], whole[order])
        double = copy.deepcopy(attention).double()
        moved = keys.to(dtype=torch.float64)
        torch.testing.assert_close(double(query.double(), moved)[0].float(), whole)
    assert moved.mask.dtype == torch.bool
    with pytest.raises(TypeError, match="take a slice of the batch, got int"):
        keys[0]
