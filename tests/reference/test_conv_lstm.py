"""The plain ConvLSTM modules against the text-book cell; the formulas against the plain modules and autograd."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from hybridops.reference import ConvLSTM, ConvLSTMCell
from hybridops.reference.conv_lstm import conv_lstm_backward, conv_lstm_backward_from_states, conv_lstm_forward

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


def run_formulas(module, x, h0, c0, save="gates"):
    return conv_lstm_forward(x, h0, c0, *module.cell_list[0].canonical_weights(), save)


# ---------------------------------------------------------------------------------------------------- the formulas


@case
def test_forward_formula_is_the_plain_module(space, kernel, peephole, bias):
    module, *inputs = make_problem(space, kernel, peephole, bias)
    output, h_n, c_n = run_module(module, *inputs)
    hs, cs, gates = run_formulas(module, *inputs)
    torch.testing.assert_close(hs.transpose(0, 1), output, **CLOSE)
    torch.testing.assert_close((hs[-1], cs[-1]), (h_n, c_n), **CLOSE)
    assert gates.shape == (4, 2, 8, *space)


@case
def test_backward_formula_is_autograd(space, kernel, peephole, bias):
    module, x, h0, c0 = make_problem(space, kernel, peephole, bias)
    cell, a = module.cell_list[0], []
    cell.conv.register_forward_hook(lambda conv, args, out: a.append(out))
    outputs = run_module(module, x, h0, c0)
    grads = [torch.randn_like(out) for out in outputs]
    *da, dh0, dc0 = torch.autograd.grad(outputs, [*a, h0, c0], grads)

    _, cs, gates = run_formulas(module, x, h0, c0)
    _, w_hh, _, rows = cell.canonical_weights()
    got = conv_lstm_backward(grads[0].transpose(0, 1), *grads[1:], gates, cs, c0, w_hh, rows, need_dh0=True)
    torch.testing.assert_close(got, (torch.stack(da), dh0, dc0), **CLOSE)


@pytest.mark.parametrize("given", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
def test_backward_takes_none_for_a_zero_gradient(given):
    module, x, h0, c0 = make_problem((4, 3), (3, 3), "channel")
    hs, cs, gates = run_formulas(module, x, h0, c0)
    _, w_hh, _, peephole = module.cell_list[0].canonical_weights()
    grads = [torch.randn_like(like) * used for like, used in zip((hs, hs[0], cs[0]), given, strict=True)]
    nones = [grad if used else None for grad, used in zip(grads, given, strict=True)]
    saved = (gates, cs, c0, w_hh, peephole)
    want = conv_lstm_backward(*grads, *saved, need_dh0=True)
    torch.testing.assert_close(conv_lstm_backward(*nones, *saved, need_dh0=True), want, rtol=0, atol=0)
    da, dh0, dc0 = conv_lstm_backward(*nones, *saved, need_dh0=False)
    assert dh0 is None
    torch.testing.assert_close((da, dc0), (want[0], want[2]), rtol=0, atol=0)


def test_states_of_none_are_zeros():
    module, x, h0, c0 = make_problem((4, 3), (3, 3), "spatial")
    zeros = torch.zeros_like(h0)
    hs, cs, gates = run_formulas(module, x, None, None)
    torch.testing.assert_close((hs, cs, gates), run_formulas(module, x, zeros, zeros), rtol=0, atol=0)
    torch.testing.assert_close(module(x), module(x, (zeros[None], zeros[None])), rtol=0, atol=0)
    _, w_hh, _, rows = module.cell_list[0].canonical_weights()
    none, zero = (conv_lstm_backward(hs, h0, c0, gates, cs, start, w_hh, rows, True) for start in (None, zeros))
    torch.testing.assert_close(none, zero, rtol=0, atol=0)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_backward_in_chunks_is_the_whole_backward(cut):
    module, x, h0, c0 = make_problem((4, 3), (3, 3), "channel", steps=5)
    hs, cs, gates = run_formulas(module, x, h0, c0)
    _, w_hh, _, peephole = module.cell_list[0].canonical_weights()
    grad_hs, grad_hn, grad_cn = torch.randn_like(hs), torch.randn_like(h0), torch.randn_like(c0)
    whole = conv_lstm_backward(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, True)

    late = (gates[cut:], cs[cut:], cs[cut - 1], w_hh, peephole, True)
    da_late, dh, dc = conv_lstm_backward(grad_hs[cut:], grad_hn, grad_cn, *late)
    early = (gates[:cut], cs[:cut], c0, w_hh, peephole, True)
    da_early, dh0, dc0 = conv_lstm_backward(grad_hs[:cut], dh, dc, *early)
    torch.testing.assert_close((torch.cat([da_early, da_late]), dh0, dc0), whole, rtol=0, atol=0)


@case
def test_gates_come_back_from_the_states(space, kernel, peephole, bias):
    module, x, h0, c0 = make_problem(space, kernel, peephole, bias)
    hs, cs, gates = run_formulas(module, x, h0, c0)
    w_ih, w_hh, bias, rows = module.cell_list[0].canonical_weights()
    behind = (torch.randn_like(hs), torch.randn_like(h0), torch.randn_like(c0))
    want = conv_lstm_backward(*behind, gates, cs, c0, w_hh, rows, True)
    got = conv_lstm_backward_from_states(*behind, x, h0, hs, cs, c0, w_ih, w_hh, bias, rows, True)
    torch.testing.assert_close(got, want, **CLOSE)


def test_save_says_what_is_kept():
    module, *inputs = make_problem((4, 3), (3, 3))
    hs, cs, _ = run_formulas(module, *inputs, save="gates")
    torch.testing.assert_close(run_formulas(module, *inputs, save="cells")[:2], (hs, cs), rtol=0, atol=0)
    torch.testing.assert_close(run_formulas(module, *inputs, save="nothing")[:2], (hs, cs[-1:]), rtol=0, atol=0)
    assert run_formulas(module, *inputs, save="cells")[2] is None
    assert run_formulas(module, *inputs, save="nothing")[2] is None


@pytest.mark.parametrize(("batch", "steps"), [(2, 0), (0, 3), (0, 0), (1, 1)])
@pytest.mark.parametrize("kernel", [(3,), (3, 1), (1, 3, 3)])
def test_empty_and_single(batch, steps, kernel):
    space = (3, 4, 2)[: len(kernel)]
    module, x, h0, c0 = make_problem(space, kernel, "channel", batch=batch, steps=steps)
    output, (h_n, c_n) = module(x)
    assert output.shape == (batch, steps, 2, *space)
    assert h_n.shape == c_n.shape == (1, batch, 2, *space)

    hs, cs, gates = run_formulas(module, x, h0, c0)
    assert hs.shape == cs.shape == (steps, batch, 2, *space)
    assert gates.shape == (steps, batch, 8, *space)
    last = cs[-1] if steps else c0
    torch.testing.assert_close(run_formulas(module, x, h0, c0, save="nothing")[1], last[None], rtol=0, atol=0)

    _, w_hh, _, rows = module.cell_list[0].canonical_weights()
    da, dh0, dc0 = conv_lstm_backward(hs, h0, c0, gates, cs, None, w_hh, rows, True)
    assert da.shape == gates.shape
    assert dh0.shape == dc0.shape == h0.shape
    if steps == 0:
        torch.testing.assert_close((dh0, dc0), (h0, c0), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_float32_cell(dtype):
    module, x, h0, c0 = make_problem((6, 5), (3, 3), "channel", dtype=dtype)
    plain = run_module(module, x, h0, c0)[0].detach()
    hs, cs, gates = run_formulas(module, x, h0, c0.float())
    no_steps = run_formulas(module, x[:, :0], None, None, save="nothing")[1]
    _, w_hh, _, rows = module.cell_list[0].canonical_weights()
    da, dh0, dc0 = conv_lstm_backward(hs, None, None, gates, cs, c0.float(), w_hh, rows, True)
    assert [t.dtype for t in (hs, gates, da)] == [dtype] * 3
    assert [t.dtype for t in (cs, no_steps, dh0, dc0)] == [torch.float32] * 4

    exact = run_module(module.double(), x.double(), h0.double(), c0.double())[0]
    # The usual judgement of half precision: at most twice what PyTorch loses in the same dtype.
    assert (hs.transpose(0, 1) - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("peephole", [None, "spatial"])
def test_formulas_are_differentiable(peephole):
    """Double backward runs both formulas again under autograd."""
    module, x, h0, c0 = make_problem((2,), (3,), peephole, batch=1, steps=2)
    w_ih, w_hh, bias, rows = (
        None if weight is None else weight.detach() for weight in module.cell_list[0].canonical_weights()
    )

    def forward_and_backward(x, h0, c0, w_ih, w_hh, bias, grad_hs, *rows):
        rows = rows[0] if rows else None
        _, cs, gates = conv_lstm_forward(x, h0, c0, w_ih, w_hh, bias, rows, "gates")
        return conv_lstm_backward(grad_hs, None, None, gates, cs, c0, w_hh, rows, True)

    grad_hs = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    leaves = [x, h0, c0, w_ih, w_hh, bias, grad_hs] + ([] if rows is None else [rows])
    assert torch.autograd.gradcheck(forward_and_backward, [leaf.detach().requires_grad_() for leaf in leaves])


# ----------------------------------------------------------------------------------------------------- the modules


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
        (ValueError, "x_t", (FRAME[0],)),
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
        (ValueError, "x", (FRAME,)),
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
