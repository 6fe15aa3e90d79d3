"""Transformers that see, against PyTorch's own layers and against loops over places and times."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridops.layers import FrameEncoder
from hybridops.layers.vision_transformer import (
    PatchEmbedding,
    SelfAttention,
    SpaceTimeBlock,
    SpaceTimeTransformer,
    VisionTransformer,
)
from tests.tolerances import FLOAT64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def torch_attention(attention: SelfAttention) -> nn.MultiheadAttention:
    """PyTorch's own, with the same weights."""
    out, inner = attention.out_proj, attention.in_proj
    own = nn.MultiheadAttention(out.in_features, attention.num_heads, batch_first=True).double()
    own.load_state_dict(
        {
            "in_proj_weight": inner.weight, "in_proj_bias": inner.bias,
            "out_proj.weight": out.weight, "out_proj.bias": out.bias,
        }
    )  # fmt: skip
    return own


@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2, 3]))
def test_self_attention_is_torch_s(batch, length, heads):
    attention, x = SelfAttention(6, heads).double(), draw(batch, length, 6)
    mask = torch.rand(batch, length) < 0.6
    mask[:, 0] = True
    own = torch_attention(attention)
    torch.testing.assert_close(attention(x), own(x, x, x, need_weights=False)[0], **FLOAT64)
    masked = own(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
    torch.testing.assert_close(attention(x, mask), masked, **FLOAT64)


def test_attention_of_nothing_is_finite():
    attention, x = SelfAttention(4, 2).double(), draw(2, 3, 4).requires_grad_()
    out = attention(x, torch.tensor([[False] * 3, [True, False, True]]))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


def test_patches():
    embedding, images = PatchEmbedding(2, 4, 2, 3).double(), draw(2, 2, 4, 4)
    found = embedding(images)
    for b in range(2):
        for row in range(2):
            for column in range(2):
                patch = images[b, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                expected = embedding.proj.weight.flatten(1) @ patch.flatten() + embedding.proj.bias
                expected = expected + embedding.positions[:, row, column]
                torch.testing.assert_close(found[b, 2 * row + column], expected, **FLOAT64)


def test_positions_of_another_size():
    embedding = PatchEmbedding(1, 8, 2, 3).double()
    nn.init.zeros_(embedding.proj.weight)
    with torch.no_grad():
        embedding.positions[:] = torch.arange(4.0)[None, None]  # a ramp from left to right
    found = (embedding(draw(1, 1, 6, 16)) - embedding.proj.bias).unflatten(1, (3, 8))
    assert found.shape == (1, 3, 8, 3)
    assert (found.diff(dim=2) > 0.0).all()
    torch.testing.assert_close(found[0, 0], found[0, 2], **FLOAT64)
    expected = F.interpolate(embedding.positions[None], (3, 8), mode="bicubic")[0].permute(1, 2, 0)
    torch.testing.assert_close(found[0], expected, **FLOAT64)


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_a_vision_transformer_is_torch_s_encoder(pool):
    model = VisionTransformer(2, 8, 4, 6, 2, 3, feedforward_dim=5, pool=pool).double()
    nn.init.normal_(model.norm.weight)
    layer = nn.TransformerEncoderLayer(6, 3, 5, 0.0, "gelu", batch_first=True, norm_first=True)
    own = nn.TransformerEncoder(layer, 2, norm=model.norm, enable_nested_tensor=False).double()
    for ours, theirs in zip(model.blocks, own.layers, strict=True):
        attention, perceptron = ours
        theirs.norm1.load_state_dict(attention.norm.state_dict())
        theirs.self_attn.load_state_dict(torch_attention(attention.layer).state_dict())
        theirs.norm2.load_state_dict(perceptron.norm.state_dict())
        theirs.linear1.load_state_dict(perceptron.layer[0].state_dict())
        theirs.linear2.load_state_dict(perceptron.layer[2].state_dict())
    images = draw(3, 2, 8, 8)
    x = model.patches(images)
    if pool == "class":
        nn.init.normal_(model.class_token)
        x = torch.cat([model.class_token.expand(3, 1, -1), x], 1)
    expected, found = own(x), model(images)
    assert found.mask is None
    if pool == "class":
        torch.testing.assert_close(found.pooled, expected[:, 0], **FLOAT64)
        expected = expected[:, 1:]
    else:
        torch.testing.assert_close(found.pooled, expected.mean(1), **FLOAT64)
    torch.testing.assert_close(found.values, expected, **FLOAT64)


def test_a_frame_at_a_time():
    """As an encoder of frames."""
    model = VisionTransformer(1, 4, 2, 6, 1, 2).double()
    clips = draw(2, 3, 1, 4, 4)
    memory = FrameEncoder(model)(clips)
    for t in range(3):
        torch.testing.assert_close(memory.values[:, t], model(clips[:, t]).pooled, **FLOAT64)


def plain_block(block: SpaceTimeBlock, x: Tensor, mask: Tensor) -> Tensor:
    """x (B, N, T, D), one place, then one time after the other, by PyTorch's attention."""
    time, space = torch_attention(block.time.layer), torch_attention(block.space.layer)
    x = x.clone()
    for n in range(x.shape[1]):
        normed = block.time.norm(x[:, n])
        x[:, n] = x[:, n] + time(normed, normed, normed, key_padding_mask=~mask)[0]
    for t in range(x.shape[2]):
        normed = block.space.norm(x[:, :, t])
        x[:, :, t] = x[:, :, t] + space(normed, normed, normed)[0]
    return x + block.feedforward.layer(block.feedforward.norm(x))


def test_time_then_space():
    block, x = SpaceTimeBlock(6, 2, 5, 0.0).double(), draw(2, 3, 4, 6)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    torch.testing.assert_close(block(x, mask), plain_block(block, x, mask), **FLOAT64)
    torch.testing.assert_close(block(x, None), plain_block(block, x, torch.ones_like(mask)), **FLOAT64)


def test_space_time_transformer():
    model = SpaceTimeTransformer(2, 4, 2, 5, 6, 2, 3).double()
    frames, lengths = draw(3, 4, 2, 4, 4), torch.tensor([4, 2, 3])
    found = model(frames, lengths)
    mask = torch.arange(4) < lengths[:, None]
    x = torch.stack([model.patches(frames[:, t]) + model.times[t] for t in range(4)], 2)
    for block in model.blocks:
        x = plain_block(block, x, mask)
    expected = model.norm(x).mean(1)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found.values[row, :length], expected[row, :length], **FLOAT64)
        torch.testing.assert_close(found.pooled[row], expected[row, :length].mean(0), **FLOAT64)
    assert not found.values[~mask].any()
    assert torch.equal(found.mask, mask)


def test_rows_end_where_they_end():
    model, frames, lengths = (
        SpaceTimeTransformer(1, 4, 2, 5, 6, 2, 3).double(),
        draw(3, 5, 1, 4, 4),
        torch.tensor([2, 5, 0]),
    )
    frames[torch.arange(5) >= lengths[:, None]] = torch.nan
    memory = model(frames, lengths)
    for row in range(2):
        alone = model(frames[row : row + 1, : lengths[row]])
        torch.testing.assert_close(memory.pooled[row], alone.pooled[0], **FLOAT64)
    assert not memory.pooled[2].any()
    memory.pooled.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dim", [6, 9])
def test_times_start_as_sinusoids(dim):
    """The product of two depends on how far apart they are alone, where each sine has its cosine."""
    times = SpaceTimeTransformer(1, 4, 2, 5, dim, 1, 3).times.double()
    assert times.shape == (5, dim)
    float32 = {"rtol": 1e-5, "atol": 1e-5}  # sums of some sines
    torch.testing.assert_close(times[:, 0], torch.arange(5.0).double().sin(), **float32)
    pairs = times[:, : dim - dim % 2]
    products = pairs @ pairs.T
    torch.testing.assert_close(products[1:, 1:], products[:-1, :-1], **float32)


def test_order_of_frames_counts():
    model, frames = SpaceTimeTransformer(1, 4, 2, 5, 6, 2, 3).double(), draw(1, 5, 1, 4, 4)
    assert not torch.allclose(model(frames).pooled, model(frames.flip(1)).pooled)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SelfAttention(4, 3), "dim must be a multiple of num_heads, got 4 and 3"),
        (lambda: VisionTransformer(1, 10, 4), "image_size must be a multiple of patch_size, got 10 and 4"),
        (lambda: VisionTransformer(1, 8, 4, pool="max"), "pool must be one of 'class', 'mean', got 'max'"),
        (lambda: VisionTransformer(1, 8, 4, num_layers=0), "num_layers must be a positive int, got 0"),
        (lambda: VisionTransformer(1, 8, 4)(torch.ones(1, 1, 8, 10)), "multiples of patch_size, 4, got 8 x 10"),
        (lambda: VisionTransformer(1, 8, 4)(torch.ones(1, 2, 8, 8)), r"images must have shape \(B, 1, Y, X\)"),
        (lambda: SpaceTimeTransformer(1, 8, 4, 0), "max_frames must be a positive int, got 0"),
        (lambda: SpaceTimeTransformer(1, 8, 4, 2)(torch.ones(1, 3, 1, 8, 8)), "at most max_frames, 2, got 3"),
        (lambda: SpaceTimeTransformer(1, 8, 4, 2, dropout=2.0), r"dropout must be a number in \[0, 1\], got 2.0"),
        (
            lambda: SpaceTimeTransformer(1, 8, 4, 2)(torch.ones(1, 2, 1, 8, 8), torch.ones(2).long()),
            r"lengths must have shape \(1\), got \(2\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
