"""Late fusion of video: decisions on segments of a clip, and on its frames and its optical flow, put together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridops.checks import check_positive_int, check_shape
from hybridops.layers.frames import SegmentConsensus, check_clips
from hybridops.layers.fusion import LateFusion


class SegmentClassifier(nn.Module):
    """A clip is cut into segments, one classifier judges each, and the mean of its scores is the decision: the segment
    consensus of temporal segment networks, Wang et al. 2016, https://arxiv.org/abs/1608.00859.

        logits = (1/n) Σ_s classifier(frames ⌊s L / n⌋ to ⌊(s + 1) L / n⌋)        of a clip of L frames, s = 0 … n − 1

    Args:
        classifier: frames, lengths -> logits (N, K); a `VideoClassifier`, say. All segments share its weights.
        segments: n.

    Shape: frames (B, T, C, Y, X), lengths None or integers (B,); gives logits (B, K). A clip of fewer than n frames has
    one segment for each. What stands behind the end of a clip changes nothing.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, classifier: nn.Module, segments: int) -> None:
        super().__init__()
        self.classifier, self.segments = classifier, check_positive_int("segments", segments)
        self.consensus = SegmentConsensus()

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        check_clips(frames, lengths)
        parts, part_lengths = split(frames, self.segments, lengths)
        logits = self.classifier(parts, part_lengths)
        check_shape("what the classifier gives", logits, (parts.shape[0], "K"))
        mask = None if part_lengths is None else part_lengths.view(-1, self.segments) > 0
        out: Tensor = self.consensus(logits.unflatten(0, (-1, self.segments)), mask)
        return out


def split(frames: Tensor, count: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Clips (B, T, *), each cut into `count` segments of equal lengths, or that differ by one frame: (B·count, T', *),
    the segments of a clip one after the other, and their lengths; None where all are as long.
    """
    batch, steps = frames.shape[:2]
    if lengths is None and steps and steps % count == 0:
        return frames.unflatten(1, (count, steps // count)).flatten(0, 1), None
    if lengths is None:
        lengths = torch.full((batch,), steps, device=frames.device)
    edges = lengths.long().clamp(0, steps)[:, None] * torch.arange(count + 1, device=frames.device) // count
    index = edges[:, :-1, None] + torch.arange(-(-steps // count), device=frames.device)
    rows = torch.arange(batch, device=frames.device)[:, None, None]
    return frames[rows, index.clamp(max=max(steps - 1, 0))].flatten(0, 1), edges.diff(dim=1).flatten()


class TwoStreamClassifier(nn.Module):
    """What is seen and how it moves: two classifiers, one of frames and one of optical flow, and a mixture of their
    decisions (Simonyan & Zisserman 2014, https://arxiv.org/abs/1406.2199).

        P = α P_frames + (1 − α) P_flow

    Args:
        frame_stream, flow_stream: frames, lengths -> logits (B, K); `VideoClassifier`s, say. Each may be trained
            alone before.
        alpha: α, at the start.
        learned: whether it is trained.
        average: "probabilities", or "logits" for the mean of scores; see `LateFusion`.

    Shape: frames (B, T, C, Y, X); flow (B, T', 2L, Y, X), T' <= T: at each step the x and y of L flows in a row, as
    many channels as flow_stream takes; lengths None or integers (B,), of the frames: of the flow there are T − T' fewer
    steps. Gives logits (B, K). What stands behind the end of a clip changes nothing.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        frame_stream: nn.Module,
        flow_stream: nn.Module,
        *,
        alpha: float = 0.5,
        learned: bool = False,
        average: str = "probabilities",
    ) -> None:
        super().__init__()
        self.frame_stream, self.flow_stream = frame_stream, flow_stream
        self.fusion = LateFusion(alpha, average=average, learned=learned)

    def forward(self, frames: Tensor, flow: Tensor, lengths: Tensor | None = None) -> Tensor:
        check_clips(frames, lengths)
        check_shape("flow", flow, (frames.shape[0], "T'", "2L", "Y", "X"))
        steps = frames.shape[1]
        if flow.shape[1] > steps:
            raise ValueError(f"flow must have at most {steps} steps, those of frames, got {flow.shape[1]}")
        flow_lengths = None
        if lengths is not None:
            flow_lengths = (lengths.long().clamp(0, steps) - (steps - flow.shape[1])).clamp(min=0)
        logits: Tensor = self.fusion(self.frame_stream(frames, lengths), self.flow_stream(flow, flow_lengths))
        return logits
