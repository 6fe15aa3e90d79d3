"""The plain ConvLSTM modules against the text-book cell, and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from hybridops.reference import ConvLSTM, ConvLSTMCell

# float64, values of order one, sums of some hundred terms in another order: about 1e-14 of rounding, and room.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}

# spatial sizes, kernel, peephole, bias: each number of dimensions, kernel shape, peephole and None at least once
CASES = [
    ((7,), (3,), None, True),
    ((6,), (5,), "spatial", False),
    ((5, 4), (3, 3), "channel", True),
    ((4, 5), (3, 5), "spatial", True),
    ((3, 3), (1, 1), None, False),
    ((1, 1), (3, 3), "channel", True),
    ((3, 4, 2), (3, 1, 5), "channel", False),
    ((2, 3, 3), (3, 3, 3), "spatial", True),
]
case = pytest.mark.parametrize(("space", "kernel", "peephole", "bias"), CASES)


class DocumentCell(nn.Module):
    """As it stands in text books (gate order f, i, g, o)."""

    def __init__(self, input_dim, hidden_dim, kernel_size):
        super().__init__()
        self.conv = nn.Conv2d(input_dim + hidden_dim, 4 * hidden_dim, kernel_size, padding=kernel_size // 2)

    def forward(self, x_t, states):
        h_prev, c_prev = states
        f, i, g, o = torch.chunk(self.conv(torch.cat([x_t, h_prev], dim=1)), 4, dim=1)
        c_t = torch.sigmoid(f) * c_prev + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c_t), c_t


def make_problem(space, kernel, peephole=None, bias=True, batch=2, steps=4, dtype=torch.float64):
    """A one-layer ConvLSTM with 3 -> 2 channels and a peephole that does something; x, h0, c0 that require grad."""
    torch.manual_seed(0)
    module = ConvLSTM(3, 2, kernel, bias=bias, peephole=peephole, spatial_size=space, dtype=torch.float64)
    if peephole:
        nn.init.normal_(module.cell_list[0].peephole)
    x = torch.randn(batch, steps, 3, *space, dtype=torch.float64)
    h0, c0 = torch.randn(2, batch, 2, *space, dtype=torch.float64)
    x, h0, c0 = (tensor.to(dtype).requires_grad_() for tensor in (x, h0, c0))
    return module.to(dtype), x, h0, c0


def run_module(module, x, h0, c0):
    output, (h_n, c_n) = module(x, (h0[None], c0[None]))
    return output, h_n[0], c_n[0]


def test_cell_is_the_documents_cell():
    """Its dummy usage, with its state_dict: 4 videos of 5 frames (smaller ones)."""
    document, cell = DocumentCell(3, 16, kernel_size=3), ConvLSTMCell(3, 16, kernel_size=3)
    cell.load_state_dict(document.state_dict())
    video = torch.randn(4, 5, 3, 12, 12)
    h = c = h_want = c_want = torch.zeros(4, 16, 12, 12)
    for t in range(5):
        h, c = cell(video[:, t, :, :, :], (h, c))
        h_want, c_want = document(video[:, t, :, :, :], (h_want, c_want))
    torch.testing.assert_close((h, c), (h_want, c_want), rtol=0, atol=0)  # the same operations
    torch.testing.assert_close(cell(video[:, 0]), cell(video[:, 0], (torch.zeros_like(h), torch.zeros_like(c))))


def test_one_pixel_by_hand():
    """f and i see the old cell, o the new one."""

    def sigmoid(z):
        return 1 / (1 + math.exp(-z))

    rows = [[0.1, 0.2, 0.1], [0.3, 0.4, -0.2], [0.5, 0.6, 0.3], [0.7, 0.8, -0.4]]  # x, h, bias of f, i, g, o
    cell = ConvLSTMCell(1, 1, 1, peephole="channel", dtype=torch.float64)
    with torch.no_grad():
        cell.conv.weight.copy_(torch.tensor(rows, dtype=torch.float64)[:, :2, None, None])
        cell.conv.bias.copy_(torch.tensor(rows, dtype=torch.float64)[:, 2])
        cell.peephole.copy_(torch.tensor([[0.5], [-0.6], [0.7]], dtype=torch.float64))
    x, h, c = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.9, -0.8, 0.7))
    a_f, a_i, a_g, a_o = (w_x * 0.9 - w_h * 0.8 + b for w_x, w_h, b in rows)
    c_want = sigmoid(a_f + 0.5 * 0.7) * 0.7 + sigmoid(a_i - 0.6 * 0.7) * math.tanh(a_g)
    h_want = sigmoid(a_o + 0.7 * c_want) * math.tanh(c_want)
    h_t, c_t = cell(x, (h, c))
    assert (h_t.item(), c_t.item()) == pytest.approx((h_want, c_want), rel=1e-14)  # a few roundings


@pytest.mark.parametrize("gate_order", ["".join(order) for order in itertools.permutations("figo")])
def test_gate_order_is_the_order_of_the_stored_rows(gate_order):
    want = ConvLSTMCell(3, 2, 3, peephole="channel")
    nn.init.normal_(want.peephole)
    cell = ConvLSTMCell(3, 2, 3, peephole="channel", gate_order=gate_order)
    rows = ["figo".index(gate) for gate in gate_order]
    state = want.state_dict()
    for name in ("conv.weight", "conv.bias"):
        state[name] = state[name].unflatten(0, (4, 2))[rows].flatten(0, 1)
    cell.load_state_dict(state)
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(cell.canonical_weights(), want.canonical_weights(), rtol=0, atol=0)
    torch.testing.assert_close(cell(x), want(x), rtol=1e-5, atol=1e-6)  # float32, rows of a product in another order


def test_peephole_is_zero_at_first():
    plain = ConvLSTMCell(3, 2, 3, dtype=torch.float64)
    cell = ConvLSTMCell(3, 2, 3, peephole="spatial", spatial_size=(4, 5), dtype=torch.float64)
    missing = cell.load_state_dict(plain.state_dict(), strict=False).missing_keys
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert missing == ["peephole"]
    torch.testing.assert_close(cell(x), plain(x), **CLOSE)
    nn.init.normal_(cell.peephole)
    cell.reset_parameters()
    assert not cell.peephole.any()


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ({}, {"conv.weight": (8, 5, 3, 3), "conv.bias": (8,)}),
        ({"bias": False}, {"conv.weight": (8, 5, 3, 3)}),
        ({"kernel_size": (5,)}, {"conv.weight": (8, 5, 5), "conv.bias": (8,)}),
        (
            {"kernel_size": (1, 3, 5), "peephole": "channel"},
            {"conv.weight": (8, 5, 1, 3, 5), "conv.bias": (8,), "peephole": (3, 2)},
        ),
        (
            {"peephole": "spatial", "spatial_size": (6, 7)},
            {"conv.weight": (8, 5, 3, 3), "conv.bias": (8,), "peephole": (3, 2, 6, 7)},
        ),
    ],
)
def test_state_dict(arguments, shapes):
    arguments = {"kernel_size": 3, **arguments}
    cell, stack = ConvLSTMCell(3, 2, **arguments), ConvLSTM(3, 2, num_layers=1, **arguments)
    assert {name: tuple(tensor.shape) for name, tensor in cell.state_dict().items()} == shapes
    assert set(stack.state_dict()) == {f"cell_list.0.{name}" for name in shapes}


def test_layers_with_their_own_sizes_give_lists():
    module = ConvLSTM(3, [2, 4], [3, (1, 5)], num_layers=2, dtype=torch.float64)
    x = torch.randn(2, 5, 3, 4, 6, dtype=torch.float64)
    output, (h_n, c_n) = module(x)
    assert [h.shape for h in h_n] == [c.shape for c in c_n] == [(2, 2, 4, 6), (2, 4, 4, 6)]
    torch.testing.assert_close(output[:, -1], h_n[1], rtol=0, atol=0)
    first, states = module(x[:, :2])
    second, last = module(x[:, 2:], states)
    torch.testing.assert_close((torch.cat([first, second], 1), last), (output, (h_n, c_n)), **CLOSE)


def test_layers_of_one_size_give_stacked_states():
    module = ConvLSTM(3, 2, 3, num_layers=3, dtype=torch.float64)
    x = torch.randn(2, 5, 3, 4, 6, dtype=torch.float64)
    output, (h_n, c_n) = module(x)
    assert h_n.shape == c_n.shape == (3, 2, 2, 4, 6)
    first, states = module(x[:, :2])
    second, last = module(x[:, 2:], states)
    torch.testing.assert_close((torch.cat([first, second], 1), last), (output, (h_n, c_n)), **CLOSE)


def test_batch_first_concerns_input_and_output():
    batch_first, time_first = ConvLSTM(3, 2, (3,)), ConvLSTM(3, 2, (3,), batch_first=False)
    time_first.load_state_dict(batch_first.state_dict())
    x = torch.randn(2, 5, 3, 6)
    output, states = batch_first(x)
    time_output, time_states = time_first(x.transpose(0, 1))
    torch.testing.assert_close((time_output.transpose(0, 1), time_states), (output, states), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("error", "name", "arguments"),
    [
        (ValueError, "input_dim", {"input_dim": 0}),
        (TypeError, "input_dim", {"input_dim": True}),
        (TypeError, "input_dim", {"input_dim": 3.0}),
        (ValueError, "hidden_dim", {"hidden_dim": -1}),
        (TypeError, "hidden_dim", {"hidden_dim": "2"}),
        (ValueError, "kernel_size", {"kernel_size": 4}),
        (ValueError, "kernel_size", {"kernel_size": (3, 2)}),
        (ValueError, "kernel_size", {"kernel_size": 0}),
        (ValueError, "kernel_size", {"kernel_size": ()}),
        (ValueError, "kernel_size", {"kernel_size": (3, 3, 3, 3)}),
        (TypeError, "kernel_size", {"kernel_size": (True, 3)}),
        (TypeError, "bias", {"bias": 2}),
        (ValueError, "peephole", {"peephole": "pixel"}),
        (ValueError, "spatial_size", {"peephole": "spatial"}),
        (ValueError, "spatial_size", {"peephole": "spatial", "spatial_size": (4,)}),
        (TypeError, "spatial_size", {"peephole": "spatial", "spatial_size": 4}),
        (ValueError, "spatial_size", {"peephole": "spatial", "spatial_size": (4, 0)}),
        (ValueError, "gate_order", {"gate_order": "figg"}),
        (ValueError, "gate_order", {"gate_order": "ifo"}),
        (TypeError, "gate_order", {"gate_order": None}),
    ],
)
@pytest.mark.parametrize("kind", [ConvLSTMCell, ConvLSTM])
def test_wrong_constructor_arguments(kind, error, name, arguments):
    with pytest.raises(error, match=rf"^{name} must"):
        kind(**{"input_dim": 3, "hidden_dim": 2, "kernel_size": 3, **arguments})


@pytest.mark.parametrize(
    ("error", "name", "arguments"),
    [
        (ValueError, "hidden_dim", {"hidden_dim": [2]}),
        (ValueError, "kernel_size", {"kernel_size": [3, 3, 3]}),
        (ValueError, "kernel_size", {"kernel_size": [3, (3,)]}),
        (TypeError, "kernel_size", {"kernel_size": [[3, 3], 3]}),
        (ValueError, "num_layers", {"num_layers": 0}),
        (TypeError, "num_layers", {"num_layers": True}),
        (TypeError, "batch_first", {"batch_first": 1}),
    ],
)
def test_wrong_stack_arguments(error, name, arguments):
    with pytest.raises(error, match=rf"^{name} must"):
        ConvLSTM(**{"input_dim": 3, "hidden_dim": 2, "kernel_size": 3, "num_layers": 2, **arguments})


def test_a_cell_takes_no_list_of_kernel_sizes():
    with pytest.raises(TypeError, match=r"^kernel_size must"):
        ConvLSTMCell(3, 2, [3, 3])


FRAME, STATE = torch.zeros(2, 3, 4, 5), torch.zeros(2, 2, 4, 5)


@pytest.mark.parametrize(
    ("error", "name", "arguments"),
    [
        (TypeError, "x_t", ([[1.0]],)),
        (ValueError, "x_t", (FRAME[0, 0],)),
        (ValueError, "x_t", (FRAME[:, :2],)),
        (ValueError, "x_t", (FRAME[..., :4],)),  # the peephole has 4 x 5 positions
        (TypeError, "states", (FRAME, STATE)),
        (ValueError, "states", (FRAME, (STATE,))),
        (TypeError, "c of states", (FRAME, (STATE, None))),
        (ValueError, "h of states", (FRAME, (STATE[:1], STATE))),
        (ValueError, "c of states", (FRAME, (STATE, STATE[..., :4]))),
    ],
)
def test_wrong_cell_inputs(error, name, arguments):
    cell = ConvLSTMCell(3, 2, 3, peephole="spatial", spatial_size=(4, 5))
    with pytest.raises(error, match=rf"^{name} must"):
        cell(*arguments)


VIDEO, STATES = FRAME[:, None], torch.stack([STATE, STATE])


@pytest.mark.parametrize(
    ("error", "name", "arguments"),
    [
        (TypeError, "x", (None,)),
        (ValueError, "x", (FRAME[0],)),
        (ValueError, "x", (VIDEO[:, :, :2],)),
        (TypeError, "hx", (VIDEO, STATES)),
        (ValueError, "hx", (VIDEO, (STATES,))),
        (ValueError, "h_0 of hx", (VIDEO, (STATES[:1], STATES))),
        (ValueError, "c_0 of hx", (VIDEO, (STATES, [STATE]))),
        (TypeError, "c_0 of hx", (VIDEO, (STATES, None))),
        (ValueError, "h of states", (VIDEO, (STATES[:, :1], STATES))),
    ],
)
def test_wrong_stack_inputs(error, name, arguments):
    with pytest.raises(error, match=rf"^{name} must"):
        ConvLSTM(3, 2, 3, num_layers=2)(*arguments)
