"""Graphs of objects, against their equations in loops; nodes that are not there change nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hybridops import use_backend
from hybridops.layers import Memory
from hybridops.layers.graph import GraphConvolution, GraphEncoder, RelationGraph, box_relations, similarity_graph
from tests.tolerances import EXACT, FLOAT64

MASK = torch.tensor([[True, True, False, True], [False, True, False, False]])


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def draw_boxes(*shape: int) -> torch.Tensor:
    corner = torch.rand(*shape, 2, dtype=torch.float64)
    return torch.cat([corner, corner + 0.1 + torch.rand(*shape, 2, dtype=torch.float64)], -1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("with_boxes", [False, True])
def test_relations_are_an_mlp_of_pairs(with_boxes):
    nodes, boxes = draw(2, 4, 3), draw_boxes(2, 4) if with_boxes else None
    graph = RelationGraph(3, 5, boxes=with_boxes).double()
    found = graph(nodes, boxes)
    parts = [graph.taker.weight, graph.giver.weight, *([graph.boxes.weight] if with_boxes else [])]
    weight = torch.cat(parts, 1)
    for b in range(2):
        for i in range(4):
            scores = []
            for j in range(4):
                pair = [nodes[b, i], nodes[b, j], *([box_relations(boxes)[b, i, j]] if with_boxes else [])]
                hidden = torch.relu(weight @ torch.cat(pair) + graph.taker.bias)
                scores.append((graph.score.weight @ hidden)[0])
            torch.testing.assert_close(found[b, i], torch.softmax(torch.stack(scores), 0), **FLOAT64)


def test_a_score_that_is_more_than_its_weight_is_called():
    nodes, graph = draw(2, 4, 3), RelationGraph(3, 5, boxes=False).double()
    before = graph(nodes)
    graph.score.register_forward_hook(lambda score, args, out: out)
    torch.testing.assert_close(graph(nodes), before, **FLOAT64)
    graph.score.register_forward_hook(lambda score, args, out: 0 * out)
    torch.testing.assert_close(graph(nodes), torch.full((2, 4, 4), 0.25, dtype=torch.float64), **FLOAT64)


def test_box_relations_by_hand():
    """A wide box, and a square of half its height to the right of it and below, that it covers by a quarter."""
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 2.0], [3.5, 1.5, 4.5, 2.5]]], dtype=torch.float64)
    found = box_relations(boxes)
    overlap = 0.25 / (8.0 + 1.0 - 0.25)
    log = torch.tensor([4.0, 2.0], dtype=torch.float64).log().tolist()
    expected = torch.tensor([[0.5, 0.5, -log[0], -log[1], overlap], [-2.0, -1.0, *log, overlap]], dtype=torch.float64)
    torch.testing.assert_close(found[0, [0, 1], [1, 0]], expected, **FLOAT64)
    torch.testing.assert_close(
        found[0, [0, 1], [0, 1]], torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]] * 2, dtype=torch.float64), **FLOAT64
    )


def test_box_relations_do_not_know_scale_or_place():
    boxes = draw_boxes(2, 4)
    torch.testing.assert_close(box_relations(7.0 * boxes - 3.0), box_relations(boxes), **FLOAT64)


def test_boxes_that_do_not_overlap():
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]]])
    assert box_relations(boxes)[0, 0, 1, 4] == 0.0


@given(nodes=st.integers(1, 5), dim=st.integers(1, 4))
def test_similarity_is_a_softmax_of_products(nodes, dim):
    x = draw(2, nodes, dim)
    torch.testing.assert_close(
        similarity_graph(x), torch.softmax(torch.einsum("bid,bjd->bij", x, x) / dim**0.5, 2), **FLOAT64
    )
    torch.testing.assert_close(similarity_graph(x, scale=0.0), torch.full_like(x @ x.mT, 1 / nodes), **FLOAT64)


def test_convolution_of_a_star():
    layer = GraphConvolution(2, 3, bias=False)
    with torch.no_grad():
        layer.proj.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    adjacency = torch.zeros(4, 4)
    adjacency[1, [0, 2, 3]] = adjacency[[0, 2, 3], 1] = 1.0
    expected = torch.tensor(
        [[0.7071, 1.5607, 2.2678], [4.0355, 5.3462, 9.3817], [2.7071, 3.5607, 6.2678], [3.7071, 4.5607, 8.2678]]
    )
    nodes = torch.arange(8.0).view(1, 4, 2)
    torch.testing.assert_close(layer(nodes, adjacency)[0], expected, rtol=0.0, atol=5e-5)  # the figures' last place
    torch.testing.assert_close(layer(nodes, adjacency.bool()[None])[0], expected, rtol=0.0, atol=5e-5)


def test_convolution_by_edges_as_they_are():
    nodes, weights = draw(2, 4, 3), draw(2, 4, 4)
    layer = GraphConvolution(3, 5, normalize=False).double()
    expected = torch.einsum("bij,bjd,od->bio", weights, nodes, layer.proj.weight) + layer.bias
    torch.testing.assert_close(layer(nodes, weights), expected, **FLOAT64)


@pytest.mark.parametrize("normalize", [False, True])
def test_convolution_of_what_is_there(normalize):
    """As if the nodes behind the mask, and their edges, had never been; NaN there harms nothing."""
    layer = GraphConvolution(3, 5, normalize=normalize).double()
    nodes, edges = draw(2, 4, 3), torch.rand(2, 4, 4, dtype=torch.float64)
    hidden = nodes.masked_fill(~MASK[..., None], torch.nan)
    hidden_edges = edges.masked_fill(~(MASK[:, :, None] & MASK[:, None]), torch.nan)
    found = layer(hidden, hidden_edges, MASK)
    for b in range(2):
        there = MASK[b].nonzero().flatten()
        alone = layer(nodes[[b]][:, there], edges[[b]][:, there][:, :, there])
        torch.testing.assert_close(found[b, there], alone[0], **FLOAT64)
        assert (found[b, ~MASK[b]] == 0.0).all()


@pytest.mark.parametrize("kind", ["relations", "boxes", "similarity"])
def test_edges_of_what_is_there(kind):
    nodes, boxes = draw(2, 4, 3), draw_boxes(2, 4)
    graph = RelationGraph(3, 5, boxes=kind == "boxes").double()

    def edges(nodes, boxes, mask=None):
        if kind == "similarity":
            return similarity_graph(nodes, mask)
        return graph(nodes, boxes if kind == "boxes" else None, mask)

    hidden = [x.masked_fill(~MASK[..., None], torch.nan).requires_grad_() for x in (nodes, boxes)]
    found = edges(*hidden, MASK)
    for b in range(2):
        there = MASK[b].nonzero().flatten()
        alone = edges(nodes[[b]][:, there], boxes[[b]][:, there])
        torch.testing.assert_close(found[b, there][:, there], alone[0], **FLOAT64)
        assert (found[b, :, ~MASK[b]] == 0.0).all()
        assert (found[b, ~MASK[b]] == 0.0).all()
    (found * draw(2, 4, 4)).sum().backward()
    assert hidden[0].grad.isfinite().all()
    assert (hidden[0].grad[~MASK] == 0.0).all()
    if kind == "boxes":
        assert hidden[1].grad.isfinite().all()


@pytest.mark.parametrize("with_boxes", [False, True])
def test_gradients(with_boxes):
    graph, layer = RelationGraph(3, 5, boxes=with_boxes).double(), GraphConvolution(3, 2, normalize=False).double()
    nodes = draw(2, 4, 3).requires_grad_()
    boxes = draw_boxes(2, 4).requires_grad_() if with_boxes else None
    inputs = (nodes, boxes) if with_boxes else (nodes,)
    assert torch.autograd.gradcheck(lambda *x: layer(x[0], graph(*x, nodes_mask=MASK), MASK), inputs)


def test_gradients_of_a_normalised_convolution():
    layer = GraphConvolution(3, 2).double()
    nodes, edges = draw(2, 4, 3).requires_grad_(), torch.rand(2, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a: layer(x, a, MASK), (nodes, edges))


def test_fused_is_the_reference():
    graph, nodes = RelationGraph(3, 5, boxes=False).double(), draw(2, 4, 3)
    fused = graph(nodes, nodes_mask=MASK)
    with use_backend("reference"):
        torch.testing.assert_close(graph(nodes, nodes_mask=MASK), fused, **FLOAT64)


def test_empty():
    graph, layer = RelationGraph(3, 5), GraphConvolution(3, 2)
    edges = graph(torch.zeros(0, 4, 3), torch.zeros(0, 4, 4))
    assert edges.shape == (0, 4, 4)
    assert layer(torch.zeros(0, 4, 3), edges).shape == (0, 4, 2)
    no_objects = layer(torch.zeros(2, 0, 3), torch.zeros(2, 0, 0))
    torch.testing.assert_close(no_objects, torch.zeros(2, 0, 2), **EXACT)


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        (ValueError, lambda: RelationGraph(3)(torch.zeros(2, 4, 3)), r"boxes must be \(B, N, 4\), as the graph"),
        (ValueError, lambda: RelationGraph(3, boxes=False)(torch.zeros(2, 4, 3), torch.zeros(2, 4, 4)), "boxes must"),
        (ValueError, lambda: RelationGraph(3)(torch.zeros(2, 4, 3), torch.zeros(2, 3, 4)), "boxes must have shape"),
        (ValueError, lambda: RelationGraph(3)(torch.zeros(2, 4, 5)), r"nodes must have shape \(B, T, 3\)"),
        (TypeError, lambda: similarity_graph(torch.zeros(2, 4, 3), torch.ones(2, 4)), "nodes_mask must be a boolean"),
        (ValueError, lambda: GraphConvolution(3, 2)(torch.zeros(2, 4, 3), torch.zeros(3, 4, 4)), "adjacency must have"),
        (ValueError, lambda: GraphConvolution(3, 2)(torch.zeros(2, 4, 3), torch.zeros(4, 5)), r"adjacency .*\(4, 4\)"),
        (ValueError, lambda: GraphConvolution(3, 0), "out_dim must be a positive int, got 0"),
    ],
)  # fmt: skip
def test_errors(kind, call, message):
    with pytest.raises(kind, match=message):
        call()


class Nodes(nn.Module):
    """An image that is its own regions."""

    dim = 3

    def __init__(self, mask: torch.Tensor | None = None) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, images: torch.Tensor) -> Memory:
        return Memory(images, self.mask, images.sum(1))


def test_encoder():
    encoder, nodes = GraphEncoder(Nodes(MASK), 4, 5, 2).double(), draw(2, 4, 3)
    nodes[~MASK] = 7.0
    memory = encoder(nodes)
    h = torch.relu(encoder.proj(nodes) + encoder.positions)
    for b in range(2):
        there = MASK[b]
        of_row = h[b : b + 1, there]
        graph = torch.softmax((of_row @ of_row.mT) / 5**0.5, 2)
        for layer in encoder.layers:
            of_row = torch.relu(0.5 * (graph + torch.eye(int(there.sum()))) @ layer.proj(of_row) + layer.bias)
        torch.testing.assert_close(memory.values[b, there], of_row[0], **FLOAT64)
        torch.testing.assert_close(memory.pooled[b], of_row[0].mean(0), **FLOAT64)
    assert not memory.values[~MASK].any()


def test_encoder_knows_how_many_regions():
    with pytest.raises(ValueError, match=r"values of encoder must have shape \(B, 6, 3\), got \(2, 4, 3\)"):
        GraphEncoder(Nodes(), 6)(torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match="num_layers must be a positive int, got 0"):
        GraphEncoder(Nodes(), 4, num_layers=0)
