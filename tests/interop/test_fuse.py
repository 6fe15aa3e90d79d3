"""fuse(model): another class for the same objects."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hybridops
from hybridops import modules, reference
from tests import tolerances
from tests.modules.agreement import assert_agree, examples, pair, randn, results

kinds = pytest.mark.parametrize("kind", examples())


@kinds
def test_class_is_swapped_in_place(kind):
    arguments, inputs = examples()[kind]
    plain, _ = pair(kind, **arguments)
    before = results(plain, inputs)
    parameters, state = dict(plain.named_parameters()), copy.deepcopy(plain.state_dict())
    fused = hybridops.fuse(plain)
    assert fused is plain
    assert type(fused) is getattr(modules, f"Fused{kind}")
    assert all(parameter is parameters[name] for name, parameter in fused.named_parameters())
    torch.testing.assert_close(dict(fused.state_dict()), dict(state), **tolerances.EXACT)
    torch.testing.assert_close(results(fused, inputs), before, **tolerances.FLOAT64)


@kinds
def test_a_fused_class_can_do_what_a_constructed_one_can(kind):
    """All that its constructor would have set is there."""
    arguments, inputs = examples()[kind]
    plain, constructed = pair(kind, **arguments)
    fused = hybridops.fuse(plain)
    assert fused.backend is constructed.backend is None
    assert repr(fused) == repr(constructed)
    assert_agree(constructed, copy.deepcopy(fused), *inputs)
    fused.backend = "reference"
    assert_agree(constructed, fused, *inputs)


class Captioner(nn.Module):
    """Reference modules at several depths, one of them in two places."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"video": reference.ConvLSTM(3, 4, 3, num_layers=2), "norm": nn.LayerNorm(4)})
        self.decoders = nn.ModuleList([nn.Sequential(reference.ConvLSTMCell(4, 4, 3)), reference.ConcatAttention(4)])
        self.attention = reference.AdditiveAttention(4, 4, 5, dropout=0.5)
        self.same_attention = self.attention

    def forward(self, x):
        frames, _ = self.encoder["video"](x)
        h, _ = self.decoders[0](frames[:, -1])
        key = self.encoder["norm"](frames.mean((3, 4)))
        query = h.mean((2, 3))
        context, weights = self.attention(query, key)
        again, _ = self.same_attention(context, key)
        return again, weights, self.decoders[1](query, key)


def test_nested_modules():
    torch.manual_seed(0)
    model = Captioner().double()
    x = randn(2, 3, 3, 5, 6)
    want = results(model, (x,), seed=0)
    kept = dict(model.named_modules())
    parameters = list(model.parameters())
    hybridops.fuse(model)
    assert dict(model.named_modules()) == kept
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.same_attention is model.attention
    kinds = {
        name: type(module).__name__ for name, module in model.named_modules() if type(module).__module__ != "torch"
    }
    assert {name: kind for name, kind in kinds.items() if kind.startswith("Fused")} == {
        "encoder.video": "FusedConvLSTM",
        "encoder.video.cell_list.0": "FusedConvLSTMCell",
        "encoder.video.cell_list.1": "FusedConvLSTMCell",
        "decoders.0.0": "FusedConvLSTMCell",
        "decoders.1": "FusedConcatAttention",
        "attention": "FusedAdditiveAttention",
    }
    torch.testing.assert_close(results(model, (x,), seed=0), want, **tolerances.FLOAT64)


def test_optimizer_goes_on():
    """It holds the parameters, which stay."""
    plain, _ = pair("ConvLSTM", 3, 4, 3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    before = plain.cell_list[0].conv.weight.clone()
    hybridops.fuse(plain)(randn(2, 3, 3, 4, 5))[0].sum().backward()
    optimizer.step()
    assert not torch.equal(plain.cell_list[0].conv.weight, before)


@kinds
@pytest.mark.parametrize("training", [True, False])
def test_hooks_and_training_mode_are_kept(kind, training):
    arguments, inputs = examples()[kind]
    plain, _ = pair(kind, **arguments)
    called = []
    plain.train(training)
    plain.register_forward_hook(lambda *_: called.append("forward"))
    plain.register_forward_pre_hook(lambda *_: called.append("before"))
    plain.register_state_dict_pre_hook(lambda *_: called.append("state"))
    next(plain.parameters()).requires_grad_(False)
    fused = hybridops.fuse(plain)
    fused(*inputs)
    fused.state_dict()
    assert called == ["before", "forward", "state"]
    assert fused.training is training
    assert not next(fused.parameters()).requires_grad


@kinds
def test_a_subclass_is_left_alone(kind):
    """It may compute something else."""

    class Other(getattr(reference, kind)):
        pass

    arguments, _ = examples()[kind]
    module = Other(**arguments)
    assert type(hybridops.fuse(nn.Sequential(module))[0]) is Other


@kinds
def test_twice_is_once(kind):
    arguments, _ = examples()[kind]
    _, fused = pair(kind, **arguments)
    kind = type(fused)
    assert type(hybridops.fuse(hybridops.fuse(fused))) is kind


def test_other_models_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))
    kinds = [type(module) for module in model.modules()]
    assert [type(module) for module in hybridops.fuse(model).modules()] == kinds


@pytest.mark.parametrize("wrong", [None, reference.ConvLSTM, [nn.Linear(2, 2)], "model", {}, torch.ones(1)], ids=repr)
def test_not_a_module(wrong):
    with pytest.raises(TypeError, match=r"^model must be an nn.Module, got "):
        hybridops.fuse(wrong)
