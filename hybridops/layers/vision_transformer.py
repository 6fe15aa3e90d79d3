"""Transformers that see: images as sequences of patches, clips as sequences of frames of patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.checks import accumulation_dtype, check_choice, check_number, check_positive_int, check_shape
from hybridops.layers.encoders import Memory, length_mask
from hybridops.layers.frames import check_clips
from hybridops.layers.pooling import MeanPooling


class SelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V in each of `num_heads` heads, Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, by
    `scaled_dot_product_attention`. The parameters are those of `nn.MultiheadAttention`, in its order q, k, v.

    Shape: x (B, L, dim), mask None or boolean (B, L), True = may be attended; gives (B, L, dim). A row of
    which nothing may be attended attends all.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if check_positive_int("dim", dim) % check_positive_int("num_heads", num_heads):
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.in_proj, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = self.in_proj(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if mask is not None:
            mask = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, mask)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class Residual(nn.Module):
    """x + dropout(layer(norm(x))): a half of a pre-norm block."""

    def __init__(self, dim: int, layer: nn.Module, dropout: float) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(dim), layer
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.norm(x)
        added: Tensor = self.dropout(self.layer(normed) if mask is None else self.layer(normed, mask))
        return x + added


def feedforward(dim: int, hidden_dim: int | None) -> nn.Sequential:
    """W_2 gelu(W_1 x + b_1) + b_2; hidden_dim None: 4 dim."""
    hidden = 4 * dim if hidden_dim is None else check_positive_int("feedforward_dim", hidden_dim)
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class PatchEmbedding(nn.Module):
    """The patches of an image, row by row, each projected, and a learned vector for where it is:

        x_i = W patch_i + b + P_i

    Images of another size than `image_size` have positions interpolated from those (bicubic).

    Shape: images (B, C, Y, X), Y and X multiples of `patch_size`; gives (B, Y·X / patch_size², dim).
    """

    def __init__(self, in_channels: int, image_size: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.in_channels, self.patch_size = check_positive_int("in_channels", in_channels), patch_size
        if check_positive_int("image_size", image_size) % check_positive_int("patch_size", patch_size):
            raise ValueError(f"image_size must be a multiple of patch_size, got {image_size} and {patch_size}")
        side = image_size // patch_size
        self.proj = nn.Conv2d(in_channels, check_positive_int("dim", dim), patch_size, patch_size)
        self.positions = nn.Parameter(torch.empty(dim, side, side))
        nn.init.normal_(self.positions, std=dim**-0.5)  # of length 1: small models would not see 0.02 beside the patch

    def forward(self, images: Tensor) -> Tensor:
        check_shape("images", images, ("B", self.in_channels, "Y", "X"))
        if images.shape[2] % self.patch_size or images.shape[3] % self.patch_size or 0 in images.shape[2:]:
            size = f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"images must have sides that are multiples of patch_size, {self.patch_size}, got {size}")
        patches: Tensor = self.proj(images)
        positions: Tensor = self.positions
        if positions.shape[1:] != patches.shape[2:]:
            wide = positions[None].to(accumulation_dtype(positions.dtype))
            positions = F.interpolate(wide, patches.shape[2:], mode="bicubic")[0].to(positions.dtype)
        return (patches + positions).flatten(2).transpose(1, 2)


def sinusoids(steps: int, dim: int) -> Tensor:
    """(steps, dim): sin(t ω_i) and cos(t ω_i), ω_i = 10000^(−2i / dim), so that t − 1 is a rotation away from t."""
    rate = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    angle = torch.arange(steps)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :dim]


class VisionTransformer(nn.Module):
    """A Vision Transformer, Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929.

        x = [class token; W patch_i + b + P_i]
        x = x + attention(norm(x));  x = x + MLP(norm(x))          num_layers times
        values_i, pooled = norm(x)

    Args:
        in_channels, image_size, patch_size: of square images; those of other sizes have positions interpolated.
        dim, num_layers, num_heads: channels D, blocks, heads of each.
        feedforward_dim: of the perceptron; None: 4 D.
        pool: "class", what became of the class token, or "mean", of the patches: then there is no such token.
        dropout: of what each half of a block adds, in training.

    Shape: images (B, C, Y, X), sides multiples of patch_size. Gives a Memory: values (B, N, D), of the patches row by
    row; mask None; pooled (B, D).

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        patch_size: int,
        dim: int = 192,
        num_layers: int = 4,
        num_heads: int = 3,
        *,
        feedforward_dim: int | None = None,
        pool: str = "class",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patches = PatchEmbedding(in_channels, image_size, patch_size, dim)
        self.class_token = (
            nn.Parameter(torch.zeros(dim)) if check_choice("pool", pool, ("class", "mean")) == "class" else None
        )
        self.blocks = nn.ModuleList()
        for _ in range(check_positive_int("num_layers", num_layers)):
            halves = SelfAttention(dim, num_heads), feedforward(dim, feedforward_dim)
            self.blocks.append(nn.Sequential(*(Residual(dim, half, dropout) for half in halves)))
        self.norm, self.dim = nn.LayerNorm(dim), dim

    def forward(self, images: Tensor) -> Memory:
        x = self.patches(images)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return Memory(x, None, x.mean(1)) if self.class_token is None else Memory(x[:, 1:], None, x[:, 0])


class SpaceTimeBlock(nn.Module):
    """A block of the `SpaceTimeTransformer`: x (B, N, T, dim), mask None or boolean (B, T)."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int | None, dropout: float) -> None:
        super().__init__()
        self.time = Residual(dim, SelfAttention(dim, num_heads), dropout)
        self.space = Residual(dim, SelfAttention(dim, num_heads), dropout)
        self.feedforward = Residual(dim, feedforward(dim, feedforward_dim), dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, patches, steps, _ = x.shape
        if mask is not None:
            mask = mask[:, None].expand(-1, patches, -1).flatten(0, 1)
        x = self.time(x.flatten(0, 1), mask).unflatten(0, (batch, patches))
        x = self.space(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, steps))
        out: Tensor = self.feedforward(x).transpose(1, 2)
        return out


class SpaceTimeTransformer(nn.Module):
    """TimeSformer: attention over time, then over space, in each block: Bertasius et al. 2021,
    https://arxiv.org/abs/2102.05095.

        x_ti = W patch_ti + b + P_i + Q_t                          Q learned, at first sinusoids
        x_ti = x_ti + attention over t' of norm(x_t'i)             num_layers times
        x_ti = x_ti + attention over i' of norm(x_ti')
        x_ti = x_ti + MLP(norm(x_ti))
        values_t = mean_i norm(x_ti)

    Args:
        in_channels, image_size, patch_size: of a frame, as in `VisionTransformer`.
        max_frames: of a clip.
        dim, num_layers, num_heads, feedforward_dim, dropout: as in `VisionTransformer`.

    Shape: frames (B, T, C, Y, X), T at most max_frames, lengths None or integers (B,), where more than T is T. Gives a
    Memory: values (B, T, D), zeros behind the end; mask, of the lengths; pooled (B, D), the mean of the frames that are
    there. A frame behind the end is not attended, and may be anything.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        patch_size: int,
        max_frames: int,
        dim: int = 192,
        num_layers: int = 4,
        num_heads: int = 3,
        *,
        feedforward_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patches = PatchEmbedding(in_channels, image_size, patch_size, dim)
        self.times = nn.Parameter(sinusoids(check_positive_int("max_frames", max_frames), dim))
        self.blocks = nn.ModuleList(
            SpaceTimeBlock(dim, num_heads, feedforward_dim, dropout)
            for _ in range(check_positive_int("num_layers", num_layers))
        )
        self.norm, self.dim, self.pool = nn.LayerNorm(dim), dim, MeanPooling()

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Memory:
        check_clips(frames, lengths, self.patches.in_channels)
        batch, steps = frames.shape[:2]
        if steps > len(self.times):
            raise ValueError(f"frames must be at most max_frames, {len(self.times)}, got {steps}")
        mask = length_mask(lengths, steps)
        if mask is not None:
            frames = frames.masked_fill(~mask[:, :, None, None, None], 0.0)
        x = self.patches(frames.flatten(0, 1)).unflatten(0, (batch, steps)).transpose(1, 2) + self.times[:steps]
        for block in self.blocks:
            x = block(x, mask)
        values = self.norm(x).mean(1)
        if mask is not None:
            values = values.masked_fill(~mask[..., None], 0.0)
        return Memory(values, mask, self.pool(values, mask))
