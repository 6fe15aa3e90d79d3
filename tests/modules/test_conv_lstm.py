"""FusedConvLSTMCell and FusedConvLSTM in place of the plain modules."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

import hybridops
from hybridops import FusedConvLSTM, FusedConvLSTMCell
from hybridops.reference import ConvLSTMCell
from tests import tolerances
from tests.modules.agreement import assert_agree, pair, randn, results

CELLS = {
    "plain": {},
    "no bias": {"bias": False},
    "oblong kernel": {"kernel_size": (3, 5)},
    "one pixel": {"kernel_size": 1},
    "one dimension": {"kernel_size": (3,)},
    "three dimensions": {"kernel_size": (1, 3, 3)},
    "channel peephole": {"peephole": "channel"},
    "spatial peephole": {"peephole": "spatial", "spatial_size": (4, 5)},
    "spatial peephole of one dimension": {"kernel_size": (3,), "peephole": "spatial", "spatial_size": (4,)},
    "other gate order": {"gate_order": "ifog", "peephole": "channel"},
}
cells = pytest.mark.parametrize("arguments", CELLS.values(), ids=CELLS)

STACKS = {
    "two layers": {"num_layers": 2},
    "time first": {"batch_first": False, "num_layers": 2},
    "a size for each layer": {"hidden_dim": [2, 6, 1], "num_layers": 3},
    "a kernel for each layer": {"kernel_size": [3, (1, 5)], "num_layers": 2},
    "a list of one": {"hidden_dim": [4]},
    "all at once": {
        "hidden_dim": [4, 2], "kernel_size": [(3, 1), (1, 3)], "num_layers": 2, "bias": False, "batch_first": False,
        "peephole": "spatial", "spatial_size": (4, 5), "gate_order": "gofi",
    },
}  # fmt: skip
stacks = pytest.mark.parametrize("arguments", [*CELLS.values(), *STACKS.values()], ids=[*CELLS, *STACKS])


def sizes(arguments):
    """The constructor's arguments in full, and a spatial size that goes with them."""
    arguments = {"input_dim": 3, "hidden_dim": 4, "kernel_size": 3, **arguments}
    dims = len(arguments["kernel_size"]) if isinstance(arguments["kernel_size"], tuple) else 2
    return arguments, (4, 5, 2)[:dims]


def test_the_documents_usage():
    """A loop over the frames of four videos, with the state_dict of the plain cell."""
    seq_len, batch_size, input_dim, hidden_dim = 5, 4, 3, 16
    video_sequence = torch.randn(batch_size, seq_len, input_dim, 64, 64)
    plain = ConvLSTMCell(input_dim, hidden_dim, kernel_size=3)
    fused = FusedConvLSTMCell(input_dim, hidden_dim, kernel_size=3)
    fused.load_state_dict(plain.state_dict())
    states = []
    for cell in (plain, fused, plain.double()):
        h = torch.zeros(batch_size, hidden_dim, 64, 64, dtype=cell.conv.weight.dtype)
        c = torch.zeros_like(h)
        for t in range(seq_len):
            frame_t = video_sequence[:, t, :, :, :].to(h.dtype)
            h, c = cell(frame_t, (h, c))
        assert h.shape == c.shape == (4, 16, 64, 64)
        states.append((h, c))
    for want, got, exact in zip(*states, strict=True):
        assert tolerances.largest(got - exact) <= tolerances.allowed_error(want, exact, torch.float32)


@cells
@pytest.mark.parametrize("given", [True, False])
def test_cell(arguments, given):
    arguments, space = sizes(arguments)
    states = (randn(2, 4, *space), randn(1, 2, 4, *space)[0]) if given else None
    plain, fused = pair("ConvLSTMCell", **arguments)
    plain.load_state_dict(fused.state_dict(), strict=True)
    assert_agree(plain, fused, randn(2, 3, *space), states)


@stacks
@pytest.mark.parametrize("given", [True, False])
def test_stack(arguments, given):
    arguments, space = sizes(arguments)
    plain, fused = pair("ConvLSTM", **arguments)
    x = randn(3, 3, 3, *space)  # batch and time alike, for either order
    _, hx = plain(x)
    hx = torch.utils._pytree.tree_map(lambda state: state.detach() + 0.5, hx) if given else None
    assert_agree(plain, fused, x, hx)


@stacks
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_save_and_back_end_are_not_stored(arguments, save):
    """They are no part of the model: a checkpoint goes either way, strict."""
    arguments, space = sizes(arguments)
    plain, fused = pair("ConvLSTM", **arguments)
    fused.save, fused.backend = save, "reference"
    plain.load_state_dict(fused.state_dict(), strict=True)
    assert list(plain.state_dict()) == list(fused.state_dict())
    assert_agree(plain, fused, randn(2, 3, 3, *space))


@pytest.mark.parametrize("gate_order", ["".join(order) for order in itertools.permutations("figo")])
def test_gate_orders(gate_order):
    assert_agree(*pair("ConvLSTMCell", 3, 2, 3, gate_order=gate_order, peephole="channel"), randn(2, 3, 5, 4))


def test_cells_of_a_stack_are_fused_cells():
    module = FusedConvLSTM(3, [4, 5], 3, num_layers=2)
    assert [type(cell) for cell in module.cell_list] == [FusedConvLSTMCell] * 2


def test_one_call_is_many_calls():
    """The states that come out go in again."""
    module = FusedConvLSTM(3, [2, 4], 3, num_layers=2, dtype=torch.float64)
    x = randn(2, 5, 3, 4, 6)
    output, states = module(x)
    first, between = module(x[:, :2])
    second, last = module(x[:, 2:], between)
    torch.testing.assert_close((torch.cat([first, second], 1), last), (output, states), **tolerances.FLOAT64)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("batch", "steps"), [(0, 3), (2, 0), (0, 0)])
def test_empty(batch, steps, batch_first):
    sizes = (batch, steps) if batch_first else (steps, batch)
    plain, fused = pair("ConvLSTM", 3, 4, 3, num_layers=2, batch_first=batch_first)
    hx = (randn(2, batch, 4, 5, 6), randn(2, batch, 4, 5, 6))
    assert_agree(plain, fused, randn(*sizes, 3, 5, 6), hx)
    x = randn(*sizes, 3, 5, 6)
    torch.testing.assert_close(fused(x), plain(x), **tolerances.FLOAT64)


def test_training_goes_down():
    """A few steps of an optimiser, in both: the same losses."""
    plain, fused = pair("ConvLSTM", 1, 4, 3, num_layers=2)
    x = randn(2, 6, 1, 5, 5)
    losses = []
    for module in (plain, fused):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        losses.append([])
        for _ in range(5):
            optimizer.zero_grad()
            loss = (module(x[:, :-1])[0].mean(2) - x[:, 1:, 0]).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=tolerances.FLOAT64["rtol"])
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("kind", [FusedConvLSTM, FusedConvLSTMCell])
def test_repr_names_what_matters(kind):
    text = repr(kind(3, 2, (3, 5), peephole="channel", gate_order="ifog"))
    assert text.startswith(f"{kind.__name__}(")
    assert "kernel_size=(3, 5)" in text
    assert "gate_order='ifog'" in text
    assert "peephole='channel'" in text


@pytest.mark.parametrize("kind", [FusedConvLSTM, FusedConvLSTMCell])
def test_named_back_end(kind):
    """By the module's argument, which `use_backend` does not outdo; and it does not fall back."""
    module = kind(1, 1, (1, 1, 1), backend="native")
    with hybridops.use_backend("reference"), pytest.raises(RuntimeError, match=r"^backend 'native' was asked for"):
        module(torch.ones(1, 1, 1, 2, 2) if kind is FusedConvLSTMCell else torch.ones(1, 1, 1, 1, 2, 2))


def states_of(layers: int, hidden: int | list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One (h, c) a layer."""
    sizes = hidden if isinstance(hidden, list) else [hidden] * layers
    generator = torch.Generator().manual_seed(0)
    draw = lambda size: torch.randn(2, size, 5, 6, generator=generator, dtype=torch.float64)  # noqa: E731
    return [(draw(size), draw(size)) for size in sizes]


@pytest.mark.parametrize("pairs", [list, tuple])
@pytest.mark.parametrize("inner", [list, tuple])
@pytest.mark.parametrize(("layers", "hidden"), [(1, 4), (3, 4), (2, [4, 3]), (3, [4, 3, 2])], ids=str)
def test_a_pair_of_states_a_layer(layers, hidden, inner, pairs):
    """What some projects give: taken as such, or refused, where it could be (h_0, c_0)."""
    for module in pair("ConvLSTM", 3, hidden, 3, num_layers=layers):
        states = states_of(layers, hidden)
        x = randn(2, 3, 3, 5, 6)
        want = module(x, ([h for h, _ in states], [c for _, c in states]))
        if (layers, pairs, inner) == (2, tuple, list):  # a tuple of two lists is (h_0, c_0)
            with pytest.raises(ValueError, match="must have shape"):
                module(x, pairs(inner(state) for state in states))
        else:
            got = module(x, pairs(inner(state) for state in states))
            torch.testing.assert_close(got, want, **tolerances.EXACT)


@pytest.mark.parametrize(("pairs", "inner"), [(list, list), (list, tuple), (tuple, tuple)])
def test_states_of_two_layers_that_could_be_either(pairs, inner):
    for module in pair("ConvLSTM", 3, 4, 3, num_layers=2):
        states = states_of(2, 4)
        with pytest.raises(ValueError, match=r"^hx must say which states are h and which c"):
            module(randn(2, 3, 3, 5, 6), pairs(inner(state) for state in states))
        x, stacked = randn(2, 3, 3, 5, 6), tuple(torch.stack(each) for each in zip(*states, strict=True))
        as_lists = module(x, tuple(list(each) for each in zip(*states, strict=True)))
        torch.testing.assert_close(as_lists, module(x, stacked), **tolerances.EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_go_on_in_the_dtype_of_the_model(dtype):
    """What a model does with them is what it does with the plain module's."""
    for module in pair("ConvLSTM", 3, 4, 3, dtype=dtype):
        head = torch.nn.Conv2d(4, 1, 1, dtype=dtype)
        output, (h_n, c_n) = module(randn(2, 3, 3, 5, 6, dtype=dtype))
        assert torch.stack([h_n, c_n]).dtype == dtype
        assert head(c_n[0]).dtype == dtype
        _, (_, c_n) = module(output.new_zeros(2, 3, 3, 5, 6), (h_n, c_n))
        assert c_n.dtype == dtype


def test_states_of_an_autocast_call_serve_outside():
    for module in pair("ConvLSTM", 3, 4, 3, dtype=torch.float32):
        x = randn(2, 3, 3, 5, 6, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            _, states = module(x)
        output, (_, c_n) = module(x, states)
        assert (output.dtype, c_n.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_volumes_in_half_precision(dtype):
    """PyTorch's own gradients of a three-dimensional convolution are wrong in bfloat16: not ours."""
    plain, fused = pair("ConvLSTM", 3, 4, (3, 3, 3), dtype=dtype)
    exact = copy.deepcopy(plain).double()
    x = randn(2, 3, 3, 4, 5, 6, dtype=dtype)
    _, want = results(exact, (x.double(),))
    _, got = results(fused, (x.clone(),))
    for name, grad in want.items():
        error = tolerances.largest(got[name].double() - grad)
        assert error <= 4 * torch.finfo(dtype).eps * tolerances.largest(grad), name
