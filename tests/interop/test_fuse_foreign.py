"""fuse(model) on modules that were written elsewhere: nothing but the speed may change."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import hybridops
import hybridops.functional as HF
from tests import tolerances
from tests.interop import foreign
from tests.modules.agreement import randn, results

MASK = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)


def states(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(*shape), randn(1, *shape)[0]


# What is swapped as a whole: a module, and arguments of a call that the fused functions answer.
WHOLE = {
    "documents.ConvLSTMCell": (lambda: foreign.ConvLSTMCell(3, 8, 3), (randn(2, 3, 7, 6), states(2, 8, 7, 6))),
    "ndrplz cell": (lambda: foreign.NdrplzCell(3, 8, 3, bias=False), (randn(2, 3, 7, 6), [*states(2, 8, 7, 6)])),
    "ndrplz": (lambda: foreign.Ndrplz(3, [8, 6], 3), (randn(5, 2, 3, 7, 6),)),
    "ndrplz, all layers": (lambda: foreign.Ndrplz(3, [8, 8], (3, 5), True, True), (randn(2, 5, 3, 7, 6), None)),
    "openstl cell": (lambda: foreign.OpenSTLCell(8, 8, 5), (randn(2, 8, 7, 6), *states(2, 8, 7, 6))),
    "sladewinter cell": (lambda: foreign.SladewinterCell(3, 8, 3, (7, 6)), (randn(2, 3, 7, 6), *states(2, 8, 7, 6))),
    "sladewinter": (lambda: foreign.Sladewinter(3, 8, 3, (7, 6)), (randn(2, 3, 5, 7, 6),)),
    "1-D, two biases": (lambda: foreign.Cell1d(2, 3, 5), (randn(2, 2, 9), states(2, 3, 9))),
    "3-D": (lambda: foreign.Cell3d(3, 4, 3), (randn(2, 3, 4, 5, 6), states(2, 4, 4, 5, 6))),
    "jhhuang96": (lambda: foreign.Jhhuang96(3, 8, 3), (randn(4, 2, 3, 7, 6), states(2, 8, 7, 6), 4)),
    "documents.Attention": (lambda: foreign.Attention(8), (randn(3, 8), randn(3, 5, 8))),
    "bentrevett": (lambda: foreign.Bentrevett(4, 7), (randn(3, 7), randn(5, 3, 8))),
    "bentrevett, masked": (lambda: foreign.Bentrevett(4, 7), (randn(3, 7), randn(5, 3, 8), MASK)),
    "pytorch_tutorial": (lambda: foreign.Tutorial(8), (randn(3, 1, 8), randn(3, 5, 8))),
    "allennlp": (lambda: foreign.AllenNLP(6, 5), (randn(3, 6), randn(3, 5, 5))),
    "gnmt": (lambda: foreign.Gnmt(4, 5, 6), (randn(3, 2, 4), randn(3, 5, 5))),
    "captioner": (lambda: foreign.Captioner(5, 4, 6), (randn(3, 5, 5), randn(3, 4))),
}
whole = pytest.mark.parametrize(("make", "inputs"), WHOLE.values(), ids=WHOLE)


def build(make, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Of the fused functions, by name."""
    called = []

    def spy(name):
        function = getattr(HF, name)
        monkeypatch.setattr(HF, name, lambda *args, **kwargs: (called.append(name), function(*args, **kwargs))[1])

    for name in ("conv_lstm", "conv_lstm_cell", "additive_scores"):
        spy(name)
    return called


def is_floating(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def structure(outputs):
    """All that can be said of outputs but their numbers."""
    leaves, nesting = pytree.tree_flatten(outputs)
    return nesting, [(leaf.dtype, leaf.shape, leaf.is_contiguous()) for leaf in leaves]


@whole
def test_outputs_and_gradients_stay(make, inputs, calls):
    module = build(make)
    original, parameters = type(module), dict(module.named_parameters())
    state, before, shape = copy.deepcopy(module.state_dict()), results(module, inputs), structure(module(*inputs))
    assert hybridops.fuse(module, strict=True) is module
    calls.clear()
    torch.testing.assert_close(results(module, inputs), before, **tolerances.FLOAT64)
    assert calls
    assert structure(module(*inputs)) == shape
    assert isinstance(module, original)
    assert type(module).__name__ == f"Fused{original.__name__}"
    assert dict(module.named_parameters()).keys() == parameters.keys()
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
    torch.testing.assert_close(dict(module.state_dict()), dict(state), **tolerances.EXACT)


@whole
def test_arguments_may_be_named(make, inputs, calls):
    module = hybridops.fuse(build(make))
    names = type(module).plan.signature.names
    want = module(*inputs)
    calls.clear()
    named = dict(zip(names, inputs, strict=False))
    torch.testing.assert_close(module(**named), want, **tolerances.EXACT)
    assert calls


@whole
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_fused(make, inputs, copier, calls):
    module = hybridops.fuse(build(make))
    want = results(module, inputs)
    other = copier(module)
    calls.clear()
    torch.testing.assert_close(results(other, inputs), want, **tolerances.EXACT)
    assert calls
    assert not {id(parameter) for parameter in module.parameters()} & {id(p) for p in other.parameters()}


@whole
@pytest.mark.parametrize("training", [True, False])
def test_hooks_and_training_mode_are_kept(make, inputs, training):
    module = build(make).train(training)
    called = []
    module.register_forward_hook(lambda *_: called.append("forward"))
    module.register_forward_pre_hook(lambda *_: called.append("before"))
    next(module.parameters()).requires_grad_(False)
    hybridops.fuse(module, strict=True)
    assert called == []
    module(*inputs)
    assert called == ["before", "forward"]
    assert all(child.training is training for child in module.modules())
    assert not next(module.parameters()).requires_grad


@whole
def test_the_module_is_not_disturbed(make, inputs):
    module = build(make)
    parameters = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    versions = [parameter._version for parameter in module.parameters()]
    rng = torch.get_rng_state()
    hybridops.fuse(module, strict=True)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [parameter._version for parameter in module.parameters()] == versions
    torch.testing.assert_close(
        {name: parameter.detach() for name, parameter in module.named_parameters()}, parameters, **tolerances.EXACT
    )


@whole
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_stay(make, inputs, dtype, calls):
    module = build(make, dtype)
    inputs = pytree.tree_map(lambda x: x.to(dtype) if is_floating(x) else x, inputs)
    before = structure(module(*inputs))
    hybridops.fuse(module, strict=True)
    assert structure(module(*inputs)) == before
    assert calls


@whole
def test_dtypes_stay_under_autocast(make, inputs, calls):
    module = build(make, torch.float32)
    inputs = pytree.tree_map(lambda x: x.float() if is_floating(x) else x, inputs)
    with torch.autocast("cpu"):
        before = structure(module(*inputs))
        hybridops.fuse(module, strict=True)
        calls.clear()
        assert structure(module(*inputs)) == before
    by_hand = make is WHOLE["captioner"][0]  # a sum where others have a product of matrices: autocast keeps it float32
    assert bool(calls) is not by_hand


@pytest.mark.parametrize("name", ["documents.ConvLSTMCell", "ndrplz", "documents.Attention", "bentrevett, masked"])
def test_compiles_in_one_graph(name):
    make, inputs = WHOLE[name]
    module = hybridops.fuse(build(make))
    torch.compiler.reset()  # forward is the same code in all of them, and may not be compiled any number of times
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(compiled, inputs), _renamed(results(module, inputs)), **tolerances.FLOAT64)


def _renamed(outputs_and_gradients):
    """torch.compile puts a prefix before the names of parameters."""
    outputs, gradients = outputs_and_gradients
    return outputs, {name if name.startswith("input") else f"_orig_mod.{name}": g for name, g in gradients.items()}


@whole
def test_twice_is_once(make, inputs):
    module = hybridops.fuse(build(make))
    kind = type(module)
    _, report = hybridops.fuse(module, report=True)
    assert type(module) is kind
    assert report.swapped == {}
    assert report.left_alone == {"": "it is fused already"}


@whole
def test_under_other_modes(make, inputs, calls):
    """fuse may be called anywhere."""
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu")):
        module = build(make)
        with mode:
            hybridops.fuse(module, strict=True)


# ---------------------------------------------------------------------------------------------------- whole models


class Decoder(nn.Module):
    """Documents 001: the cell in a loop over frames, attention in a loop over words."""

    def __init__(self):
        super().__init__()
        self.cell = foreign.ConvLSTMCell(3, 8, kernel_size=3)
        self.attention = foreign.Attention(8)
        self.rnn = nn.GRUCell(8, 8)

    def forward(self, video, words):
        h = c = video.new_zeros(len(video), 8, *video.shape[3:])
        encoded = []
        for t in range(video.shape[1]):
            h, c = self.cell(video[:, t], (h, c))
            encoded.append(h.mean((2, 3)))
        encoded = torch.stack(encoded, 1)
        hidden = encoded[:, -1]
        for _ in range(words):
            weights = self.attention(hidden, encoded)
            hidden = self.rnn((weights[:, None] @ encoded)[:, 0], hidden)
        return hidden


MODELS = {
    "documents": (Decoder, (randn(2, 4, 3, 7, 6), 3), ["cell", "attention"]),
    "ndrplz": (
        lambda: nn.ModuleDict({"lstm": foreign.Ndrplz(3, [8, 6], 3, True)})["lstm"],
        (randn(2, 4, 3, 7, 6),),
        [""],
    ),
    "openstl": (
        lambda: foreign.OpenSTL(3, [8, 6], 5, given=2),
        (randn(2, 4, 3, 7, 6),),
        ["cell_list.0", "cell_list.1"],
    ),
}


@pytest.mark.parametrize(("make", "inputs", "swapped"), MODELS.values(), ids=MODELS)
def test_models(make, inputs, swapped, calls):
    model = build(make)
    before = results(model, inputs)
    _, report = hybridops.fuse(model, strict=True, report=True)
    assert list(report.swapped) == swapped
    calls.clear()
    torch.testing.assert_close(results(model, inputs), before, **tolerances.FLOAT64)
    assert calls


def test_report():
    _, report = hybridops.fuse(nn.Sequential(Decoder(), hybridops.reference.ConvLSTMCell(3, 8, 3)), report=True)
    assert report.swapped == {
        "0.cell": "ConvLSTMCell -> FusedConvLSTMCell: ConvLSTM with gates in the order f, i, g, o, "
        "called as (x, (h, c)) with x (B, C, ...)",
        "0.attention": "Attention -> FusedAttention: additive attention with tanh, "
        "called as (query, keys) with query (B, Q), keys (B, T, K)",
        "1": "ConvLSTMCell -> FusedConvLSTMCell",
    }
    assert report.left_alone == {"0": "its parameters are not those of a ConvLSTM or an additive attention"}
    assert str(report).splitlines()[0].startswith("swapped     0.cell: ConvLSTMCell")
    assert str(report).splitlines()[-1].startswith("left alone  0: its parameters")


def test_a_module_in_two_places_is_tried_once():
    model = nn.ModuleDict({"first": foreign.Attention(8)})
    model["second"] = model["first"]
    _, report = hybridops.fuse(model, report=True)
    assert list(report.swapped) == ["first"]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.LSTM(2, 2)), foreign.OpenSTLCell(3, 4, 3, (5, 6))])
def test_strict(model):
    with pytest.raises(ValueError, match=r"^model must have a module that can be fused, got\n"):
        hybridops.fuse(model, strict=True)


@pytest.mark.parametrize("name", ["strict", "report"])
def test_flags_are_bools(name):
    with pytest.raises(TypeError, match=rf"^{name} must be a bool, got 1"):
        hybridops.fuse(nn.Linear(1, 1), **{name: 1})


def test_functional_call():
    """Other tensors in place of the parameters."""
    module = hybridops.fuse(build(lambda: foreign.ConvLSTMCell(3, 4, 3)), strict=True)
    other = build(lambda: foreign.ConvLSTMCell(3, 4, 3))
    nn.init.normal_(other.conv.weight)
    inputs = (randn(2, 3, 7, 6), states(2, 4, 7, 6))
    got = torch.func.functional_call(module, dict(other.named_parameters()), inputs)
    torch.testing.assert_close(got, other(*inputs), **tolerances.FLOAT64)
    assert type(module) is not foreign.ConvLSTMCell


# -------------------------------------------------------------------------------------- calls that were not tried


def test_other_calls_go_to_the_modules_own_forward(calls):
    module = hybridops.fuse(build(lambda: foreign.Ndrplz(3, [8, 6], 3)))
    calls.clear()
    with pytest.raises(NotImplementedError):
        module(randn(5, 2, 3, 7, 6), hidden_state=[])
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        module(randn(5, 2, 3, 7, 6), cell=None)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        module()
    with pytest.raises(RuntimeError, match="channels"):
        module(randn(5, 2, 4, 7, 6))
    assert calls == []


def test_fewer_steps_than_there_are_frames(calls):
    module = build(lambda: foreign.Jhhuang96(3, 8, 3))
    inputs = (randn(4, 2, 3, 7, 6), None, 3)
    want = results(module, inputs)
    hybridops.fuse(module, strict=True)
    calls.clear()
    torch.testing.assert_close(results(module, inputs), want, **tolerances.EXACT)
    assert calls == []


def test_an_integer_mask_was_not_tried(calls):
    module = build(lambda: foreign.Bentrevett(4, 7))
    inputs = (randn(3, 7), randn(5, 3, 8), MASK.long())
    want = results(module, inputs)
    hybridops.fuse(module, strict=True)
    calls.clear()
    torch.testing.assert_close(results(module, inputs), want, **tolerances.EXACT)
    assert calls == []


def test_who_sets_an_attribute_gets_the_own_forward_back():
    """GNMT sets its mask beforehand: what was verified without one does not know it."""
    module = hybridops.fuse(build(lambda: foreign.Gnmt(4, 5, 6)), strict=True)
    module.eval().requires_grad_(False).somebody = "else's"
    assert type(module) is not foreign.Gnmt
    module.compile(backend="eager")
    module.register_full_backward_hook(lambda *_: None)
    assert type(module) is not foreign.Gnmt
    module.set_mask(MASK)
    assert type(module) is foreign.Gnmt
    module._compiled_call_impl = None
    _, weights = module(randn(3, 2, 4), randn(3, 5, 5))
    assert weights[0, :, 0].eq(0).all()


@pytest.mark.parametrize("name", ["forward", "conv", "hidden_dim", "sizes"])
def test_attributes_that_matter(name):
    """Of the instance, of its class, and its modules."""

    class Sized(foreign.ConvLSTMCell):
        sizes = None

    module = hybridops.fuse(build(lambda: Sized(3, 4, 3)), strict=True)
    setattr(module, name, getattr(module, name))
    assert type(module) is Sized


# ----------------------------------------------------------------------------------------------- what is left alone


class Cell(foreign.ConvLSTMCell):
    """Its gates, for one that computes something slightly different."""

    def gates(self, x_t, h_prev):
        return self.conv(torch.cat([x_t, h_prev], dim=1)).chunk(4, dim=1)


class HardSigmoid(Cell):
    def forward(self, x_t, states):
        f, i, g, o = self.gates(x_t, states[0])
        c = F.hardsigmoid(f) * states[1] + F.hardsigmoid(i) * g.tanh()
        return F.hardsigmoid(o) * c.tanh(), c


class Detached(Cell):
    """The numbers of a ConvLSTM, not its gradients."""

    def forward(self, x_t, states):
        f, i, g, o = self.gates(x_t, states[0].detach())
        c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Dropout(Cell):
    """In evaluation it is a ConvLSTM."""

    def forward(self, x_t, states):
        f, i, g, o = self.gates(x_t, states[0])
        c = f.sigmoid() * states[1] + i.sigmoid() * F.dropout(g.tanh(), 0.2, self.training)
        return o.sigmoid() * c.tanh(), c


class Remembers(Cell):
    last = None

    def forward(self, x_t, states):
        self.last = super().forward(x_t, states)
        return self.last


class Lists(Cell):
    def __init__(self, *args):
        super().__init__(*args)
        self.seen = []

    def forward(self, x_t, states):
        self.seen.append(x_t.shape)
        return super().forward(x_t, states)


class Writes(Cell):
    def forward(self, x_t, states):
        h, c = super().forward(x_t, states)
        states[1].copy_(c)
        return h, c


class Warns(Cell):
    """And is a ConvLSTM."""

    def forward(self, x_t, states):
        warnings.warn("it may rain", stacklevel=1)
        return super().forward(x_t, states)


class Raises(Cell):
    def forward(self, x_t, states):
        raise OSError("no such weather")


class Anything(Cell):
    def forward(self, *args):
        return super().forward(*args)


class KeepsATensor(Cell):
    def __init__(self, *args):
        super().__init__(*args)
        self.peephole = torch.zeros(1)


class HasABuffer(Cell):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x_t, states):
        self.steps += 1
        return super().forward(x_t, states)


class Uncopied(Cell):
    def __deepcopy__(self, memo):
        raise OSError("one of a kind")


class Final(Cell):
    def __init_subclass__(cls):
        raise TypeError("it is final")


class Counts(Cell):
    """Returns something that is no tensor."""

    def forward(self, x_t, states):
        return *super().forward(x_t, states), 1


class Circular(foreign.ConvLSTMCell):
    def __init__(self, *args):
        super().__init__(*args)
        self.conv.padding_mode = "circular"
        self.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


LEFT_ALONE = {
    HardSigmoid: "computes something else than a ConvLSTM",
    Detached: "in its gradients",
    Dropout: r"in training \(dropout\?\) it computes something else than a ConvLSTM",
    Remembers: "its forward keeps something in last",
    Lists: "its forward keeps something in seen",
    Writes: "its forward writes into its arguments",
    Raises: "OSError: no such weather",
    Anything: "its forward takes any number of arguments",
    KeepsATensor: "keeps tensors that are neither parameters nor buffers",
    HasABuffer: "it has buffers",
    Uncopied: "it cannot be copied: OSError: one of a kind",
    Final: "its class cannot be extended: it is final",
    Counts: "computes something else",
    Circular: "computes something else",
}


@pytest.mark.parametrize(("kind", "why"), LEFT_ALONE.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_left_alone(kind, why):
    module = build(lambda: kind(3, 4, 3))
    state = copy.deepcopy(module.state_dict())
    attributes = dict(vars(module))
    _, report = hybridops.fuse(module, report=True)
    assert type(module) is kind
    assert list(report.left_alone) == [""]
    with pytest.raises(ValueError, match=why):
        hybridops.fuse(module, strict=True)
    torch.testing.assert_close(dict(module.state_dict()), dict(state), **tolerances.EXACT)
    assert vars(module).keys() == attributes.keys()
    assert getattr(module, "seen", []) == []


@pytest.mark.filterwarnings("error")
def test_a_trial_warns_of_nothing():
    assert type(hybridops.fuse(build(lambda: Warns(3, 4, 3)), strict=True)) is not Warns


OTHERS = {
    "a peephole on the old cell": (lambda: foreign.SladewinterCell(3, 4, 3, (5, 6), old_cell=True), "something else"),
    "group norm": (lambda: foreign.Jhhuang96(3, 8, 3, norm=True), "its parameters are not those"),
    "layer norm": (lambda: foreign.OpenSTLCell(3, 4, 3, (5, 6)), "its parameters are not those"),
    "an even kernel": (lambda: foreign.ConvLSTMCell(3, 4, 2), "its parameters are not those"),
    "no memory": (lambda: foreign.ConvLSTMCell(3, 4, 3).to("meta"), "are not numbers on one device"),
}


@pytest.mark.parametrize(("make", "why"), OTHERS.values(), ids=OTHERS)
def test_others_are_left_alone(make, why):
    module = make()
    kind = type(module)
    with pytest.raises(ValueError, match=why):
        hybridops.fuse(module, strict=True)
    assert type(module) is kind


def test_hooks_within_would_be_lost():
    module = build(lambda: foreign.ConvLSTMCell(3, 4, 3))
    handle = module.conv.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="conv has hooks, which would no longer be called"):
        hybridops.fuse(module, strict=True)
    handle.remove()
    hybridops.fuse(module, strict=True)


def test_a_forward_of_its_own():
    module = build(lambda: foreign.ConvLSTMCell(3, 4, 3))
    module.forward = lambda x, states: states
    with pytest.raises(ValueError, match="its forward is an attribute of this very module"):
        hybridops.fuse(module, strict=True)


def test_zero_weights_do_not_hide_the_order():
    """With zeros all orders look alike: it is found with random weights."""
    module = build(lambda: foreign.NdrplzCell(3, 4, 3))
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    hybridops.fuse(module, strict=True)
    nn.init.normal_(module.conv.weight)
    plain = build(lambda: foreign.NdrplzCell(3, 4, 3))
    plain.load_state_dict(module.state_dict())
    inputs = (randn(2, 3, 7, 6), states(2, 4, 7, 6))
    torch.testing.assert_close(results(module, inputs), results(plain, inputs), **tolerances.FLOAT64)


@pytest.mark.parametrize("order", ["figo", "ifog", "ogif", "gofi"])
def test_any_order_of_the_gates(order):
    class Own(Cell):
        def forward(self, x_t, states):
            gates = dict(zip(order, self.gates(x_t, states[0]), strict=True))
            c = gates["f"].sigmoid() * states[1] + gates["i"].sigmoid() * gates["g"].tanh()
            return gates["o"].sigmoid() * c.tanh(), c

    module = build(lambda: Own(3, 4, 3))
    inputs = (randn(2, 3, 7, 6), states(2, 4, 7, 6))
    before = results(module, inputs)
    _, report = hybridops.fuse(module, report=True, strict=True)
    assert f"gates in the order {', '.join(order)}," in report.swapped[""]
    torch.testing.assert_close(results(module, inputs), before, **tolerances.FLOAT64)
