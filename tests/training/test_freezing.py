from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from hybridops.training import freeze, parameter_groups, unfreeze, unfreeze_first


def make_model():
    torch.manual_seed(0)
    lower = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    upper = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, affine=False), nn.ReLU())
    return nn.Sequential(lower, upper, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(5, 2))


def train(model, optimizer, steps=3):
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 3, 8, 8)).square().mean().backward()
        optimizer.step()


def bits(module):
    return copy.deepcopy(module.state_dict())


def same(module, before):
    return [torch.equal(value, before[name]) for name, value in module.state_dict().items()]


OPTIMIZERS = [
    lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
    lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_the_unfrozen_parts_change_and_they_do(optimizer):
    model = make_model()
    lower, upper, head = model[0], model[1], model[5]
    parts = [upper, lower]
    optimizer = optimizer(parameter_groups(model, parts, lr=0.1))
    for stage, (frozen, trained) in enumerate(
        [((lower, upper), (head,)), ((lower,), (upper, head)), ((), tuple(model))]
    ):
        unfreeze_first(parts, stage)
        before = [bits(part) for part in (*frozen, *trained)]
        train(model, optimizer)
        for part, old in zip(frozen, before, strict=False):
            assert all(same(part, old))
        for part, old in zip(trained, before[len(frozen) :], strict=True):
            assert not any(same(part, old))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_frozen_later_stops_with_its_momentum(optimizer):
    model = make_model()
    optimizer = optimizer(model.parameters())
    train(model, optimizer)  # leaves gradients and momentum
    freeze(model[0])
    before = bits(model[0])
    optimizer.step()
    train(model, optimizer)
    assert all(same(model[0], before))


def test_frozen_statistics_are_used_and_the_mode_of_the_rest_is_the_models():
    model = make_model()
    freeze(model[0])
    model.train()
    x = torch.randn(6, 3, 8, 8)
    frozen = model[0](x)
    assert torch.equal(frozen, copy.deepcopy(model).eval()[0](x))
    assert not torch.equal(model(x), model(x))  # Dropout
    unfreeze(model[0])
    assert not torch.equal(frozen, model[0](x))  # the batch's own statistics


def test_freezing_twice_is_undone_once_and_leaves_other_hooks():
    model = make_model()
    calls = []
    model[0][1].register_forward_pre_hook(lambda module, inputs: calls.append(module.training))
    freeze(model)
    freeze(model[0])
    unfreeze(model)
    model(torch.randn(6, 3, 8, 8))
    assert calls == [True]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_copied_and_a_loaded_model_stay_frozen_and_can_be_unfrozen():
    model = make_model()
    freeze(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        before = bits(other)
        other.train()(torch.randn(6, 3, 8, 8))
        assert all(same(other, before))
        unfreeze(other)
        other.train()(torch.randn(6, 3, 8, 8))
        assert not all(same(other, before))


def test_what_is_shared_with_a_frozen_part_is_frozen():
    shared = nn.Linear(2, 2)
    parts = [nn.Sequential(shared, nn.Linear(2, 2)), nn.Sequential(shared)]
    unfreeze_first(parts, 1)
    assert [parameter.requires_grad for parameter in parts[0].parameters()] == [False, False, True, True]


def test_groups_hold_each_parameter_once():
    model = make_model()
    groups = parameter_groups(model, [model[1], model[0]], lr=0.1, decay=0.5)
    assert [group["lr"] for group in groups] == [0.1, 0.05, 0.025]
    assert [set(group["params"]) for group in groups] == [set(model[part].parameters()) for part in (5, 1, 0)]
    nested = parameter_groups(model, [model[0][0], model[0]], lr=0.1)
    assert [len(group["params"]) for group in nested] == [4, 2, 2]
    torch.optim.SGD(nested)  # raises where a parameter is in two groups


def test_bad_arguments_are_named():
    model = make_model()
    with pytest.raises(ValueError, match="count must be from 0 to the 1 parts, got 2"):
        unfreeze_first([model], 2)
    with pytest.raises(ValueError, match="parts must be parts of the model, got 2 parameters that are not in it"):
        parameter_groups(model, [nn.Linear(2, 2)], lr=0.1)
    with pytest.raises(ValueError, match="lr must be"):
        parameter_groups(model, [], lr=-1)
