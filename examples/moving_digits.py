"""Next-frame prediction with a ConvLSTM: two handwritten digits drift and bounce, as in Moving MNIST
(Srivastava et al. 2015, https://arxiv.org/abs/1502.04681), but with scikit-learn's digits, which need no download.

    frames x_1 ... x_T  →  2-layer ConvLSTM  →  1×1 convolution  →  σ  =  what x_2 ... x_{T+1} will be
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from examples.compare import Batch
from examples.figures import save_figure
from hybridops.reference import ConvLSTM

FRAME = 64  # pixels a side
DIGIT = 20
DIGITS = 2  # in every frame
SPEED = (1.0, 3.0)  # pixels a frame
HELD_OUT = 300  # of scikit-learn's 1797 digits


class NextFrame(nn.Module):
    """Logits of the frame after each frame: (B, T, 1, Y, X) -> (B, T, 1, Y, X).

    The ConvLSTM sees patch×patch pixels as channels, as is usual for Moving MNIST: the same kernel then looks `patch`
    times as far, at a `patch`² of the positions.
    """

    def __init__(self, hidden_dim: int = 16, kernel_size: int = 3, num_layers: int = 2, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        self.lstm = ConvLSTM(patch**2, hidden_dim, kernel_size, num_layers)
        self.head = nn.Conv2d(hidden_dim, patch**2, 1)
        nn.init.constant_(self.head.bias, -3.0)  # nearly all of a frame is black: begin with that

    def forward(self, frames: Tensor) -> Tensor:
        hidden, _ = self.lstm(F.pixel_unshuffle(frames, self.patch))
        logits = self.head(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        return F.pixel_shuffle(logits, self.patch)


@dataclass
class MovingDigits:
    name = "moving digits"
    family = "conv_lstm"
    spatial_dims = 2
    steps = 200
    learning_rate = 1e-2

    seed: int = 0
    batch_size: int = 4
    length: int = 11  # frames: ten to see, ten to predict
    glyphs: Tensor = field(default_factory=lambda: load_glyphs(), repr=False)  # (N, DIGIT, DIGIT)

    def make_model(self) -> NextFrame:
        return NextFrame()

    def batch(self, step: int) -> Batch:
        return (self._frames(self.glyphs[:-HELD_OUT], self.batch_size, step),)

    def held_out(self) -> Batch:
        return (self._frames(self.glyphs[-HELD_OUT:], 16, -1),)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        (frames,) = batch
        return F.binary_cross_entropy_with_logits(model(frames[:, :-1]), frames[:, 1:])

    def report(self, model: nn.Module) -> list[str]:
        frames, predicted = self._predict(model)
        error = F.mse_loss(predicted, frames[:, 1:]).item()
        copying = F.mse_loss(frames[:, :-1], frames[:, 1:]).item()
        return [f"squared error {error:.4f} a pixel; repeating the last frame would make {copying:.4f}"]

    def draw(self, model: nn.Module, path: Path, steps: int) -> None:
        frames, predicted = self._predict(model)
        examples = range(3)
        rows = [film for example in examples for film in (frames[example, 1:, 0], predicted[example, :, 0])]
        with save_figure(path, rows=len(rows), columns=self.length - 1, size=1.2) as axes:
            axes[0, 0].figure.suptitle(f"Held-out films, and each next frame as predicted after {steps} training steps")
            for t, ax in enumerate(axes[0]):
                ax.set_title(f"frame {t + 2}")
            for row, film in enumerate(rows):
                axes[row, 0].set_ylabel("predicted" if row % 2 else "true")
                for ax, image in zip(axes[row], film, strict=True):
                    ax.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
                    ax.set(xticks=[], yticks=[])

    @torch.no_grad()
    def _predict(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Held-out frames (B, T+1, 1, Y, X) and what the model makes of the first T: frames 2 to T+1."""
        (frames,) = self.held_out()
        device = next(model.parameters()).device
        return frames, model(frames[:, :-1].to(device)).sigmoid().cpu()

    def _frames(self, glyphs: Tensor, batch: int, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number + 1)
        return bounce(glyphs, batch, self.length, generator)


def load_glyphs() -> Tensor:
    """All of scikit-learn's handwritten digits, 8×8 scans enlarged: (1797, DIGIT, DIGIT) in [0, 1]."""
    scans = torch.tensor(load_digits().images, dtype=torch.float32) / 16
    return F.interpolate(scans[:, None], size=DIGIT, mode="bicubic").squeeze(1).clamp(0, 1)


def bounce(glyphs: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Films (batch, length, 1, FRAME, FRAME) of digits drawn from glyphs (N, DIGIT, DIGIT), on straight lines that the
    walls reflect. Where digits overlap, the brighter pixel shows.
    """
    room = FRAME - DIGIT  # an upper left corner is anywhere in [0, room]
    each = (batch, DIGITS)
    which = torch.randint(len(glyphs), each, generator=generator)
    start = torch.rand(*each, 2, generator=generator) * 2 * room
    angle = torch.rand(each, generator=generator) * 2 * torch.pi
    speed = torch.empty(each).uniform_(*SPEED, generator=generator)
    velocity = torch.stack([angle.sin(), angle.cos()], -1) * speed[..., None]

    straight = start[:, None] + velocity[:, None] * torch.arange(length)[:, None, None]  # (batch, length, DIGITS, 2)
    corner = room - (straight.remainder(2 * room) - room).abs()  # reflected: a triangle wave
    row, column = (corner.round().long()[..., None] + torch.arange(DIGIT)).unbind(-2)  # each (…, DIGIT)

    films = torch.zeros(batch, length, DIGITS, FRAME, FRAME)
    b, t, d = torch.meshgrid(torch.arange(batch), torch.arange(length), torch.arange(DIGITS), indexing="ij")
    at = tuple(index[..., None, None] for index in (b, t, d))
    films[(*at, row[..., :, None], column[..., None, :])] = glyphs[which][:, None]
    return films.amax(2, keepdim=True)
