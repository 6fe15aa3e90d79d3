from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hybridops.layers import ConvEncoder, PretrainedEncoder, RNNEncoder, length_mask
from tests.layers.networks import torch_network

CELLS = ("rnn", "lstm", "gru")


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_is_read_as_if_it_were_alone(cell, layers, bidirectional):
    encoder = RNNEncoder(3, 4, layers, cell=cell, bidirectional=bidirectional).double()
    x, lengths = torch.randn(4, 6, 3, dtype=torch.float64), torch.tensor([6, 1, 4, 0])
    padded = x.masked_fill(~length_mask(lengths, 6)[..., None], float("nan"))
    memory = encoder(padded, lengths)
    assert memory.values.shape == (4, 6, encoder.dim)
    assert memory.mask.sum(1).tolist() == lengths.tolist()
    for row, length in enumerate(lengths.tolist()):
        assert memory.values[row, length:].eq(0).all()
        if length:
            alone = encoder(x[row : row + 1, :length])
            torch.testing.assert_close(memory.values[row, :length], alone.values[0])
            torch.testing.assert_close(memory.pooled[row], alone.pooled[0])
    assert memory.pooled[3].eq(0).all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_it_is_a_packed_network(cell, bidirectional):
    """PyTorch's own, in two layers: values and gradients."""
    encoder = RNNEncoder(3, 4, 2, cell=cell, bidirectional=bidirectional).double()
    network, lengths = torch_network(encoder, cell), torch.tensor([6, 1, 4])
    x = torch.randn(3, 6, 3, dtype=torch.float64, requires_grad=True)
    values, _ = pad_packed_sequence(
        network(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[0], batch_first=True
    )
    memory = encoder(x, lengths)
    torch.testing.assert_close(memory.values, values)
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (memory.values, values)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(encoder(x).values, network(x)[0])


def test_lengths_beyond_the_end_are_the_end():
    encoder, x = RNNEncoder(3, 4, bidirectional=True), torch.randn(2, 5, 3)
    for got, want in zip(encoder(x, torch.tensor([9, 5])), encoder(x, torch.tensor([5, 5])), strict=True):
        assert torch.equal(got, want)


def test_pooled_of_both_directions_is_where_each_ends():
    encoder = RNNEncoder(3, 4, bidirectional=True)
    memory = encoder(torch.randn(2, 5, 3))
    torch.testing.assert_close(memory.pooled[:, :4], memory.values[:, -1, :4])
    torch.testing.assert_close(memory.pooled[:, 4:], memory.values[:, 0, 4:])


def test_no_gradient_comes_from_padding():
    encoder = RNNEncoder(3, 4, bidirectional=True)
    x = torch.randn(2, 5, 3)
    x[1, 2:] = float("nan")
    memory = encoder(x.requires_grad_(), torch.tensor([5, 2]))
    (memory.values.sum() + memory.pooled.sum()).backward()
    assert x.grad[1, 2:].eq(0).all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)])
def test_nothing_to_read(shape):
    memory = RNNEncoder(3, 4)(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64))
    assert memory.values.shape == (*shape[:2], 4)
    assert memory.pooled.shape == (shape[0], 4)


@pytest.mark.parametrize(("pool_last", "sizes"), [(True, (2, 3)), (False, (4, 5))])
def test_strides_halve_upwards(pool_last, sizes):
    encoder = ConvEncoder(1, (2, 3), pool_last=pool_last, strided=True).eval()
    images = torch.rand(2, 1, 8, 9)
    assert encoder.map(images).shape == (2, 3, *sizes)
    assert torch.equal(encoder(images).values, encoder.map(images).flatten(2).transpose(1, 2))
    conv, norm = encoder.layers[:2]
    everywhere = norm(nn.functional.conv2d(images, conv.weight, padding=1)).relu()
    torch.testing.assert_close(encoder.layers[:3](images), everywhere[..., ::2, ::2])


def test_regions_are_row_by_row():
    encoder = ConvEncoder(3, (5, 7)).eval()
    images = torch.randn(2, 3, 8, 12)
    memory = encoder(images)
    features = encoder.layers(images)
    assert memory.values.shape == (2, 2 * 3, 7)
    torch.testing.assert_close(memory.values[:, 1 * 3 + 2], features[:, :, 1, 2])
    torch.testing.assert_close(memory.pooled, features.mean((2, 3)))


@pytest.mark.parametrize(
    ("backbone", "values"),
    [
        (nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.BatchNorm2d(6)), (2, 4, 6)),
        (nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.Flatten(2), nn.Linear(4, 6)), (2, 6, 6)),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 6)), (2, 1, 6)),
    ],
)
def test_any_backbone(backbone, values):
    memory = PretrainedEncoder(backbone, 6)(torch.randn(2, 3, 4, 4))
    assert memory.values.shape == values
    torch.testing.assert_close(memory.pooled, memory.values.mean(1))


def test_a_frozen_backbone_stays_as_it_is():
    backbone = nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.BatchNorm2d(6), nn.Dropout(0.5))
    model = nn.Sequential(PretrainedEncoder(backbone, 6)).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    images = torch.randn(2, 3, 4, 4)
    memory = model(images)
    assert not memory.values.requires_grad
    torch.testing.assert_close(model(images).values, memory.values)  # no dropout
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_one_that_is_not_frozen_is_trained():
    backbone = nn.Conv2d(3, 6, 2, 2)
    PretrainedEncoder(backbone, 6, frozen=False)(torch.randn(2, 3, 4, 4)).pooled.sum().backward()
    assert backbone.weight.grad is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RNNEncoder(3, 4, cell="transformer"), "cell must be one of"),
        (lambda: RNNEncoder(0, 4), "input_dim must be a positive int"),
        (lambda: ConvEncoder(3, ()), "channels must have a size"),
        (lambda: RNNEncoder(3, 4)(torch.zeros(2, 5, 2)), "x must have shape"),
        (lambda: RNNEncoder(3, 4)(torch.zeros(2, 5, 3), torch.tensor([1])), "lengths must have shape"),
        (lambda: ConvEncoder(3)(torch.zeros(2, 1, 16, 16)), "images must have shape"),
        (lambda: PretrainedEncoder(nn.Conv2d(3, 5, 1), 6)(torch.zeros(2, 3, 4, 4)), "what the backbone gives"),
        (lambda: PretrainedEncoder(nn.Conv2d(3, 5, 1), 6).map(torch.zeros(2, 3, 4, 4)), "what the backbone gives"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
