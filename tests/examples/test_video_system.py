"""The video system runs, on a little of the data, and its own parts do what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from examples.data.moving_sprites import MOTIONS
from examples.systems import SYSTEMS, video, video_training
from examples.systems.table import Options, Row
from hybridops.models import Conv3dClassifier, ConvLSTMClassifier, VideoClassifier
from tests.tolerances import FLOAT64


@pytest.mark.slow
def test_it_runs(tmp_path):
    assert "video" in SYSTEMS
    rows = video.run(Options(smoke=True, out=tmp_path))
    assert all(isinstance(row, Row) for row in rows)
    assert sum(row.must != "" for row in rows) == 12
    assert {path.name for path in tmp_path.iterdir()} == {"video_attention.png", "video_flow.png", "video_lengths.md"}


def test_frames_of_half_the_size():
    frames = torch.randint(256, (2, 3, 1, 4, 6), dtype=torch.uint8)
    halved = video_training.half_size(frames)
    assert halved.dtype == torch.uint8
    assert halved.shape == (2, 3, 1, 2, 3)
    assert halved[1, 2, 0, 1, 0] == frames[1, 2, 0, 2:, :2].double().mean().round()
    flow = torch.randn(2, 3, 2, 4, 6).half()
    halved = video_training.half_size(flow)
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved[0, 1, 1, 0, 2], flow[0, 1, 1, :2, 4:].float().mean().half())


@pytest.mark.parametrize("kind", [VideoClassifier, Conv3dClassifier, ConvLSTMClassifier])
def test_channels_last_is_the_same_network(kind):
    model, clips = kind(1, 3, channels=(2, 4)).double().eval(), torch.rand(2, 3, 1, 8, 8, dtype=torch.float64)
    logits = model(clips)
    torch.testing.assert_close(video_training.channels_last(model)(clips), logits, **FLOAT64)
    assert any(weight.dim() > 3 and not weight.is_contiguous() for weight in model.parameters())


class Known(nn.Module):
    """Says what the first frame's first pixel is."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot((255 * frames[:, 0, 0, 0, 0]).round().long(), video.CLASSES).float()


def test_scores_of_both_halves_of_a_label():
    kinds = len(MOTIONS)
    said = torch.tensor([0, 5, 7, 4 * kinds + 1], dtype=torch.uint8)
    label = torch.tensor([0, 6, 3, 5 * kinds + 2])  # both right; the digit; the motion; neither
    clips = TensorDataset(said[:, None, None, None, None].expand(4, 2, 1, 3, 3), label)
    assert video.scores_of(Known(), clips) == (0.25, 0.5, 0.5)
