"""A small one of every model, and inputs: what test_contract.py holds all of them to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops import models
from hybridops.layers import ConvEncoder, FrameEncoder

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """inputs(dtype) are of 4 examples. padded(inputs) are the same examples with more padding, in which anything
    stands; logits of what is no padding stay the same.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[torch.dtype], Inputs]
    padded: Callable[[Inputs], Inputs] | None = None
    exported: Callable[[Inputs], Inputs] = lambda inputs: inputs  # without lengths, which decide on shapes within


def words(*shape: int, vocabulary: int = 11) -> Tensor:
    return torch.randint(3, vocabulary, shape)


def more_words(inputs: Inputs) -> Inputs:
    return (torch.cat([inputs[0], words(4, 3)], 1), *inputs[1:])


def nothing_behind(inputs: Inputs) -> Inputs:
    """NaN behind the end of each row of the first of inputs, (4, 6, ...)."""
    behind = torch.arange(6) >= LENGTHS[:, None]
    return (inputs[0].masked_fill(behind.view(4, 6, *(1,) * (inputs[0].dim() - 2)), torch.nan), *inputs[1:])


def logits_alone(model: nn.Module) -> nn.Module:
    """Of a model that gives its state too."""
    model.register_forward_hook(lambda module, args, output: output[0])
    return model


LENGTHS = torch.tensor([6, 2, 5, 3])

CASES = {
    "Seq2Seq": Case(
        lambda: models.Seq2Seq(11, 9, 6, 8),
        lambda dtype: (words(4, 6), words(4, 5, vocabulary=9), LENGTHS),
        lambda inputs: (torch.cat([inputs[0], words(4, 3)], 1), *inputs[1:]),
    ),
    "Seq2Seq, LSTM, 2 layers": Case(
        lambda: models.Seq2Seq(11, 9, 6, 8, 5, 2, cell="lstm"),
        lambda dtype: (words(4, 6), words(4, 5, vocabulary=9), LENGTHS),
        lambda inputs: (torch.cat([inputs[0], words(4, 3)], 1), *inputs[1:]),
    ),
    "Seq2Seq without attention": Case(
        lambda: models.Seq2Seq(11, 9, 6, 8, attention=False),
        lambda dtype: (words(4, 6), words(4, 5, vocabulary=9), LENGTHS),
        lambda inputs: (torch.cat([inputs[0], words(4, 3)], 1), *inputs[1:]),
    ),
    "TransformerSeq2Seq": Case(
        lambda: models.TransformerSeq2Seq(11, 9, 8, 2, feedforward_dim=16, dropout=0.0),
        lambda dtype: (words(4, 6), words(4, 5, vocabulary=9), LENGTHS),
        more_words,
        lambda inputs: inputs[:2],
    ),
    "TextClassifier": Case(
        lambda: models.TextClassifier(11, 6, 3, 8, 2),
        lambda dtype: (words(4, 6), LENGTHS),
        more_words,
    ),
    "SentimentClassifier": Case(
        lambda: models.SentimentClassifier(11, 6, 8, 3, 2),
        lambda dtype: (words(4, 6), LENGTHS),
        more_words,
    ),
    "SequenceClassifier": Case(
        lambda: models.SequenceClassifier(5, 8, 3, 2, cell="gru", bidirectional=True),
        lambda dtype: (torch.randn(4, 6, 5, dtype=dtype), LENGTHS),
        lambda inputs: (F.pad(inputs[0], (0, 0, 0, 3), value=7.0), inputs[1]),
    ),
    "MLP": Case(lambda: models.MLP(5, (16,), 3), lambda dtype: (torch.randn(4, 5, dtype=dtype),)),
    "ConvClassifier": Case(lambda: models.ConvClassifier(2, 3), lambda dtype: (torch.randn(4, 2, 8, 9, dtype=dtype),)),
    "NeuralTuringMachine": Case(
        lambda: models.NeuralTuringMachine(5, 3, 32, 6, 4, num_read_heads=2),
        lambda dtype: (torch.randn(4, 6, 5).to(dtype), LENGTHS),
        nothing_behind,
    ),
    "Forecaster": Case(
        lambda: models.Forecaster(3, 8, relative=True), lambda dtype: (torch.randn(4, 6, 3, dtype=dtype),)
    ),
    "MusicGenerator": Case(
        lambda: logits_alone(models.MusicGenerator(9, 16, 32)), lambda dtype: (words(4, 6, vocabulary=9),)
    ),
    **{
        f"VisualQuestionAnswering, {fusion}": Case(
            lambda fusion=fusion: models.VisualQuestionAnswering(
                11, 5, fusion=fusion, embed_dim=6, hidden_dim=8, fused_dim=7, channels=(4, 8)
            ),
            lambda dtype: (torch.rand(4, 3, 16, 16).to(dtype), words(4, 6), LENGTHS),
            lambda inputs: (inputs[0], torch.cat([inputs[1], words(4, 3)], 1), inputs[2]),
        )
        for fusion in ("product", "mcb", "mfb", "additive", "co_attention", "alternating_co_attention")
    },
    **{
        f"MultimodalClassifier, {fusion}": Case(
            lambda fusion=fusion: models.MultimodalClassifier(2, 1, 3, fusion=fusion, channels=(4,), branch_dim=6),
            lambda dtype: (torch.randn(4, 6, 2).to(dtype), torch.rand(4, 1, 8, 8).to(dtype), LENGTHS),
            lambda inputs: (torch.cat([inputs[0], torch.full_like(inputs[0], torch.nan)], 1), *inputs[1:]),
        )
        for fusion in ("concat", "late")
    },
}


def scenes(dtype: torch.dtype) -> Inputs:
    """Images, words, boxes, and which there are."""
    low, size = torch.rand(4, 3, 2) * 8, 4 + torch.rand(4, 3, 2) * 4
    mask = torch.arange(3) < torch.tensor([[3], [1], [2], [3]])
    return torch.rand(4, 3, 16, 16, dtype=dtype), words(4, 5), torch.cat([low, low + size], 2).to(dtype), mask


def more_boxes(inputs: Inputs) -> Inputs:
    images, tokens, boxes, mask = inputs
    boxes = torch.cat([boxes.masked_fill(~mask[..., None], torch.nan), boxes[:, :2]], 1)
    return images, tokens, boxes, torch.cat([mask, torch.zeros_like(mask[:, :2])], 1)


CASES |= {
    f"ImageCaptioner, {', '.join(options.values())}": Case(
        lambda options=options: models.ImageCaptioner(11, 8, 12, 5, **options), lambda dtype: scenes(dtype)[:2]
    )
    for options in (
        {"context": "global"},
        {"context": "global", "image_at": "first"},
        {"context": "spatial"},
        {"context": "adaptive"},
        {"context": "adaptive", "fallback": "global"},
    )
}
CASES["ImageCaptioner, objects"] = Case(
    lambda: models.ImageCaptioner(11, 8, 12, 5, context="objects"), scenes, more_boxes
)
CASES["SceneGraphCaptioner"] = Case(lambda: models.SceneGraphCaptioner(11, 8, 12, 5), scenes, more_boxes)


def clips(dtype: torch.dtype, channels: int = 2) -> Inputs:
    return torch.rand(4, 6, channels, 8, 8, dtype=dtype), LENGTHS


def more_frames(inputs: Inputs) -> Inputs:
    """NaN behind the end of each clip, and three frames more of it."""
    *films, lengths = inputs
    steps = films[0].shape[1]

    def padded(film: Tensor) -> Tensor:
        there = torch.arange(film.shape[1]) < (lengths - steps + film.shape[1])[:, None]
        film = film.masked_fill(~there[..., None, None, None], torch.nan)
        return torch.cat([film, torch.full_like(film[:, :3], torch.nan)], 1)

    return (*map(padded, films), lengths)


def without_lengths(inputs: Inputs) -> Inputs:
    return inputs[:-1]


def video(in_channels: int = 2, **options) -> models.VideoClassifier:
    return models.VideoClassifier(in_channels, 3, 8, channels=(4, 8), attn_dim=5, **options)


CASES |= {
    "VideoClassifier, last": Case(lambda: video(cell="gru", bidirectional=True), clips, more_frames, without_lengths),
    "VideoClassifier, mean": Case(lambda: video(pooling="mean", regions=4), clips, more_frames, without_lengths),
    "VideoClassifier, attention": Case(lambda: video(pooling="attention"), clips, more_frames, without_lengths),
    "VideoClassifier, every frame": Case(lambda: video(pooling="none"), clips, exported=without_lengths),
    "VideoClassifier, no RNN": Case(lambda: video(pooling="attention", cell=None), clips, more_frames, without_lengths),
    "Conv3dClassifier": Case(
        lambda: models.Conv3dClassifier(2, 3, channels=(4, 8)), clips, more_frames, without_lengths
    ),
    "ConvLSTMClassifier": Case(
        lambda: models.ConvLSTMClassifier(2, 3, 8, channels=(4, 8)), clips, more_frames, without_lengths
    ),
    "SegmentClassifier": Case(lambda: models.SegmentClassifier(video(), 3), clips, more_frames, without_lengths),
    "TwoStreamClassifier": Case(
        lambda: models.TwoStreamClassifier(video(), video(4), learned=True),
        lambda dtype: (clips(dtype)[0], clips(dtype, 4)[0][:, 2:], LENGTHS),
        more_frames,
        without_lengths,
    ),
}
CASES |= {
    "ViTRecurrentClassifier": Case(
        lambda: models.ViTRecurrentClassifier(2, 8, 4, 3, 8, 1, 2, 6), clips, more_frames, without_lengths
    ),
    "ViTRecurrentClassifier, side by side": Case(
        lambda: models.ViTRecurrentClassifier(2, 8, 4, 3, 8, 1, 2, 6, side_by_side=True),
        clips,
        more_frames,
        without_lengths,
    ),
    "SpaceTimeClassifier": Case(
        lambda: models.SpaceTimeClassifier(2, 8, 4, 9, 3, 8, 1, 2), clips, more_frames, without_lengths
    ),
    "GraphRecurrentClassifier": Case(
        lambda: models.GraphRecurrentClassifier(2, 4, 3, 8, 1, 6, channels=(4, 8)), clips, more_frames, without_lengths
    ),
}
CASES["NeuralTuringMachine, frames"] = Case(
    lambda: models.NeuralTuringMachine(8, 3, 32, 6, 4, encoder=FrameEncoder(ConvEncoder(2, (4, 8)))),
    clips,
    nothing_behind,
    without_lengths,
)


def frames(dtype: torch.dtype) -> Tensor:
    return torch.rand(4, 3, 2, 4, 6).to(dtype)


CASES |= {
    "ConvLSTMForecaster": Case(
        lambda: models.ConvLSTMForecaster(2, 8, patch=2, steps=3), lambda dtype: (frames(dtype),)
    ),
    "ConvLSTMForecaster, relative, conditional, own frames": Case(
        lambda: models.ConvLSTMForecaster(2, 8, steps=3, conditional=True, logits=False, relative=True),
        lambda dtype: (frames(dtype),),
    ),
    "ConvLSTMForecaster, conditional": Case(
        lambda: models.ConvLSTMForecaster(2, 8, num_layers=1, conditional=True),
        lambda dtype: (frames(dtype), frames(dtype)),
    ),
}


def film(dtype: torch.dtype) -> Tensor:
    return torch.rand(4, 5, 3, 16, 16).to(dtype)


def more_film(inputs: Inputs) -> Inputs:
    frames, *others, lengths = inputs
    behind = torch.arange(5) >= (lengths if lengths.dim() == 1 else lengths.sum(1))[:, None]
    garbage = frames.masked_fill(behind[..., None, None, None], torch.nan)
    return torch.cat([garbage, torch.full_like(frames[:, :2], torch.nan)], 1), *others, lengths


def each_its_own_video(model: nn.Module) -> nn.Module:
    """Of a model that takes which of the videos each question is about."""
    model.register_forward_pre_hook(lambda module, args: (*args[:3], None, *args[3:]))
    return model


FRAMES, SHOTS = torch.tensor([5, 2, 4, 3]), torch.tensor([[2, 1, 2], [2, 0, 0], [1, 3, 0], [1, 1, 1]])
CASES |= {
    f"VideoCaptioner, {context}": Case(
        lambda context=context: models.VideoCaptioner(11, 8, 12, 5, context=context),
        lambda dtype, lengths=SHOTS if context == "hierarchical" else FRAMES: (film(dtype), words(4, 5), lengths),
        more_film,
        lambda inputs: inputs[:2],
    )
    for context in ("mean", "temporal", "hierarchical")
}
CASES |= {
    f"VideoQuestionAnswering, {fusion}{', shots' if shots else ''}": Case(
        lambda fusion=fusion, shots=shots: each_its_own_video(
            models.VideoQuestionAnswering(
                11, 5, fusion=fusion, embed_dim=6, hidden_dim=8, channels=(4, 8), bidirectional=shots, shots=shots
            )
        ),
        lambda dtype, lengths=SHOTS if shots else FRAMES: (film(dtype), words(4, 6), LENGTHS, lengths),
        more_film,
        lambda inputs: inputs[:3],
    )
    for fusion, shots in (("additive", False), ("bilinear", False), ("additive", True))
}
