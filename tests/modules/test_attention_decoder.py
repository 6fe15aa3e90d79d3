"""FusedAttentionDecoder in place of the plain module: all calls, parts that are more than their weights, decoding."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import hybridops
from hybridops import backends, reference, triton
from hybridops.reference import DecoderState
from tests import tolerances
from tests.decoder_problems import CELLS, LENGTHS, MASK, QUERIES
from tests.modules.agreement import assert_agree, pair, results
from tests.modules.test_parts import CHANGES, LowRank, change
from tests.native.recorder import Recorder

cells = pytest.mark.parametrize("cell", CELLS)
queries = pytest.mark.parametrize("query", QUERIES)
VARIANTS = {
    "plain": {},
    "gate": {"context_gate": True},
    "relu": {"activation": "relu"},
    "dropout": {"dropout": 0.4},
    "everything": {"context_gate": True, "activation": "leaky_relu", "dropout": 0.4},
}
variants = pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
SIZES = {"input_dim": 3, "hidden_dim": 6, "memory_dim": 4, "attn_dim": 7}

# None: the fastest, or the plain forward through the parts where nothing compiled is here
HERE = [name for name in backends.names() if name != "triton" or triton.INTERPRETED]  # those that run on the CPU
BACKENDS = [None, *(name for name in HERE if "attention_decoder" in backends.get(name).families)]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


class Called(nn.Module):
    """With its keywords; without the None of weights that are not needed."""

    def __init__(self, decoder: nn.Module, **keywords: Any) -> None:
        super().__init__()
        self.decoder, self.keywords = decoder, keywords

    def forward(self, *inputs: Any) -> Any:
        return self.decoder(*inputs, **self.keywords)


def decoders(backend: str | None, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    plain, fused = pair("AttentionDecoder", **SIZES | arguments)
    fused.backend = fused.attention.backend = backend
    return plain, fused


def tensors(cell: str, batch: int = 3, steps: int = 4, keys: int = 5, states: bool = True, **sizes: int) -> tuple:
    """x, memory, hx"""
    sizes = SIZES | sizes
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, memory = randn(batch, steps, sizes["input_dim"]), randn(batch, keys, sizes["memory_dim"])
    h, c = randn(batch, sizes["hidden_dim"]), randn(batch, sizes["hidden_dim"])
    return x, memory, (h if cell == "gru" else (h, c)) if states else None


def assert_both(modules: tuple[nn.Module, nn.Module], inputs: tuple, seed: int | None = None, **keywords: Any) -> None:
    assert_agree(*(Called(module, **keywords) for module in modules), *inputs, seed=seed)


# ------------------------------------------------------------------------------------------------- fused and plain


@cells
@queries
@variants
@each_backend
@pytest.mark.parametrize("training", [True, False])
def test_variants(cell, query, arguments, backend, training):
    """Outputs, gradients of all parameters and inputs; dropout draws what the plain module's draws."""
    modules = decoders(backend, cell=cell, query=query, **arguments)
    for module in modules:
        module.train(training)
    for keywords in ({}, {"mask": MASK}, {"lengths": LENGTHS}, {"mask": MASK, "lengths": LENGTHS}):
        for need_weights in (True, False):
            assert_both(modules, tensors(cell), seed=3, need_weights=need_weights, **keywords)
    assert_both(modules, tensors(cell, states=False), seed=3)


@cells
@queries
def test_several_heads(cell, query):
    """The loop over the steps, on the fused attention; a back end that was named says that it has no such op."""
    modules = decoders(None, cell=cell, query=query, attn_dim=6, num_heads=2, context_gate=True)
    assert modules[1].attention.v.weight.shape == (2, 3)
    assert_both(modules, tensors(cell), need_weights=True, mask=MASK, lengths=LENGTHS)
    x, memory, hx = tensors(cell)
    with torch.no_grad():
        want = modules[0](x, memory, hx, mask=MASK, need_weights=True)
        state = modules[1].start(memory, hx, mask=MASK)
        for s in range(x.shape[1]):
            output, context, weights, state = modules[1].step(x[:, s], state)
            got, wanted = (output, context, weights), (want[0][:, s], want[2][:, s], want[3][:, s])
            torch.testing.assert_close(got, wanted, **tolerances.FLOAT64)
    modules[1].backend = "native"
    with pytest.raises(RuntimeError, match="attention has 2 heads"):
        modules[1](x, memory, hx)


LOCATIONS = {
    "convolution": {"location": "convolution", "location_filters": 2, "location_kernel": 3},
    "coverage": {"location": "coverage"},
    "convolution, gate": {
        "location": "convolution", "location_filters": 1, "location_kernel": 5, "context_gate": True
    },
    "heads": {"location": "coverage", "num_heads": 2, "attn_dim": 6},
    "dropout": {"location": "coverage", "dropout": 0.4},
}  # fmt: skip
locations = pytest.mark.parametrize("arguments", LOCATIONS.values(), ids=LOCATIONS)


@cells
@queries
@locations
def test_locations(cell, query, arguments):
    """The same as the plain module, gradients included, in training and step by step."""
    modules = decoders(None, cell=cell, query=query, **arguments)
    for keywords in ({}, {"mask": MASK, "lengths": LENGTHS}):
        for need_weights in (True, False):
            assert_both(modules, tensors(cell), seed=3, need_weights=need_weights, **keywords)
    assert_both(modules, tensors(cell, batch=0), need_weights=True)
    x, memory, hx = tensors(cell)
    for module in modules:
        module.eval()
        with torch.no_grad():
            want = modules[0](x, memory, hx, mask=MASK, need_weights=True)
            state = module.start(memory, hx, mask=MASK)
            for s in range(x.shape[1]):
                output, context, weights, state = module.step(x[:, s], state)
                got, wanted = (output, context, weights), (want[0][:, s], want[2][:, s], want[3][:, s])
                torch.testing.assert_close(got, wanted, **tolerances.FLOAT64)


def test_a_location_is_that_of_the_papers():
    """The energies of Shen et al. 2018, written out: query, key, and the projected filters of the two histories."""
    plain, _ = decoders(None, **LOCATIONS["convolution"])
    x, memory, (h, c) = tensors("lstm")
    attention, weight, filters = plain.attention, plain.location_proj.weight, plain.location_conv.weight
    before = total = torch.zeros(3, 5, dtype=torch.float64)
    got = plain(x, memory, (h, c), need_weights=True)[3]
    for s in range(x.shape[1]):
        padded = torch.nn.functional.pad(torch.stack([before, total], 1), (1, 1))
        seen = torch.stack([torch.einsum("fck,bck->bf", filters, padded[..., t : t + 3]) for t in range(5)], 1)
        energy = attention.query_proj(h)[:, None] + attention.key_proj(memory) + seen @ weight.T
        before = torch.softmax(attention.v(energy.tanh())[..., 0], 1)
        total = total + before
        torch.testing.assert_close(got[:, s], before, **tolerances.FLOAT64)
        context = (before[..., None] * memory).sum(1)
        h, c = plain.cell(torch.cat([x[:, s], context], 1), (h, c))


@locations
def test_beams_with_a_location(arguments):
    """Each beam has a history of its own, which goes with it: as if the memory were repeated."""
    rows, order = torch.arange(3).repeat_interleave(2), torch.tensor([1, 1, 2, 3, 5, 4])
    x, memory, hx = tensors("lstm", steps=6)
    with torch.no_grad():
        for module in (module.eval() for module in decoders(None, **arguments)):
            *_, state = module.step(x[:, 0], module.start(memory, hx, mask=MASK))
            *_, state = module.step(x.flatten(0, 1)[:6], state.reorder(rows))
            *got, state = module.step(x[rows, 2], state.reorder(order))
            repeated = module.start(memory[rows], tuple(t[rows] for t in hx), mask=MASK[rows])
            *_, repeated = module.step(x[rows, 0], repeated)
            *_, repeated = module.step(x.flatten(0, 1)[:6], repeated)
            *want, repeated = module.step(x[rows, 2], repeated.select(order))
            torch.testing.assert_close(got, want, **tolerances.FLOAT64)
            *got, _ = module.step(x[rows[2:], 3], state.select(torch.tensor([1, 2])))
            *want, _ = module.step(x[rows[2:], 3], repeated.select(torch.arange(2, 6)))
            torch.testing.assert_close(got, want, **tolerances.FLOAT64)


def test_memory_of_a_location():
    """What a step keeps for its backward has no moved keys: no (B, S, T, A) tensor in all."""
    _, fused = decoders(None, **LOCATIONS["convolution"] | {"attn_dim": 64})
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    sizes = []
    for steps in (4, 24):
        kept.clear()
        x, memory, hx = tensors("lstm", steps=steps, keys=50)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = fused(x, memory, hx)[0].sum()
        sizes.append(sum(kept.values()))
        loss.backward()
    one_key_a_step = 20 * 3 * 50 * 64 * 8
    assert 0 < sizes[1] - sizes[0] < one_key_a_step / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [LOCATIONS["convolution"], {"num_heads": 2, "attn_dim": 6}], ids=["location", "heads"]
)
def test_compiled_loops(arguments):
    torch._dynamo.reset()
    _, fused = decoders(None, **arguments)
    inputs = tensors("lstm", steps=2)
    want = results(fused, inputs)
    fused.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(fused, inputs), want, **tolerances.FLOAT64)


@pytest.mark.parametrize("name", ["location_proj", "location_conv", "v"])
def test_a_hook_on_a_part_of_a_location_runs(name):
    modules = decoders(None, **LOCATIONS["convolution"])
    for module in modules:
        part = module.attention.v if name == "v" else getattr(module, name)
        part.register_forward_hook(lambda _, inputs, out: 2 * out)
    assert_both(modules, tensors("lstm"), need_weights=True)


@cells
@queries
@each_backend
@pytest.mark.parametrize("empty", ["batch", "steps", "keys"])
def test_empty(cell, query, backend, empty):
    modules = decoders(backend, cell=cell, query=query, context_gate=True)
    assert_both(modules, tensors(cell, **{empty: 0}), need_weights=True)


@st.composite
def sizes(draw):
    names = ("input_dim", "hidden_dim", "memory_dim", "attn_dim")
    return {name: draw(st.integers(1, 20)) for name in names} | {
        name: draw(st.integers(1, 6)) for name in ("batch", "steps", "keys")
    }


@pytest.mark.slow
@each_backend
@given(
    sizes=sizes(), cell=st.sampled_from(CELLS), query=st.sampled_from(QUERIES), gate=st.booleans(), padded=st.booleans()
)
def test_any_sizes(backend, sizes, cell, query, gate, padded):
    dims = {name: size for name, size in sizes.items() if name in SIZES}
    keywords = {}
    if padded:
        generator = torch.Generator().manual_seed(0)
        keywords["mask"] = torch.rand(sizes["batch"], sizes["keys"], generator=generator) > 0.3
        keywords["lengths"] = torch.randint(sizes["steps"] + 1, (sizes["batch"],), generator=generator)
    modules = decoders(backend, cell=cell, query=query, context_gate=gate, **dims)
    assert_both(modules, tensors(cell, **sizes), need_weights=True, **keywords)


@each_backend
@pytest.mark.parametrize("bias", ["query_proj", "both"])
def test_projections_with_a_bias(backend, bias):
    """Attention that the user made himself, with the biases `AdditiveAttention` may have, or one, and a scale."""
    modules = decoders(backend)
    for module in modules:
        torch.manual_seed(0)
        kind = type(module.attention)
        module.attention = kind(6, 4, 7, bias=True, scale=0.3, activation="leaky_relu", dtype=torch.float64)
        if bias == "query_proj":
            module.attention.key_proj = nn.Linear(4, 7, bias=False, dtype=torch.float64)
    assert_both(modules, tensors("lstm"), mask=MASK, need_weights=True)


@cells
@each_backend
def test_a_cell_without_biases(cell, backend):
    modules = decoders(backend, cell=cell)
    for module in modules:
        torch.manual_seed(0)
        module.cell = type(module.cell)(7, 6, bias=False, dtype=torch.float64)
    assert_both(modules, tensors(cell))


@cells
@variants
def test_state_dict_goes_both_ways(cell, arguments):
    plain, fused = pair("AttentionDecoder", **SIZES, cell=cell, **arguments)
    plain.load_state_dict(fused.state_dict(), strict=True)
    rows = {"lstm": 24, "gru": 18}[cell]
    want = {
        "attention.query_proj.weight": (7, 6), "attention.key_proj.weight": (7, 4), "attention.v.weight": (1, 7),
        "cell.weight_ih": (rows, 7), "cell.weight_hh": (rows, 6), "cell.bias_ih": (rows,), "cell.bias_hh": (rows,),
    }  # fmt: skip
    want |= {"context_gate.weight": (4, 6), "context_gate.bias": (4,)} if "context_gate" in arguments else {}
    for module in (plain, fused):
        assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == want


# -------------------------------------------------------------------------------------------------------- padding


@cells
@queries
@each_backend
@pytest.mark.parametrize("garbage", [0.0, math.nan, math.inf, 1e30])
def test_padding_changes_nothing(cell, query, backend, garbage):
    """A batch of sentences of several lengths, padded with anything, against each alone: results and gradients."""
    plain, fused = decoders(backend, cell=cell, query=query, context_gate=True)
    x, memory, hx = tensors(cell)
    memory_lengths, lengths = torch.tensor([5, 2, 3]), torch.tensor([4, 1, 3])
    mask, alive = torch.arange(5) < memory_lengths[:, None], torch.arange(4) < lengths[:, None]
    x, memory = x.masked_fill(~alive[..., None], garbage), memory.masked_fill(~mask[..., None], garbage)
    for module in (plain, fused):
        module.zero_grad()
        output, states, context, weights = module(x, memory, hx, mask=mask, lengths=lengths, need_weights=True)
        (output.square().sum() + context.sum()).backward()
        got = [p.grad for p in module.parameters()]
        total = 0.0
        for b, (length, keys) in enumerate(zip(lengths, memory_lengths, strict=True)):
            state = hx[b : b + 1] if cell == "gru" else tuple(t[b : b + 1] for t in hx)
            alone = plain(x[b : b + 1, :length], memory[b : b + 1, :keys], state, need_weights=True)
            total = total + alone[0].square().sum() + alone[2].sum()
            for whole, part in ((output, alone[0]), (context, alone[2])):
                torch.testing.assert_close(whole[b, :length], part[0], **tolerances.FLOAT64)
                assert not whole[b, length:].any()
            torch.testing.assert_close(weights[b, :length, :keys], alone[3][0], **tolerances.FLOAT64)
            assert not weights[b, length:].any()
            assert not weights[b, :, keys:].any()
            last = states[b] if cell == "gru" else torch.cat([t[b] for t in states])
            want = alone[1][0] if cell == "gru" else torch.cat([t[0] for t in alone[1]])
            torch.testing.assert_close(last, want, **tolerances.FLOAT64)
        want = torch.autograd.grad(total, list(plain.parameters()))
        torch.testing.assert_close(got, list(want), **tolerances.FLOAT64)


@each_backend
def test_a_row_that_may_attend_nothing(backend):
    for module in decoders(backend, context_gate=True):
        x, memory, hx = tensors("lstm")
        memory = memory.requires_grad_()
        output, _, context, weights = module(x, memory, hx, mask=MASK, need_weights=True)
        assert not context[1].any()
        assert not weights[1].any()
        (grad,) = torch.autograd.grad(output.sum() + context.sum() + weights.square().sum(), memory)
        assert not grad[1].any()
        assert grad[0].any()
        assert grad.isfinite().all()


# ---------------------------------------------------------------------------------------------------------- parts


def replaced_cell(module: nn.Module) -> None:
    class Doubled(type(module.cell)):
        def forward(self, x, states):
            out = super().forward(x, states)
            return 2 * out if isinstance(out, Tensor) else (2 * out[0], out[1])

    module.cell.__class__ = Doubled


def hooked_cell(module: nn.Module) -> None:
    module.cell.register_forward_pre_hook(lambda cell, args: (2 * args[0], args[1]))


def own_forward(module: nn.Module) -> None:
    kind = type(module.cell)
    module.cell.forward = lambda x, states: kind.forward(module.cell, 3 * x, states)


def hooked_attention(module: nn.Module) -> None:
    module.attention.register_forward_hook(lambda part, args, out: (3 * out[0], out[1]))


def low_rank_gate(module: nn.Module) -> None:
    module.context_gate = LowRank(module.context_gate)


@cells
@queries
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    "how", [replaced_cell, hooked_cell, own_forward, hooked_attention, low_rank_gate], ids=lambda how: how.__name__
)
def test_changed_parts(cell, query, backend, how):
    plain, fused = decoders(backend, cell=cell, query=query, context_gate=True)
    before = fused(*tensors(cell))[0]
    for module in (plain, fused):
        how(module)
    assert_both((plain, fused), tensors(cell), mask=MASK, lengths=LENGTHS, need_weights=True)
    assert not torch.allclose(fused(*tensors(cell))[0], before, **tolerances.FLOAT64)


@pytest.mark.parametrize("how", CHANGES, ids=lambda how: how.__name__)
@pytest.mark.parametrize("path", ["attention.query_proj", "attention.key_proj", "attention.v", "context_gate"])
def test_changed_layers(path, how):
    """On the fused function wherever it may run: the projection of the keys is called in any case."""
    plain, fused = decoders("reference", context_gate=True)
    for module in (plain, fused):
        change(module, path, how)
    assert_both((plain, fused), tensors("lstm"))


@pytest.mark.parametrize("path", ["attention.query_proj", "attention.v", "context_gate"])
def test_hooks_that_compute_a_weight(path):
    """They run, though the part is not called."""
    modules = decoders("reference", context_gate=True)
    for module in modules:
        torch.manual_seed(0)
        prune.random_unstructured(module.get_submodule(path), "weight", 0.5)
    for _ in range(2):
        assert_both(modules, tensors("lstm"))
        with torch.no_grad():
            for module in modules:
                module.get_submodule(path).weight_orig.mul_(1.5)
    modules = decoders("reference", context_gate=True)
    for module in modules:
        parametrizations.weight_norm(module.get_submodule(path))
    assert_both(modules, tensors("lstm"))


def test_plain_parts_run_on_the_function(monkeypatch):
    """The check lets through what it should, and a part that is more than that is called."""
    _, fused = decoders("reference", context_gate=True)
    calls = []
    function = hybridops.functional.attention_decoder
    monkeypatch.setattr(
        hybridops.functional, "attention_decoder", lambda *args, **kw: calls.append(1) or function(*args, **kw)
    )
    fused(*tensors("lstm"))
    assert calls == [1]
    parametrizations.weight_norm(fused.attention.query_proj)
    fused.attention.key_proj.register_forward_hook(lambda part, args, out: out)
    fused(*tensors("lstm"))
    assert calls == [1, 1]
    hooked_cell(fused)
    fused(*tensors("lstm"))
    assert calls == [1, 1]


@pytest.mark.skipif("native" not in BACKENDS, reason="the decoder is not compiled")
@pytest.mark.parametrize(
    "how", [replaced_cell, hooked_cell, own_forward, hooked_attention], ids=lambda how: how.__name__
)
def test_a_named_back_end_runs_or_raises(how):
    _, fused = decoders("native")
    with Recorder("hybridops") as recorder:
        results(fused, tensors("lstm"))
    called = [op.name().removeprefix("hybridops::attention_decoder_") for op, _ in recorder.calls]
    assert called == ["forward", "backward", "hybridops::additive_scores_backward"]
    how(fused)
    with pytest.raises(RuntimeError, match=r"^backend 'native' was asked for, but \w+ .*: it has to be called$"):
        fused(*tensors("lstm"))


@cells
@queries
def test_fuse(cell, query):
    plain = nn.Sequential(reference.AttentionDecoder(**SIZES, cell=cell, query=query, context_gate=True)).double()
    model, report = hybridops.fuse(copy.deepcopy(plain), report=True)
    assert report.swapped == {
        "0": "AttentionDecoder -> FusedAttentionDecoder",
        "0.attention": "AdditiveAttention -> FusedAdditiveAttention",
    }
    assert list(model.state_dict()) == list(plain.state_dict())
    for backend in (None, "reference"):
        model[0].backend = backend
        assert_both((plain[0], model[0]), tensors(cell), mask=MASK, lengths=LENGTHS, need_weights=True)


def test_what_fuse_leaves_alone():
    hooked = reference.AttentionDecoder(**SIZES)
    hooked_cell(hooked)
    _, report = hybridops.fuse(hooked, report=True)
    assert report.left_alone[""] == "Its part cell has hooks."


# -------------------------------------------------------------------------------------------------------- decoding


def run_steps(module: nn.Module, x: Tensor, state: DecoderState) -> tuple[tuple[Tensor, ...], DecoderState]:
    steps = []
    for x_s in x.unbind(1):
        *results, state = module.step(x_s, state)
        steps.append(results)
    return tuple(torch.stack(parts, 1) for parts in zip(*steps, strict=True)), state


@cells
@queries
@each_backend
@pytest.mark.parametrize("mask", [None, MASK], ids=["none", "(B,T)"])
@pytest.mark.parametrize("training", [False, True])
def test_steps_are_forward(cell, query, backend, mask, training):
    for module in decoders(backend, cell=cell, query=query, context_gate=True):
        x, memory, hx = tensors(cell)
        output, states, context, weights = module(x, memory, hx, mask=mask, need_weights=True)
        with torch.set_grad_enabled(training):
            got, state = run_steps(module, x, module.start(memory, hx, mask=mask))
        torch.testing.assert_close(got, (output, context, weights), **tolerances.FLOAT64)
        torch.testing.assert_close(state.h if cell == "gru" else (state.h, state.c), states, **tolerances.FLOAT64)
        assert got[0].requires_grad == training


@cells
def test_steps_from_zeros(cell):
    for module in decoders(None, cell=cell):
        x, memory, _ = tensors(cell)
        got, _ = run_steps(module, x, module.start(memory))
        torch.testing.assert_close(got[0], module(x, memory)[0], **tolerances.FLOAT64)


def test_gradients_through_steps():
    grads = []
    for module in decoders(None, query="current"):
        x, memory, hx = tensors("lstm")
        leaves = [x.requires_grad_(), memory.requires_grad_(), *module.parameters()]
        (output, _, _), _ = run_steps(module, x, module.start(memory, hx, mask=MASK))
        for out in (output, module(x, memory, hx, mask=MASK)[0]):
            grads.append(torch.autograd.grad(out.square().sum(), leaves))
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], **tolerances.FLOAT64)


@cells
@queries
@pytest.mark.parametrize("mask", [None, MASK], ids=["none", "(B,T)"])
def test_beams_share_the_memory(cell, query, mask):
    """As if it were repeated for each beam; after the first step there are two, which then change places."""
    beams, places = 2, torch.tensor([1, 0, 2, 2, 5, 4])
    for module in decoders(None, cell=cell, query=query, context_gate=True):
        x, memory, hx = tensors(cell)
        with torch.no_grad():
            start = module.start(memory, hx, mask=mask)
            state = module.step(x[:, 0], start)[-1].reorder(torch.arange(3).repeat_interleave(beams))
            repeated = module.start(
                *(t if t is None else repeat(t, beams) for t in (memory, hx)), mask=repeat(mask, beams)
            )
            other = module.step(x[:, 0].repeat_interleave(beams, 0), repeated)[-1]
            generator = torch.Generator().manual_seed(1)
            for _ in range(2):
                x_s = torch.randn(6, 3, generator=generator, dtype=torch.float64)
                *got, state = module.step(x_s, state)
                *want, other = module.step(x_s, other)
                torch.testing.assert_close(got, want, **tolerances.FLOAT64)
                state = state.reorder(places)
                other = DecoderState(
                    other.keys, *(t if t is None else t[places] for t in (other.h, other.c, other.context))
                )
        assert state.keys is start.keys


def repeat(hx: Any, times: int) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.repeat_interleave(times, 0), hx)


@cells
@queries
@each_backend
@pytest.mark.parametrize("mask", [None, MASK, MASK[:1]], ids=["none", "(B,T)", "(1,T)"])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("index", [[2, 0], [1], [], [0, 0, 1, 2]], ids=str)
def test_select(cell, query, backend, mask, beams, index):
    """Those that go on, as if they had been alone."""
    index = torch.tensor(index, dtype=torch.int64)
    for module in decoders(backend, cell=cell, query=query):
        x, memory, hx = tensors(cell)
        with torch.no_grad():
            state = module.step(x[:, 0], module.start(memory, hx, mask=mask))[-1]
            state = state.reorder(torch.arange(3).repeat_interleave(beams))
            x_s = torch.randn(3, beams, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            *want, _ = module.step(x_s.flatten(0, 1), state)
            if len(index) == 0:
                assert state.select(index).h.shape == (0, 6)
                continue
            *got, _ = module.step(x_s[index].flatten(0, 1), state.select(index))
        want = [t.unflatten(0, (3, beams))[index].flatten(0, 1) for t in want]
        torch.testing.assert_close(got, want, **tolerances.FLOAT64)


def test_a_state_serves_again():
    """It is not changed by a step."""
    for module in decoders(None):
        x, memory, hx = tensors("lstm")
        state = module.start(memory, hx)
        with torch.no_grad():
            first, again = (module.step(x[:, 0], state)[:3] for _ in range(2))
        torch.testing.assert_close(again, first, **tolerances.EXACT)


@pytest.mark.skipif("native" not in BACKENDS, reason="the decoder is not compiled")
@cells
@queries
@pytest.mark.parametrize("mask", [None, MASK, MASK[:1]], ids=["none", "(B,T)", "(1,T)"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_step_is_two_ops(cell, query, mask, dtype):
    """The part of x, and all else: of one row for each entry, without gradients. A hook, or dropout, has the parts
    called.
    """
    plain, fused = (m.to(dtype) for m in decoders(None, cell=cell, query=query, context_gate=True))
    exact = copy.deepcopy(plain).double()
    x, memory, hx = torch.utils._pytree.tree_map(lambda t: t.to(dtype), tensors(cell))

    def two_steps(module: nn.Module) -> list[Tensor]:
        doubles = torch.utils._pytree.tree_map(Tensor.double, (x, memory, hx)) if module is exact else (x, memory, hx)
        *first, state = module.step(doubles[0][:, 0], module.start(*doubles[1:], mask=mask))
        return [*first, *module.step(doubles[0][:, 1], state)[:3]]

    def error(results: list[Tensor]) -> float:
        assert {t.dtype for t in results} == {dtype}
        return max(tolerances.largest(t.double() - want) for t, want in zip(results, two_steps(exact), strict=True))

    with torch.no_grad():
        state = fused.start(memory, hx, mask=mask)
        with Recorder("hybridops") as recorder:
            *_, after = fused.step(x[:, 0], state)
            fused.step(x[:, 1], after)
        step = ["hybridops::linear_packed", "hybridops::attention_decoder_forward"]
        assert [op.name() for op, _ in recorder.calls] == step * 2
        if dtype == torch.float64:
            torch.testing.assert_close(two_steps(fused), two_steps(plain), **tolerances.FLOAT64)
        else:  # results are of order one
            floor = tolerances.FLOOR_ULPS[dtype][0] * torch.finfo(dtype).eps
            assert error(two_steps(fused)) <= tolerances.TIMES_PLAIN * error(two_steps(plain)) + floor
        own_forward(fused)
        with Recorder("hybridops") as recorder:
            fused.step(x[:, 0], state)
    assert [op.name() for op, _ in recorder.calls] == ["hybridops::additive_attention_step"]


@cells
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_logits(cell, backend, bias):
    """Of a vocabulary, packed or called."""
    plain, fused = decoders(backend, cell=cell)
    vocabulary = nn.Linear(SIZES["hidden_dim"], 11, bias=bias, dtype=torch.float64)
    x, memory, hx = tensors(cell)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            want, got = (m.step(x[:, 0], m.start(memory, hx, vocabulary=vocabulary)) for m in (plain, fused))
            torch.testing.assert_close(got[3].logits(got[0]), vocabulary(want[0]), **tolerances.FLOAT64)
            for count in (3, 5, 99):  # by one op, by the scores of all, and all
                found, sought = (state.likeliest(output, count) for output, _, _, state in (got, want))
                torch.testing.assert_close(found, sought, **tolerances.FLOAT64)
    with pytest.raises(ValueError, match=r"^count must be a positive int"):
        got[3].likeliest(got[0], 0)
    with pytest.raises(ValueError, match=r"^vocabulary must be given to start"):
        fused.start(memory, hx).logits(got[0])


@pytest.mark.skipif("native" not in BACKENDS, reason="the decoder is not compiled")
@pytest.mark.parametrize(("count", "op"), [(3, "linear_likeliest"), (4, "linear_packed")])
def test_a_short_list_of_words_is_one_op(count, op):
    _, fused = decoders(None)
    x, memory, hx = tensors("lstm")
    with torch.no_grad():
        state = fused.start(memory, hx, vocabulary=nn.Linear(SIZES["hidden_dim"], 11, dtype=torch.float64))
        output, *_ = fused.step(x[:, 0], state)
        with Recorder("hybridops") as recorder:
            state.likeliest(output, count)
    assert [op.name() for op, _ in recorder.calls] == [f"hybridops::{op}"]


@cells
def test_packed_weights_count_as_they_are_at_start(cell):
    """All of them, biases and v too: a step is of the weights before or of those after, and of no mixture."""
    _, fused = decoders(None, cell=cell, context_gate=True)
    x, memory, hx = tensors(cell)
    vocabulary = nn.Linear(SIZES["hidden_dim"], 11, dtype=torch.float64)
    with torch.no_grad():
        state = fused.start(memory, hx, vocabulary=vocabulary)
        output, context, weights, _ = want = fused.step(x[:, 0], state)
        logits = state.logits(output)
        for parameter in [*fused.parameters(), *vocabulary.parameters()]:
            parameter.add_(1.0)
        torch.testing.assert_close(fused.step(x[:, 0], state)[:3], want[:3], **tolerances.EXACT)
        torch.testing.assert_close(state.logits(output), logits, **tolerances.EXACT)
        again = fused.step(x[:, 0], fused.start(memory, hx, vocabulary=vocabulary))
    assert not any(torch.equal(a, b) for a, b in zip(again[:3], (output, context, weights), strict=True))


def test_a_vocabulary_that_is_more_is_called():
    """One with a hook, of another class, or in another dtype."""
    _, fused = decoders(None)
    x, memory, hx = tensors("lstm")
    hooked = nn.Linear(SIZES["hidden_dim"], 11, dtype=torch.float64)
    hooked.register_forward_hook(lambda part, args, out: out + 1)
    for vocabulary in (hooked, nn.Sequential(nn.Linear(SIZES["hidden_dim"], 11, dtype=torch.float64), nn.Tanh())):
        with torch.no_grad():
            output, _, _, state = fused.step(x[:, 0], fused.start(memory, hx, vocabulary=vocabulary))
            torch.testing.assert_close(state.logits(output), vocabulary(output), **tolerances.EXACT)
            want = vocabulary(output).log_softmax(1).topk(3)
            torch.testing.assert_close(state.likeliest(output, 3), tuple(want), **tolerances.EXACT)
    late = nn.Linear(SIZES["hidden_dim"], 11, dtype=torch.float64)
    with torch.no_grad():
        state = fused.start(memory, hx, vocabulary=late)
        late.register_forward_hook(lambda part, args, out: out + 1)
        torch.testing.assert_close(state.logits(output), late(output), **tolerances.EXACT)


def test_weights_count_as_they_are_at_each_step():
    """In training, only what `start` computed of the memory is kept."""
    plain, fused = decoders(None)
    x, memory, hx = tensors("lstm")
    states = [module.start(memory, hx) for module in (plain, fused)]
    with torch.no_grad():
        for module in (plain, fused):
            module.cell.weight_hh.mul_(2)
            module.attention.query_proj.weight.mul_(2)
            module.attention.v.weight.mul_(-1)
        want, got = (module.step(x[:, 0], state)[:3] for module, state in zip((plain, fused), states, strict=True))
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)


# ---------------------------------------------------------------------------------------------------------- errors

WRONG = {
    "input_dim": ({"input_dim": 0}, ValueError, r"^input_dim must be a positive int, got 0$"),
    "hidden_dim": ({"hidden_dim": 1.5}, TypeError, r"^hidden_dim must be a positive int, got 1.5 of type float$"),
    "cell": ({"cell": "rnn"}, ValueError, r"^cell must be one of 'lstm', 'gru', got 'rnn'$"),
    "query": ({"query": "next"}, ValueError, r"^query must be one of 'previous', 'current', got 'next'$"),
    "num_heads": ({"num_heads": 3}, ValueError, "^memory_dim must be a multiple of num_heads, 3, got 4$"),
    "attn_dim of heads": ({"num_heads": 2}, ValueError, "^attn_dim must be a multiple of num_heads, 2, got 7$"),
    "activation": ({"activation": "gelu"}, ValueError, r"^activation must be one of"),
    "location": ({"location": "before"}, ValueError, r"^location must be one of 'convolution', 'coverage'"),
    "location_filters": ({"location_filters": 0}, ValueError, r"^location_filters must be a positive int, got 0$"),
    "location_kernel": ({"location_kernel": 4}, ValueError, r"^location_kernel must be odd, got 4$"),
    "context_gate": ({"context_gate": 1}, TypeError, r"^context_gate must be a bool, got 1 of type int$"),
    "dropout": ({"dropout": 2.0}, ValueError, r"^dropout must be a number in \[0, 1\], got 2.0$"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", [reference.AttentionDecoder, hybridops.FusedAttentionDecoder], ids=["plain", "fused"])
def test_errors_of_the_constructor(kind, wrong):
    changed, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        kind(**SIZES | changed)


WRONG_CALLS = {
    "x": ({"x": torch.zeros(3, 4, 2)}, ValueError, r"^x must have shape \(B, S, 3\), got \(3, 4, 2\)$"),
    "memory": ({"memory": torch.zeros(2, 5, 4)}, ValueError, r"^memory must have shape \(3, T, 4\), got \(2, 5, 4\)$"),
    "hx": ({"hx": torch.zeros(3, 6)}, TypeError, r"^hx must be a pair \(h, c\), got Tensor$"),
    "h": ({"hx": (torch.zeros(2, 6),) * 2}, ValueError, r"^h of hx must have shape \(3, 6\), got \(2, 6\)$"),
    "mask": ({"mask": torch.ones(3, 5)}, TypeError, r"^mask must be a boolean tensor"),
    "lengths": ({"lengths": torch.ones(2).long()}, ValueError, r"^lengths must have shape \(3\), got \(2\)$"),
    "floats": ({"lengths": torch.ones(3)}, TypeError, r"^lengths must be a tensor of integers, got torch.float32$"),
}


@pytest.mark.parametrize("wrong", WRONG_CALLS)
@each_backend
def test_errors_of_a_call(wrong, backend):
    changed, error, message = WRONG_CALLS[wrong]
    for module in decoders(backend):
        x, memory, hx = tensors("lstm")
        with pytest.raises(error, match=message):
            module(**{"x": x, "memory": memory, "hx": hx} | changed)


def test_errors_of_decoding():
    for module in decoders(None):
        x, memory, hx = tensors("lstm")
        state = module.start(memory, hx)
        for call, error, message in (
            (lambda: module.start(memory, hx[0]), TypeError, r"^hx must be a pair"),  # noqa: B023
            (lambda: module.step(x, state), ValueError, r"^x must have shape \(3, 3\), got \(3, 4, 3\)$"),  # noqa: B023
            (lambda: module.step(x[:, 0], hx), TypeError, r"^state must be what start or step gave, got tuple$"),  # noqa: B023
            (lambda: state.reorder(torch.arange(4)), ValueError, r"^index must have a multiple of the 3 .* got 4$"),  # noqa: B023
            (lambda: state.select(torch.ones(3)), TypeError, r"^index must be a tensor of int64 or int32, got"),  # noqa: B023
            (lambda: state.select([0]), TypeError, r"^index must be a tensor of shape \(rows\), got list$"),  # noqa: B023
        ):
            with pytest.raises(error, match=message):
                call()


@pytest.mark.slow
@each_backend
@pytest.mark.parametrize("training", [True, False])
def test_compiled(backend, training):
    """In one graph, with its backward."""
    torch._dynamo.reset()
    _, module = decoders(backend, context_gate=True)
    twin = copy.deepcopy(module)
    twin.compile(backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(training):
        for keywords in ({}, {"mask": MASK, "lengths": LENGTHS, "need_weights": True}):
            called = [Called(some, **keywords) for some in (twin, module)]
            got, want = (results(m, tensors("lstm")) if training else m(*tensors("lstm")) for m in called)
            torch.testing.assert_close(got, want, **tolerances.FLOAT64)


@pytest.mark.slow
def test_decoding_compiled():
    """A loop over steps, in one graph."""
    _, module = decoders(None)

    def decode(x, memory):
        state, outputs = module.start(memory), []
        for x_s in x.unbind(1):
            output, _, _, state = module.step(x_s, state)
            outputs.append(output)
        return torch.stack(outputs, 1)

    torch._dynamo.reset()
    compiled = torch.compile(decode, backend="aot_eager", fullgraph=True)
    x, memory, _ = tensors("lstm")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, memory), decode(x, memory), **tolerances.FLOAT64)


@cells
def test_ensemble(cell):
    """vmap over stacked parameters, for which PyTorch's LSTM cell has no rule: against one module after the other."""
    models = [hybridops.FusedAttentionDecoder(**SIZES, cell=cell, dtype=torch.float64) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x, memory, hx = tensors(cell)
    got = torch.func.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (x, memory, hx))[0])(
        parameters, buffers
    )
    torch.testing.assert_close(got, torch.stack([m(x, memory, hx)[0] for m in models]), **tolerances.FLOAT64)
