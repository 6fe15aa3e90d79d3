"""Objects in boxes of an image, as a memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridops.checks import check_positive_int, check_shape
from hybridops.layers.encoders import Memory
from hybridops.layers.pooling import MeanPooling


def roi_align(features: Tensor, boxes: Tensor, image_size: tuple[int, int], size: int = 3, samples: int = 2) -> Tensor:
    """What a map of features has in boxes, He et al. 2017, https://arxiv.org/abs/1703.06870.

    A box is cut into size × size parts, and each is the mean of samples × samples points of the map, between whose
    pixels is interpolated linearly. Beyond its edge the map goes on as at the edge.

    Args:
        features: (B, C, Y, X).
        boxes: (B, O, 4), pixels x1, y1, x2, y2 of the image.
        image_size: height and width of the image that the map is of.

    Returns:
        (B, O, C, size, size): as `torchvision.ops.roi_align` with `aligned=True` and `sampling_ratio=samples` gives it
        for boxes in the image.
    """
    check_shape("features", features, ("B", "C", "Y", "X"))
    check_shape("boxes", boxes, (features.shape[0], "O", 4))
    points = check_positive_int("size", size) * check_positive_int("samples", samples)
    share = (torch.arange(points, dtype=boxes.dtype, device=boxes.device) + 0.5) / points
    height, width = image_size
    x1, y1, x2, y2 = boxes[..., None].unbind(2)  # each (B, O, 1)
    x, y = (x1 + (x2 - x1) * share) / width, (y1 + (y2 - y1) * share) / height  # (B, O, points), of the image
    grid = torch.stack(torch.broadcast_tensors(x[:, :, None], y[..., None]), -1).flatten(1, 2)
    grid = (2 * grid - 1).to(features.dtype)
    sampled = F.grid_sample(features, grid, padding_mode="border", align_corners=False)  # (B, C, O·points, points)
    parts: Tensor = F.avg_pool2d(sampled, samples).unflatten(2, (-1, size))
    return parts.transpose(1, 2)


class ObjectEncoder(nn.Module):
    """A vector for each box of an image: what the backbone's map has there, and where it is.

        values_i = relu(W [roi_align(backbone(images), box_i); box_i and its area, as shares of the image])

    Args:
        backbone: images -> a map of features (B, C, Y, X).
        channels: its C.
        dim: channels D of a value.
        size: a box is read in size × size parts.

    Shape: images (B, channels, height, width), boxes (B, O, 4), pixels x1, y1, x2, y2, mask None or boolean (B, O),
    True = there is such a box. Gives a Memory: values (B, O, D), mask, pooled (B, D), the mean of those that are there.
    What is behind the mask may be anything.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, backbone: nn.Module, channels: int, dim: int, *, size: int = 3) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels, self.size = check_positive_int("channels", channels), check_positive_int("size", size)
        self.dim = check_positive_int("dim", dim)
        self.proj = nn.Linear(channels * size * size + 5, dim)
        self.pooling = MeanPooling()

    def forward(self, images: Tensor, boxes: Tensor, mask: Tensor | None = None) -> Memory:
        check_shape("images", images, ("B", "channels", "height", "width"))
        check_shape("boxes", boxes, (images.shape[0], "O", 4))
        if mask is not None:
            check_shape("mask", mask, boxes.shape[:2])
            boxes = boxes.masked_fill(~mask[..., None], 0.0)
        height, width = images.shape[2:]
        features = roi_align(self.backbone(images), boxes, (height, width), self.size)
        place = boxes / boxes.new_tensor([width, height, width, height])
        area = (place[..., 2:] - place[..., :2]).prod(2, keepdim=True)
        place = torch.cat([place, area], 2).to(features.dtype)
        values = torch.relu(self.proj(torch.cat([features.flatten(2), place], 2)))
        if mask is not None:
            values = values.masked_fill(~mask[..., None], 0.0)
        return Memory(values, mask, self.pooling(values, mask))
