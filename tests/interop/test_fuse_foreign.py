"""fuse(model, adapters=...): nothing but the speed may change, and nothing is swapped that nobody spoke for."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import hybridops
import hybridops.functional as HF
from hybridops import interop
from tests import tolerances
from tests.interop import foreign
from tests.modules.agreement import randn, results

pytestmark = pytest.mark.slow

MASK = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
SOME = MASK[[0, 1, 0]]
FRAMES, SIZE = (2, 3, 7, 6), (7, 6)


def states(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(*shape), randn(1, *shape)[0]


STATES = states(2, 8, *SIZE)


def keeping(module, **kept):
    """What is there after the first call, or set before it."""
    for name, tensor in kept.items():
        setattr(module, name, tensor)
    return module


# The name of a source: a module, and arguments of a call that the fused functions answer.
NAMED = {
    "textbook.ConvLSTMCell": (lambda: foreign.ConvLSTMCell(3, 8, 3), (randn(*FRAMES), STATES)),
    "ndrplz": (lambda: foreign.Ndrplz(3, [8, 6], 3), (randn(5, *FRAMES),)),
    "ndrplz.ConvLSTMCell": (lambda: foreign.NdrplzCell(3, 8, 3, bias=False), (randn(*FRAMES), [*STATES])),
    "torchgeo": (lambda: foreign.Torchgeo(3, [8, 8], (3, 5), True, True), (randn(2, 5, 3, *SIZE), [STATES, STATES])),
    "torchgeo.ConvLSTMCell": (lambda: foreign.NdrplzCell(3, 8, 3), (randn(*FRAMES), STATES)),
    "metnet": (lambda: foreign.Aserdega(3, 8, 3, batch_first=True), (randn(2, 5, 3, *SIZE), [STATES, STATES])),
    "metnet.ConvLSTMCell": (lambda: foreign.PeepholeCell(3, 8, 3), (randn(*FRAMES), STATES)),
    "aserdega": (lambda: foreign.Aserdega(3, 8, 3, peephole=(8, *SIZE)), (randn(5, *FRAMES), [STATES, STATES])),
    "aserdega.ConvLSTMCell": (lambda: foreign.PeepholeCell(3, 8, 3, (1, 8, 1, 1)), (randn(*FRAMES), STATES)),
    "sladewinter_notebook": (lambda: foreign.Sladewinter(3, 8, 3, SIZE), (randn(2, 3, 5, *SIZE),)),
    "sladewinter_notebook.ConvLSTMCell": (
        lambda: foreign.SladewinterCell(3, 8, 3, SIZE),
        (randn(*FRAMES), *STATES),
    ),
    "jhhuang96": (lambda: foreign.Jhhuang96(3, 8, 3), (randn(4, *FRAMES), STATES, 4)),
    "openstl.ConvLSTMCell": (lambda: foreign.OpenSTLCell(8, 8, 5), (randn(2, 8, *SIZE), *STATES)),
    "hzzone": (lambda: foreign.Hzzone(3, 8, 3, SIZE, parameters=True), (randn(5, *FRAMES), STATES)),
    "kamo_naoyuki": (lambda: foreign.KamoNaoyuki(3, 8, 3), (randn(5, *FRAMES), states(2, 2, 8, *SIZE))),
    "textbook.Attention": (lambda: foreign.Attention(8), (randn(3, 8), randn(3, 5, 8))),
    "bentrevett": (lambda: foreign.Bentrevett(4, 7), (randn(3, 7), randn(5, 3, 8), MASK)),
    "bentrevett_fc": (lambda: foreign.BentrevettFc(8, 7), (randn(3, 7), randn(5, 3, 8))),
    "opennmt": (lambda: foreign.OpenNMT(8), (randn(3, 8), randn(3, 5, 8), torch.tensor([5, 2, 1]))),
    "joeynmt": (
        lambda: keeping(foreign.JoeyNMT(4, 6, 7), proj_keys=randn(3, 5, 7)),
        (randn(3, 1, 4), SOME[:, None], randn(3, 5, 6)),
    ),
    "allennlp": (lambda: foreign.AllenNLP(6, 5), (randn(3, 6), randn(3, 5, 5))),
    "d2l": (
        lambda: foreign.D2l(4, 6, 7),
        (randn(3, 2, 4), randn(3, 5, 6), randn(1, 3, 5, 6)[0], torch.tensor([5, 0, 2])),
    ),
    "pytorch_tutorial": (lambda: foreign.Tutorial(8), (randn(3, 1, 8), randn(3, 5, 8))),
    "speechbrain": (
        lambda: keeping(foreign.SpeechBrain(6, 4, 7, 3, 1.5), precomputed_enc_h=randn(3, 5, 7), mask=SOME),
        (randn(3, 5, 6), torch.tensor([5, 2, 1]), randn(3, 4)),
    ),
    "espnet": (
        lambda: keeping(
            foreign.ESPnet(6, 4, 7), pre_compute_enc_h=randn(3, 5, 7), enc_h=randn(3, 5, 6), mask=~SOME, h_length=5
        ),
        (randn(3, 5, 6), [5, 2, 1], randn(3, 4), None),
    ),
    "gnmt": (lambda: foreign.Gnmt(4, 5, 6), (randn(3, 2, 4), randn(3, 5, 5))),
}
named = pytest.mark.parametrize(("source", "make", "inputs"), [(k, *v) for k, v in NAMED.items()], ids=NAMED)
NOT_HERE = {"sladewinter", "sladewinter.ConvLSTMCell"}  # the notebook's, but for the names of the peepholes


def build(make, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype)


def fused(make, source, dtype=torch.float64) -> nn.Module:
    module = build(make, dtype)
    return hybridops.fuse(module, adapters={type(module): source}, strict=True)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Of the fused functions, by name."""
    called = []

    def spy(name):
        function = getattr(HF, name)
        monkeypatch.setattr(HF, name, lambda *args, **kwargs: (called.append(name), function(*args, **kwargs))[1])

    for name in ("conv_lstm", "additive_scores"):
        spy(name)
    return called


def test_every_named_adapter_is_here():
    assert set(interop.ADAPTERS) == NAMED.keys() | NOT_HERE


def is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def structure(outputs):
    """All that can be said of outputs but their numbers."""
    leaves, nesting = pytree.tree_flatten(outputs)
    return nesting, [(leaf.dtype, leaf.shape) for leaf in leaves]


@named
def test_outputs_and_gradients_stay(source, make, inputs, calls):
    module = build(make)
    original, parameters, signature = type(module), dict(module.named_parameters()), inspect.signature(module.forward)
    state, before, shape = copy.deepcopy(module.state_dict()), results(module, inputs), structure(module(*inputs))
    assert hybridops.fuse(module, adapters={original: source}, strict=True) is module
    calls.clear()
    torch.testing.assert_close(results(module, inputs), before, **tolerances.FLOAT64)
    assert calls
    assert structure(module(*inputs)) == shape
    assert isinstance(module, original)
    assert type(module).__name__ == f"Fused{original.__name__}"
    assert inspect.signature(module.forward) == signature
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
    torch.testing.assert_close(dict(module.state_dict()), dict(state), **tolerances.EXACT)


def test_peepholes_that_are_no_parameters(calls):
    plain, module = (build(lambda: foreign.Hzzone(3, 8, 3, SIZE)) for _ in range(2))
    hybridops.fuse(module, adapters={foreign.Hzzone: "hzzone"}, strict=True)
    calls.clear()
    inputs = (randn(5, *FRAMES), STATES)
    torch.testing.assert_close(results(module, inputs), results(plain, inputs), **tolerances.FLOAT64)
    assert calls


@named
def test_nan_stays_where_it_is(source, make, inputs):
    plain, module = build(make), fused(make, source)
    first = inputs[0].clone()
    first.view(-1)[0] = torch.nan
    with torch.no_grad():
        got, want = module(first, *inputs[1:]), plain(first, *inputs[1:])
    torch.testing.assert_close(got, want, equal_nan=True, **tolerances.FLOAT64)


@named
def test_copies_are_fused(source, make, inputs, calls):
    module = fused(make, source)
    others = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    want = results(module, inputs)
    for other in others:
        calls.clear()
        torch.testing.assert_close(results(other, inputs), want, **tolerances.EXACT)
        assert calls
        assert not {id(parameter) for parameter in module.parameters()} & {id(p) for p in other.parameters()}


@named
def test_the_module_is_not_disturbed(source, make, inputs):
    module = build(make)
    called = []
    module.register_forward_hook(lambda *_: called.append("after"))
    module.register_forward_pre_hook(lambda *_: called.append("before"))
    next(module.parameters()).requires_grad_(False)
    versions, rng = [parameter._version for parameter in module.parameters()], torch.get_rng_state()
    training = [child.training for child in module.eval().modules()]
    with torch.no_grad():
        hybridops.fuse(module, adapters={type(module): source}, strict=True)
    assert called == []
    assert torch.equal(torch.get_rng_state(), rng)
    assert [parameter._version for parameter in module.parameters()] == versions
    assert [child.training for child in module.modules()] == training
    assert not next(module.parameters()).requires_grad
    module(*inputs)
    assert called == ["before", "after"]


@named
def test_dtypes_stay(source, make, inputs, calls):
    def cast(dtype):
        return pytree.tree_map(lambda x: x.to(dtype) if is_float(x) else x, inputs)

    plain, module = build(make, torch.bfloat16), fused(make, source, torch.bfloat16)
    for each in (plain, module):
        kept = {name: value.bfloat16() for name, value in vars(each).items() if is_float(value)}
        keeping(each, **kept)
    assert structure(module(*cast(torch.bfloat16))) == structure(plain(*cast(torch.bfloat16)))
    assert calls
    plain, module = plain.float(), module.float()
    with torch.autocast("cpu"):
        assert structure(module(*cast(torch.float32))) == structure(plain(*cast(torch.float32)))


@named
def test_assigned_parameters_are_read(source, make, inputs, calls):
    """load_state_dict(assign=True) puts other tensors in place of the parameters."""
    module, other = fused(make, source), build(make)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    module.load_state_dict(other.state_dict(), assign=True)
    want = results(other, inputs)
    calls.clear()
    torch.testing.assert_close(results(module, inputs), want, **tolerances.FLOAT64)
    assert calls


# ------------------------------------------------------------------------------------------------ adapters of one's own


def cell1d_weights(module):
    """Its gates stand in the order f, o, i, g."""
    f, o, i, g = (torch.cat([module.of_x.weight, module.of_h.weight], 1)).chunk(4)
    rows = torch.cat([f, i, g, o])
    f, o, i, g = (module.of_x.bias + module.of_h.bias).chunk(4)
    channels = module.of_x.in_channels
    return rows[:, :channels], rows[:, channels:], torch.cat([f, i, g, o])


def cell1d_call(module, weights, x, state):
    if state is None:
        return NotImplemented
    h, c = HF.conv_lstm_cell(x, tuple(state), *weights)
    return h, [h, c]


def cell1d_examples(module, weights, batch, steps):
    hidden = module.of_h.in_channels
    yield torch.randn(batch, module.of_x.in_channels, 6), (torch.randn(batch, hidden, 6), torch.randn(batch, hidden, 6))


CELL_1D = interop.adapter(cell1d_weights, cell1d_call, cell1d_examples)


def test_an_adapter_of_ones_own():
    module = build(lambda: foreign.Cell1d(2, 3, 5))
    inputs = (randn(2, 2, 9), states(2, 3, 9))
    before = results(module, inputs)
    hybridops.fuse(module, adapters={foreign.Cell1d: CELL_1D}, strict=True)
    for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(results(other, inputs), before, **tolerances.FLOAT64)
        assert type(other).__name__ == "FusedCell1d"


def test_the_weights_of_a_source_under_another_call():
    class Swapped(foreign.Attention):
        def forward(self, encoder_outputs, hidden):
            return super().forward(hidden, encoder_outputs)

    def call(module, weights, keys, hidden):
        scores = HF.additive_scores(F.linear(hidden, weights.query_weight, weights.query_bias)[:, None],
                                    F.linear(keys, weights.key_weight), weights.v)  # fmt: skip
        return torch.softmax(scores[:, 0], 1)

    def examples(module, weights, batch, steps):
        yield torch.randn(batch, steps, 8), torch.randn(batch, 8)

    module = build(lambda: Swapped(8))
    inputs = (randn(3, 5, 8), randn(3, 8))
    before = results(module, inputs)
    ours = interop.adapter("textbook.Attention", call, examples)
    hybridops.fuse(module, adapters={Swapped: ours}, strict=True)
    torch.testing.assert_close(results(module, inputs), before, **tolerances.FLOAT64)


class Scaled(nn.Module):
    """Under autocast it stays in float32, which a linear layer does not; its gain has no dimensions."""

    def __init__(self):
        super().__init__()
        self.linear, self.gain = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        return self.gain * ((x[:, None] * self.linear.weight).sum(2) + self.linear.bias)


def scaled(call) -> nn.Module:
    module = build(Scaled)
    ours = interop.adapter(lambda m: m.linear, call, lambda m, weights, batch, steps: [(torch.randn(batch, 3),)])
    return hybridops.fuse(module, adapters={Scaled: ours}, strict=True)


def test_a_parameter_without_dimensions():
    """It is drawn anew like every other one: zero would hide what the adapter leaves out."""
    plain, module = build(Scaled), scaled(lambda m, linear, x: m.gain * linear(x))
    for each in (plain, module):
        nn.init.constant_(each.gain, 0.5)
    torch.testing.assert_close(results(module, (randn(4, 3),)), results(plain, (randn(4, 3),)), **tolerances.FLOAT64)
    with pytest.raises(ValueError, match=r"^Scaled is not fused: .* differs"):
        scaled(lambda m, linear, x: m.gain * F.linear(x, linear.weight))


def test_dtypes_under_autocast_stay_after_a_cast():
    """What holds in float64, which autocast leaves as it is, need not hold in float32."""
    module = scaled(lambda m, linear, x: m.gain * linear(x)).float()
    with torch.autocast("cpu"):
        assert module(torch.randn(4, 3)).dtype == torch.float32


def test_on_the_meta_device():
    """Autocast does not know it; an adapter that is not for autocast asks all the same."""
    module = scaled(lambda m, linear, x: m.gain * linear(x)).float()
    assert not type(module).plan.autocast
    x = torch.randn(4, 3, device="meta")
    got = module.to("meta")(x)
    assert (got.shape, got.device.type) == ((4, 2), "meta")
    for source in ("textbook.ConvLSTMCell", "textbook.Attention"):
        make, inputs = NAMED[source]
        inputs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), inputs)
        assert structure(fused(make, source).to("meta")(*inputs)) == structure(build(make).to("meta")(*inputs))


@pytest.mark.parametrize(
    ("adapters", "error", "message"),
    [
        ([foreign.Ndrplz], TypeError, "adapters must be a dictionary from classes to adapters, got list"),
        ({"Ndrplz": "ndrplz"}, TypeError, "a key of adapters must be a class of modules, got 'Ndrplz'"),
        ({int: "ndrplz"}, TypeError, "a key of adapters must be a class of modules, got <class 'int'>"),
        ({foreign.Ndrplz: "ndrplzz"}, ValueError, r"must be one of .*'ndrplz', .*, got 'ndrplzz'"),
        ({foreign.Ndrplz: print}, TypeError, "the adapter of Ndrplz must be a name or an Adapter, got builtin"),
    ],
)
def test_wrong_adapters(adapters, error, message):
    with pytest.raises(error, match=message):
        hybridops.fuse(foreign.Attention(8), adapters=adapters)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, print, print), {}, TypeError, "weights must be a function, got NoneType"),
        ((print, "ndrplz", print), {}, TypeError, "call must be a function, got str"),
        (("ndrplzz", print, print), {}, ValueError, "got 'ndrplzz'"),
        ((print, print, print), {"varies": "mask"}, TypeError, "varies must be names of attributes, got 'mask'"),
    ],
)
def test_wrong_arguments_of_adapter(arguments, options, error, message):
    with pytest.raises(error, match=message):
        interop.adapter(*arguments, **options)


# --------------------------------------------------------------------------------------- what is not what was said


class Cell(foreign.ConvLSTMCell):
    """Its gates, for one that computes something slightly different."""

    def gates(self, x_t, h_prev):
        return self.conv(torch.cat([x_t, h_prev], dim=1)).chunk(4, dim=1)


class OtherActivation(Cell):
    def forward(self, x_t, states):
        f, i, g, o = self.gates(x_t, states[0])
        c = F.hardsigmoid(f) * states[1] + F.hardsigmoid(i) * g.tanh()
        return F.hardsigmoid(o) * c.tanh(), c


class Clamped(Cell):
    def forward(self, x_t, states):
        h, c = super().forward(x_t, states)
        return h, c.clamp(-50, 50)


class DropsNaN(Cell):
    def forward(self, x_t, states):
        return super().forward(x_t.nan_to_num(), states)


class Detached(Cell):
    """The numbers of a ConvLSTM, not its gradients."""

    def forward(self, x_t, states):
        return super().forward(x_t, (states[0].detach(), states[1]))


class Dropout(Cell):
    """In evaluation it is a ConvLSTM."""

    def forward(self, x_t, states):
        h, c = super().forward(x_t, states)
        return F.dropout(h, 0.2, self.training), c


class Remembers(Cell):
    last = None

    def forward(self, x_t, states):
        self.last = super().forward(x_t, states)
        return self.last


class Writes(Cell):
    def forward(self, x_t, states):
        h, c = super().forward(x_t, states)
        with torch.no_grad():
            states[1].copy_(c)
        return h, c


class Raises(Cell):
    def forward(self, x_t, states):
        raise OSError("no such weather")


class Anything(Cell):
    def forward(self, *args):
        return super().forward(*args)


class Uncopied(Cell):
    def __deepcopy__(self, memo):
        raise OSError("one of a kind")


class Counts(Cell):
    def forward(self, x_t, states):
        return *super().forward(x_t, states), 1


class ClampedStack(foreign.Ndrplz):
    """No cell grows beyond ten, which takes more than ten steps to see."""

    def forward(self, input_tensor, hidden_state=None):
        (output,), ((h, c),) = super().forward(input_tensor, hidden_state)
        return [output], [[h, c.clamp(-10, 10)]]


class MasksZeroKeys(foreign.Attention):
    def forward(self, hidden, encoder_outputs):
        energy = torch.tanh(self.attn(torch.cat((hidden[:, None].expand_as(encoder_outputs), encoder_outputs), 2)))
        scores = self.v(energy).squeeze(2)
        return F.softmax(scores.masked_fill((encoder_outputs == 0).all(2), -1e10), 1)


class OtherMask(foreign.Bentrevett):
    """One that is True where nothing may be attended."""

    def forward(self, hidden, encoder_outputs, mask=None):
        return super().forward(hidden, encoder_outputs, None if mask is None else mask == 0)


REFUSED = {
    OtherActivation: ((3, 4, 3), "textbook.ConvLSTMCell", "random values, .* in evaluation, .* largest difference"),
    Clamped: ((3, 4, 3), "textbook.ConvLSTMCell", "values in the thousands, .* difference is "),
    DropsNaN: ((3, 4, 3), "textbook.ConvLSTMCell", "NaN in one place of tensor 1, .* NaN in other places"),
    Detached: ((3, 4, 3), "textbook.ConvLSTMCell", "a gradient differs"),
    Dropout: ((3, 4, 3), "textbook.ConvLSTMCell", "in training, "),
    Remembers: ((3, 4, 3), "textbook.ConvLSTMCell", "its forward changes what it keeps"),
    Writes: ((3, 4, 3), "textbook.ConvLSTMCell", "its forward writes into its arguments"),
    Raises: ((3, 4, 3), "textbook.ConvLSTMCell", "its own forward raises OSError: no such weather"),
    Anything: ((3, 4, 3), "textbook.ConvLSTMCell", "its forward takes any number of arguments"),
    Uncopied: ((3, 4, 3), "textbook.ConvLSTMCell", "it cannot be copied: OSError: one of a kind"),
    Counts: ((3, 4, 3), "textbook.ConvLSTMCell", "is nested otherwise"),
    ClampedStack: ((3, [4], 3), "ndrplz", "1000 everywhere, batch 1, time 30, .* difference is "),
    MasksZeroKeys: ((8,), "textbook.Attention", "zeros"),
    OtherMask: ((4, 7), "bentrevett", "arguments of kind 2, random values"),
    foreign.NdrplzCell: ((3, 4, 3), "textbook.ConvLSTMCell", "differs"),
    foreign.OpenSTLCell: ((3, 4, 3), "ndrplz", "cannot read its weights ValueError: there is no cell_list.0.conv"),
    foreign.Bentrevett: ((4, 7), "textbook.Attention", "its own forward raises RuntimeError"),
    foreign.SladewinterCell: ((3, 4, 3, (5, 6), True), "sladewinter_notebook.ConvLSTMCell", "difference is"),
}


@pytest.mark.parametrize(("kind", "arguments", "source", "why"), [(k, *v) for k, v in REFUSED.items()])
def test_who_says_something_wrong_is_told(kind, arguments, source, why):
    module = build(lambda: kind(*arguments))
    state = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=rf"^{kind.__name__} is not fused: .*{why}"):
        hybridops.fuse(module, adapters={kind: source})
    assert type(module) is kind
    torch.testing.assert_close(dict(module.state_dict()), dict(state), **tolerances.EXACT)


def test_a_norm_is_not_what_was_said():
    module = build(lambda: foreign.Jhhuang96(3, 8, 3, norm=True))
    with pytest.raises(ValueError, match=r"^Jhhuang96 is not fused: .* differs"):
        hybridops.fuse(module, adapters={foreign.Jhhuang96: "jhhuang96"})


# ----------------------------------------------------------------------------------------------- what is left alone


def circular(module):
    module.conv = nn.Conv2d(7, 16, 3, padding=1, padding_mode="circular").double()


def dilated(module):
    module.conv = nn.Conv2d(7, 16, 3, padding=2, dilation=2).double()


def low_rank(module):
    class LoRA(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    module.conv = LoRA(7, 16, 3, padding=1).double()


def hooked(module):
    module.conv.register_forward_hook(lambda _module, _args, out: out * 2)


def patched(module):
    conv = module.conv
    conv.forward = lambda x: nn.Conv2d.forward(conv, x) * 2


CHANGES = {
    circular: "has padding_mode",
    dilated: "has padding (2, 2), not (1, 1)",
    low_rank: "is a LoRA, not a Linear or Conv1d",
    hooked: "has hooks",
    patched: "has a forward of its own",
}
changes = pytest.mark.parametrize(("change", "why"), CHANGES.items(), ids=lambda value: getattr(value, "__name__", ""))
ADAPTERS = {foreign.ConvLSTMCell: "textbook.ConvLSTMCell"}


@changes
@pytest.mark.parametrize("kind", [foreign.ConvLSTMCell, hybridops.reference.ConvLSTMCell])
def test_parts_that_are_not_plain(kind, change, why):
    module = build(lambda: kind(3, 4, 3))
    change(module)
    _, report = hybridops.fuse(module, adapters=ADAPTERS, report=True)
    assert type(module) is kind
    assert report.left_alone[""].startswith(f"Its part conv {why}")


@changes
def test_parts_that_are_plain_no_more(change, why, calls):
    """What is done to a module afterwards is seen at the next call."""
    plain, module = (build(lambda: foreign.ConvLSTMCell(3, 4, 3)) for _ in range(2))
    hybridops.fuse(module, adapters=ADAPTERS, strict=True)
    calls.clear()
    for each in (plain, module):
        change(each)
    module.load_state_dict(plain.state_dict())
    inputs = (randn(*FRAMES), states(2, 4, *SIZE))
    torch.testing.assert_close(results(module, inputs), results(plain, inputs), **tolerances.EXACT)
    assert calls == []


def test_attributes_of_the_cell_are_seen(calls):
    plain, module = (build(lambda: foreign.PeepholeCell(3, 8, 3)) for _ in range(2))
    hybridops.fuse(module, adapters={foreign.PeepholeCell: "metnet.ConvLSTMCell"}, strict=True)
    calls.clear()
    plain.activation = module.activation = torch.relu
    inputs = (randn(*FRAMES), STATES)
    torch.testing.assert_close(results(module, inputs), results(plain, inputs), **tolerances.EXACT)
    assert calls == []


def test_a_mask_set_beforehand_is_read(calls):
    plain, module = build(lambda: foreign.Gnmt(4, 5, 6)), fused(lambda: foreign.Gnmt(4, 5, 6), "gnmt")
    inputs = (randn(3, 2, 4), randn(3, 5, 5))
    for each in (plain, module):
        each.set_mask(~MASK)
    calls.clear()
    torch.testing.assert_close(results(module, inputs), results(plain, inputs), **tolerances.FLOAT64)
    assert calls


@pytest.mark.parametrize("module", [foreign.ConvLSTMCell(3, 4, 3), foreign.Ndrplz(3, [4], 3), foreign.Attention(4)])
def test_without_an_adapter_nothing_is_swapped(module):
    kind = type(module)
    _, report = hybridops.fuse(module, report=True)
    assert type(module) is kind
    assert report.left_alone[""] == "It is none of this library's modules, and no adapter speaks for its class."


def test_others_are_left_alone():
    model = nn.ModuleDict({"subclass": Cell(3, 4, 3), "own": foreign.ConvLSTMCell(3, 4, 3)})
    model["buffer"] = foreign.ConvLSTMCell(3, 4, 3)
    model["buffer"].register_buffer("steps", torch.zeros(1))
    model["tensor"] = foreign.ConvLSTMCell(3, 4, 3)
    model["tensor"].extra = torch.zeros(1)
    model["meta"] = foreign.ConvLSTMCell(3, 4, 3).to("meta")
    model["own"].forward = print
    _, report = hybridops.fuse(model, adapters=ADAPTERS, report=True)
    assert report.swapped == {}
    assert report.left_alone == {
        "subclass": "It is a subclass of ConvLSTMCell, and may compute something else.",
        "own": "It has a forward of its own.",
        "buffer": "It has buffers, on which its forward may depend.",
        "tensor": "It keeps what is neither a parameter nor a buffer: extra.",
        "meta": "Its parameters are not numbers on one device.",
    }


def test_other_calls_go_to_the_modules_own_forward(calls):
    module = fused(lambda: foreign.Ndrplz(3, [8, 6], 3), "ndrplz")
    calls.clear()
    with pytest.raises(NotImplementedError):
        module(randn(5, *FRAMES), hidden_state=[])
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        module(randn(5, *FRAMES), cell=None)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        module()
    with pytest.raises(RuntimeError, match="channels"):
        module(randn(5, 2, 4, *SIZE))
    assert calls == []


# ------------------------------------------------------------------------------------------------- within PyTorch


def test_weights_that_are_computed(calls):
    plain, module = (build(lambda: foreign.ConvLSTMCell(3, 4, 3)) for _ in range(2))
    for each in (plain, module):
        nn.utils.parametrizations.weight_norm(each.conv)
    hybridops.fuse(module, adapters=ADAPTERS, strict=True)
    calls.clear()
    inputs = (randn(*FRAMES), states(2, 4, *SIZE))
    torch.testing.assert_close(results(module, inputs), results(plain, inputs), **tolerances.FLOAT64)
    assert calls


def test_pruned_weights(calls):
    plain, module = (build(lambda: foreign.Attention(8)) for _ in range(2))
    hybridops.fuse(module, adapters={foreign.Attention: "textbook.Attention"}, strict=True)
    for each in (plain, module):
        nn.utils.prune.l1_unstructured(each.attn, "weight", 0.5)
    calls.clear()
    inputs = (randn(3, 8), randn(3, 5, 8))
    torch.testing.assert_close(results(module, inputs), results(plain, inputs), **tolerances.FLOAT64)
    assert calls == []  # another attribute than what was verified: its own forward


def test_a_class_over_the_fused_one(calls):
    """FSDP2 puts a subclass of a module's class in its place."""
    plain, module = (build(lambda: foreign.ConvLSTMCell(3, 4, 3)) for _ in range(2))
    hybridops.fuse(module, adapters=ADAPTERS, strict=True)
    module.__class__ = type("Sharded", (type(module),), {})
    calls.clear()
    inputs = (randn(*FRAMES), states(2, 4, *SIZE))
    torch.testing.assert_close(results(module, inputs), results(plain, inputs), **tolerances.FLOAT64)
    assert calls


def test_a_state_of_ones_own():
    """__getstate__ and __setstate__ of the class are called."""
    module = Stateful(3, 4, 3).double()
    hybridops.fuse(module, adapters={Stateful: "textbook.ConvLSTMCell"}, strict=True)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.restored == 1
        assert type(other).__name__ == "FusedStateful"


class Stateful(foreign.ConvLSTMCell):
    def __getstate__(self):
        return self.__dict__ | {"kept": 1}

    def __setstate__(self, state):
        super().__setstate__({key: value for key, value in state.items() if key != "kept"})
        self.restored = state["kept"]


@pytest.mark.parametrize("source", ["textbook.ConvLSTMCell", "ndrplz", "textbook.Attention"])
def test_exports_by_name(source):
    make, inputs = NAMED[source]
    module = fused(make, source)
    named = dict(zip(inspect.signature(module.forward).parameters, inputs, strict=False))
    want = module(**named)
    exported = torch.export.export(module, (), kwargs=named).module()
    torch.testing.assert_close(exported(**named), want, **tolerances.FLOAT64)


@pytest.mark.parametrize("source", ["textbook.ConvLSTMCell", "ndrplz", "textbook.Attention", "bentrevett"])
def test_compiles_in_one_graph(source):
    make, inputs = NAMED[source]
    module = fused(make, source)
    torch.compiler.reset()  # forward is the same code in all of them, and may not be compiled any number of times
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(compiled, inputs)[0], results(module, inputs)[0], **tolerances.FLOAT64)


def test_functional_call(calls):
    """Other tensors in place of the parameters."""
    other = foreign.ConvLSTMCell(3, 4, 3)
    module = fused(lambda: foreign.ConvLSTMCell(3, 4, 3), "textbook.ConvLSTMCell")
    inputs = (randn(*FRAMES), states(2, 4, *SIZE))
    calls.clear()
    got = torch.func.functional_call(module, dict(other.double().named_parameters()), inputs)
    torch.testing.assert_close(got, other(*inputs), **tolerances.FLOAT64)
    assert calls


# --------------------------------------------------------------------------------------------------- whole models


class Decoder(nn.Module):
    """Documents 001: the cell in a loop over frames, attention in a loop over words."""

    def __init__(self):
        super().__init__()
        self.cell = foreign.ConvLSTMCell(3, 8, kernel_size=3)
        self.attention = foreign.Attention(8)
        self.same_attention = self.attention
        self.rnn = nn.GRUCell(8, 8)

    def forward(self, video, words):
        h = c = video.new_zeros(len(video), 8, *video.shape[3:])
        encoded = []
        for frame in video.unbind(1):
            h, c = self.cell(frame, (h, c))
            encoded.append(h.mean((2, 3)))
        encoded = torch.stack(encoded, 1)
        hidden = encoded[:, -1]
        for _ in range(words):
            weights = self.attention(hidden, encoded)
            hidden = self.rnn((weights[:, None] @ encoded)[:, 0], hidden)
        return hidden


BOTH = ADAPTERS | {foreign.Attention: "textbook.Attention"}


def test_a_model_and_its_report(calls):
    model = nn.Sequential(build(Decoder), hybridops.reference.ConvLSTMCell(3, 8, 3))
    inputs = (randn(2, 4, 3, *SIZE), 3)
    before = results(model[0], inputs)
    _, report = hybridops.fuse(model, adapters=BOTH, strict=True, report=True)
    assert report.swapped == {
        "0.cell": "ConvLSTMCell -> FusedConvLSTMCell",
        "0.attention": "Attention -> FusedAttention",
        "1": "ConvLSTMCell -> FusedConvLSTMCell",
    }
    assert list(report.left_alone) == ["0"]
    assert str(report).splitlines()[-1].startswith("left alone  0: It is none of this library's modules")
    calls.clear()
    torch.testing.assert_close(results(model[0], inputs), before, **tolerances.FLOAT64)
    assert calls
    _, again = hybridops.fuse(model, adapters=BOTH, report=True)
    assert again.swapped == {}
    assert again.left_alone["0.cell"] == "It is fused already."


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.LSTM(2, 2)), foreign.Attention(4)])
def test_strict(model):
    with pytest.raises(ValueError, match=r"^model must have a module that can be fused, got\n"):
        hybridops.fuse(model, adapters=ADAPTERS, strict=True)


@pytest.mark.parametrize("name", ["strict", "report"])
def test_flags_are_bools(name):
    with pytest.raises(TypeError, match=rf"^{name} must be a bool, got 1"):
        hybridops.fuse(nn.Linear(1, 1), **{name: 1})


# ---------------------------------------------------------------------------------------------------- suggestions


@named
def test_what_is_suggested(source, make, inputs):
    module = build(make)
    kind = type(module)
    classes = interop.suggest(module).classes
    assert type(module) is kind
    assert source in classes[kind][1]


def test_suggestions_are_sentences():
    model = nn.ModuleList([Decoder(), foreign.Attention(4), foreign.Tutorial(4)])
    lines = str(interop.suggest(model)).splitlines()
    two = "2 modules of class Attention (0.attention, 1) have the parameters of"
    assert f"{two} 'textbook.Attention' or 'bentrevett'." in lines
    assert "1 module of class Tutorial (2) has the parameters of 'pytorch_tutorial'." in lines
    assert "    hybridops.fuse(model, adapters={Tutorial: 'pytorch_tutorial'})" in lines
    assert str(interop.suggest(nn.Linear(2, 2))) == "No module has the parameters of a source that has an adapter."
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got dict"):
        interop.suggest({})
