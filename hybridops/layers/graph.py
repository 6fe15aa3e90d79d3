"""Graphs of objects: nodes (B, N, D), of which a mask (B, N), True = there is one, says which are.

Edges are (B, N, N), row i the weights with which node i takes from the others. What is behind the mask may be anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import hybridops.functional as HF
from hybridops.checks import check_bool, check_number, check_positive_int, check_shape
from hybridops.formulas.additive_attention import masked_softmax
from hybridops.layers.encoders import Memory
from hybridops.layers.masks import mask_padding
from hybridops.layers.pooling import MeanPooling
from hybridops.modules.additive_attention import reason_not_a_row
from hybridops.modules.parts import recompute_weights

BOX_RELATIONS = 5


class RelationGraph(nn.Module):
    """Learned edges: R_ij = softmax_j MLP([o_i; o_j; s_ij]), where MLP(x) = w · relu(W x + b).

    Args:
        dim, hidden_dim: channels D of an object, H of the hidden layer.
        boxes: whether s_ij is there: see `box_relations`.

    Shape: nodes (B, N, D), boxes (B, N, 4) or None, nodes_mask None or boolean (B, N); gives (B, N, N), whose rows sum
    to 1 over the objects that are there. Those that are not neither give nor take: zeros.

    Without boxes the score is the additive one of `functional.additive_scores`, and fused where `score` is no more than
    its weight; with them a (B, N, N, H) is made.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, dim: int, hidden_dim: int = 128, *, boxes: bool = True) -> None:
        super().__init__()
        self.dim = check_positive_int("dim", dim)
        # W [o_i; o_j; s_ij] in its three parts: no (B, N, N, 2D) is made
        self.taker = nn.Linear(dim, check_positive_int("hidden_dim", hidden_dim))
        self.giver = nn.Linear(dim, hidden_dim, bias=False)
        self.boxes = nn.Linear(BOX_RELATIONS, hidden_dim, bias=False) if check_bool("boxes", boxes) else None
        self.score = nn.Linear(hidden_dim, 1, bias=False)  # a bias would cancel in the softmax

    def forward(self, nodes: Tensor, boxes: Tensor | None = None, nodes_mask: Tensor | None = None) -> Tensor:
        nodes = mask_padding("nodes", nodes, nodes_mask, self.dim)
        if (boxes is None) != (self.boxes is None):
            raise ValueError(f"boxes must be {'None' if self.boxes is None else '(B, N, 4)'}, as the graph was made")
        taker, giver = self.taker(nodes), self.giver(nodes)
        if self.boxes is None and reason_not_a_row(self.score) is None:
            recompute_weights(self.score)
            scores = HF.additive_scores(taker, giver, self.score.weight[0], activation="relu")
        else:
            pairs = taker[:, :, None] + giver[:, None]
            if boxes is not None and self.boxes is not None:
                check_shape("boxes", boxes, (*nodes.shape[:2], 4))
                pairs = pairs + self.boxes(box_relations(boxes, nodes_mask))
            scores = self.score(torch.relu(pairs)).squeeze(3)
        return edges(scores, nodes_mask)


def box_relations(boxes: Tensor, mask: Tensor | None = None) -> Tensor:
    """Where box j is, seen from box i: (B, N, N, 5) of boxes (B, N, 4), as x_1 < x_2, y_1 < y_2 in x_1, y_1, x_2, y_2.

        (x_j − x_i) / w_i, (y_j − y_i) / h_i, log(w_j / w_i), log(h_j / h_i)      of centres and sizes, Girshick et al.
        intersection / union                                                       2014, arxiv.org/abs/1311.2524

    Pairs with a box that mask (B, N) leaves out have zeros. A box without width or height gives what is not finite.
    """
    check_shape("boxes", boxes, ("B", "N", 4))
    if mask is not None:
        check_shape("mask", mask, boxes.shape[:2])
        boxes = torch.where(mask[..., None], boxes, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
    low, high = boxes[..., :2], boxes[..., 2:]
    size, centre = high - low, (low + high) / 2
    offset = (centre[:, None] - centre[:, :, None]) / size[:, :, None]
    ratio = size.log()[:, None] - size.log()[:, :, None]
    overlap = torch.minimum(high[:, None], high[:, :, None]) - torch.maximum(low[:, None], low[:, :, None])
    intersection, area = overlap.clamp(min=0.0).prod(3), size.prod(2)
    union = area[:, None] + area[:, :, None] - intersection
    found = torch.cat([offset, ratio, (intersection / union)[..., None]], 3)
    return found if mask is None else found.masked_fill(~_pairs(mask)[..., None], 0.0)


def similarity_graph(nodes: Tensor, nodes_mask: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """Edges A_ij = softmax_j(scale o_i · o_j), (B, N, N); scale None: 1/√D. The softmax is what makes them weights:
    similarities may be negative, and so may be what they sum to.
    """
    check_shape("nodes", nodes, ("B", "N", "D"))
    nodes = mask_padding("nodes", nodes, nodes_mask, nodes.shape[2])
    scale = nodes.shape[2] ** -0.5 if scale is None else check_number("scale", scale)
    return edges(scale * nodes @ nodes.transpose(1, 2), nodes_mask)


class GraphConvolution(nn.Module):
    """A layer of a graph convolutional network, Kipf & Welling 2017, https://arxiv.org/abs/1609.02907; a nonlinearity
    comes after it.

        normalize=True:   H' = D̃^−½ Ã D̃^−½ H W + b        Ã = A + I, D̃ the sums of its rows
        normalize=False:  H' = A H W + b                     for edges whose rows are weights already, as those of
                                                             `RelationGraph` and `similarity_graph`
    Args:
        in_dim, out_dim: channels of a node before and after.
        bias: whether there is b.
        normalize: which.

    Shape: nodes (B, N, in_dim), adjacency (B, N, N) or (N, N), boolean or floating, >= 0 to be normalised, nodes_mask
    None or boolean (B, N); gives (B, N, out_dim), zeros where there is no node. Edges of such nodes do not count.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool = True, normalize: bool = True) -> None:
        super().__init__()
        self.in_dim = check_positive_int("in_dim", in_dim)
        self.normalize = check_bool("normalize", normalize)
        self.proj = nn.Linear(in_dim, check_positive_int("out_dim", out_dim), bias=False)
        self.bias = nn.Parameter(torch.zeros(out_dim)) if check_bool("bias", bias) else None

    def forward(self, nodes: Tensor, adjacency: Tensor, nodes_mask: Tensor | None = None) -> Tensor:
        nodes = mask_padding("nodes", nodes, nodes_mask, self.in_dim)
        batch, count, _ = nodes.shape
        check_shape("adjacency", adjacency, (count, count) if adjacency.dim() == 2 else (batch, count, count))
        weights = adjacency.to(nodes.dtype)
        if nodes_mask is not None:
            weights = torch.where(_pairs(nodes_mask), weights, 0.0)
        if self.normalize:
            weights = weights + torch.eye(count, dtype=nodes.dtype, device=nodes.device)
            root = weights.sum(-1).rsqrt()
            weights = root[..., None] * weights * root[..., None, :]
        out: Tensor = weights @ self.proj(nodes)
        if self.bias is not None:
            out = out + self.bias
        return out if nodes_mask is None else out.masked_fill(~nodes_mask[..., None], 0.0)


class GraphEncoder(nn.Module):
    """An encoder of images, whose regions are then nodes of a graph, joined as far as they are alike.

        o_i = relu(W v_i + b + P_i)            A = similarity_graph(o)          H^0 = o
        H^l = relu(GraphConvolution(H^{l−1}, A))                               pooled = mean_i H^L_i

    Args:
        encoder: gives a Memory of images (B, C, Y, X), whose values are v, and has its channels as `dim`.
        num_regions: N of v, each with a learned vector P_i of where it is.
        hidden_dim, num_layers: channels D of a node, graph convolutions.

    Shape: images as of the encoder. Gives a Memory: values (B, N, D), mask as of the encoder, pooled (B, D).

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(self, encoder: nn.Module, num_regions: int, hidden_dim: int = 64, num_layers: int = 2) -> None:
        super().__init__()
        dim: Any = encoder.dim
        self.encoder, self.dim = encoder, check_positive_int("hidden_dim", hidden_dim)
        self.proj = nn.Linear(check_positive_int("dim of encoder", dim), hidden_dim)
        self.positions = nn.Parameter(torch.empty(check_positive_int("num_regions", num_regions), hidden_dim))
        nn.init.normal_(self.positions, std=hidden_dim**-0.5)
        self.layers = nn.ModuleList(
            GraphConvolution(hidden_dim, hidden_dim) for _ in range(check_positive_int("num_layers", num_layers))
        )
        self.pool = MeanPooling()

    def forward(self, images: Tensor) -> Memory:
        memory: Memory = self.encoder(images)
        check_shape("values of encoder", memory.values, ("B", len(self.positions), self.proj.in_features))
        nodes = torch.relu(self.proj(memory.values) + self.positions)
        graph = similarity_graph(nodes, memory.mask)
        for layer in self.layers:
            nodes = torch.relu(layer(nodes, graph, memory.mask))
        return Memory(nodes, memory.mask, self.pool(nodes, memory.mask))


def edges(scores: Tensor, nodes_mask: Tensor | None) -> Tensor:
    """The softmax of each row of (B, N, N), over nodes that are there; rows of the others are zeros."""
    return masked_softmax(scores, None if nodes_mask is None else _pairs(nodes_mask))


def _pairs(mask: Tensor) -> Tensor:
    """(B, N, N), True where both are there."""
    return mask[:, :, None] & mask[:, None]
