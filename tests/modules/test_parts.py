"""Parts that are more than their weights are called: whatever is done to them counts, as in the plain module."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

import hybridops
from hybridops import native
from hybridops.modules.parts import CONVOLUTIONS, reason_not_plain
from tests.modules.agreement import assert_agree, examples, pair, results
from tests.native.recorder import Recorder


class LowRank(nn.Module):
    """What adapters such as LoRA put in the place of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.gain = nn.Parameter(torch.tensor(0.5, dtype=layer.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.gain


def subclass_of(kind: type[nn.Module]) -> type[nn.Module]:
    return type("Doubled", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})


def replaced(owner: nn.Module, name: str) -> None:
    setattr(owner, name, LowRank(getattr(owner, name)))


def subclassed(owner: nn.Module, name: str) -> None:
    part = getattr(owner, name)
    part.__class__ = subclass_of(type(part))


def patched(owner: nn.Module, name: str) -> None:
    part = getattr(owner, name)
    kind = type(part)
    part.forward = lambda x: 3 * kind.forward(part, x)


def hooked(owner: nn.Module, name: str) -> None:
    getattr(owner, name).register_forward_hook(lambda part, args, out: out + 1)


def hooked_before(owner: nn.Module, name: str) -> None:
    getattr(owner, name).register_forward_pre_hook(lambda part, args: (2 * args[0],))


def hooked_backward(owner: nn.Module, name: str) -> None:
    getattr(owner, name).register_full_backward_hook(lambda part, grad_in, grad_out: (2 * grad_in[0],))


def circular(owner: nn.Module, name: str) -> None:
    conv = getattr(owner, name)
    conv.padding_mode, conv._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]


def dilated(owner: nn.Module, name: str) -> None:
    conv = getattr(owner, name)
    conv.dilation, conv.padding = (2, 2), (2, 2)


def grouped(owner: nn.Module, name: str) -> None:
    conv = getattr(owner, name)
    torch.manual_seed(0)
    setattr(owner, name, nn.Conv2d(conv.in_channels - 1, conv.out_channels, 3, padding=1, groups=2).double())


CHANGES = [replaced, subclassed, patched, hooked, hooked_before, hooked_backward]
PARTS = [
    ("ConvLSTMCell", "conv"), ("ConvLSTM", "cell_list.1.conv"), ("ConcatAttention", "attn"), ("ConcatAttention", "v"),
    ("AdditiveAttention", "query_proj"), ("AdditiveAttention", "key_proj"), ("AdditiveAttention", "v"),
    ("AttentionDecoder", "context_gate"), ("AttentionDecoder", "attention.query_proj"),
    ("AttentionDecoder", "attention.key_proj"), ("AttentionDecoder", "attention.v"),
]  # fmt: skip


def change(module: nn.Module, path: str, how) -> None:
    owner, _, name = path.rpartition(".")
    how(module.get_submodule(owner), name)


@pytest.mark.parametrize("how", CHANGES, ids=lambda how: how.__name__)
@pytest.mark.parametrize(("kind", "path"), PARTS)
def test_changed_parts(kind, path, how):
    """Before `fuse` and after it, outputs and gradients of all parameters are those of the plain module."""
    arguments, inputs = examples()[kind]
    plain, fused = pair(kind, **arguments)
    swapped = hybridops.fuse(copy.deepcopy(plain))
    change(plain, path, how)
    for module in (fused, swapped):
        change(module, path, how)
        assert_agree(plain, module, *inputs)
    assert_agree(plain, hybridops.fuse(copy.deepcopy(plain)) if how is not patched else plain, *inputs)


class Doubled(Tensor):
    """Stands for twice its numbers, as a quantised weight for its own times a scale, and only layers know."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (F.linear, F.conv2d):
            return func(*(2 * arg.as_subclass(Tensor) if isinstance(arg, cls) else arg for arg in args), **kwargs or {})
        return super().__torch_function__(func, types, args, kwargs)


def wrapped(owner: nn.Module, name: str) -> None:
    part = getattr(owner, name)
    part.weight = nn.Parameter(part.weight.detach().as_subclass(Doubled))


@pytest.mark.parametrize(("kind", "path"), PARTS)
def test_a_weight_of_another_class(kind, path):
    arguments, inputs = examples()[kind]
    plain, fused = pair(kind, **arguments)
    before = results(fused, inputs)[0]
    for module in (plain, fused):
        change(module, path, wrapped)
    assert_agree(plain, fused, *inputs)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(before, results(fused, inputs)[0], strict=True))
    left_alone = type(plain)
    assert type(hybridops.fuse(plain)) is left_alone
    assert_agree(plain, fused, *inputs)


@pytest.mark.parametrize("how", [circular, dilated], ids=lambda how: how.__name__)
@pytest.mark.parametrize(("kind", "path"), PARTS[:2])
def test_other_convolutions(kind, path, how):
    arguments, inputs = examples()[kind]
    modules = pair(kind, **arguments)
    for module in modules:
        change(module, path, how)
    assert_agree(*modules, *inputs)


@pytest.mark.parametrize("how", [hooked, hooked_before, patched], ids=lambda how: how.__name__)
def test_a_cell_of_a_stack(how):
    """A cell's own hooks see every step."""
    arguments, inputs = examples()["ConvLSTM"]
    modules = pair("ConvLSTM", **arguments)

    def first_state(cell, args, out):
        return 2 * out[0], out[1]

    for module in modules:
        cell = module.cell_list[0]
        if how is hooked:
            cell.register_forward_hook(first_state)
        elif how is hooked_before:
            cell.register_forward_pre_hook(lambda cell, args: (2 * args[0], args[1]))
        else:
            kind = type(cell)
            cell.forward = lambda x, states=None, kind=kind, cell=cell: kind.forward(cell, 3 * x, states)
    assert_agree(*modules, *inputs)


@pytest.mark.parametrize("kind", examples())
def test_hooks_on_all_modules(kind):
    """They see the same calls of parts."""
    arguments, inputs = examples()[kind]
    seen = []
    for module in pair(kind, **arguments):
        calls = []
        with register_module_forward_hook(lambda part, *_, calls=calls: calls.append(type(part).__name__)):
            module(*inputs)
        seen.append([name.removeprefix("Fused") for name in calls])
    assert seen[0] == seen[1]


def test_a_score_with_a_bias_or_more_rows():
    """v is read as one row without a bias; anything else is called."""
    arguments, inputs = examples()["AdditiveAttention"]
    modules = pair("AdditiveAttention", **arguments)
    torch.manual_seed(0)
    v = nn.Linear(20, 1, dtype=torch.float64)
    for module in modules:
        module.v = v
    assert_agree(*modules, *inputs)
    modules[1].backend = "native"
    with pytest.raises(RuntimeError, match=r"was asked for, but v has a bias: it has to be called$"):
        modules[1](*inputs)
    modules[1].v = nn.Linear(20, 2, bias=False, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"was asked for, but v has 2 outputs, not 1: it has to be called$"):
        modules[1](*inputs)


def with_weight(conv: nn.Conv2d, kernel: int) -> nn.Conv2d:
    conv.weight = nn.Parameter(torch.zeros(*conv.weight.shape[:2], kernel, kernel))
    return conv


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), None),
        (nn.Conv2d(3, 4, 3, padding="same"), None),
        (nn.Conv3d(3, 4, (1, 3, 5), padding=(0, 1, 2)), None),
        (nn.Conv2d(3, 4, 3), r"has padding \(0, 0\), not \(1, 1\)"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "has padding_mode 'reflect', not 'zeros'"),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), r"has stride \(2, 2\), not 1"),
        (nn.Conv2d(3, 4, 3, padding="same", dilation=2), r"has dilation \(2, 2\), not 1"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "has 2 groups, not 1"),
        (nn.Conv2d(3, 4, 4, padding="same"), r"has a kernel of \(4, 4\), which is not odd"),
        (with_weight(nn.Conv2d(3, 4, 3, padding=1), 5), r"has a weight with a kernel of \(5, 5\), not \(3, 3\)"),
        (nn.ConvTranspose2d(3, 4, 3), "is a ConvTranspose2d, not a Conv1d or Conv2d or Conv3d"),
        (parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)), None),
        (parametrizations.weight_norm(subclass_of(nn.Conv2d)(3, 4, 3, padding=1)), "is a ParametrizedDoubled, not "),
    ],
    ids=lambda case: case.__class__.__name__,
)
def test_reasons(layer, reason):
    got = reason_not_plain(layer, CONVOLUTIONS)
    if reason is None:
        assert got is None
    else:
        with pytest.raises(ValueError, match=f"^{reason}"):
            raise ValueError(got)


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))
@pytest.mark.parametrize(
    ("kind", "path"), [part for part in PARTS if part[0] != "AttentionDecoder" and "_proj" not in part[1]]
)
def test_a_named_back_end_runs_or_raises(kind, path):
    arguments, inputs = examples()[kind]
    _, fused = pair(kind, **arguments)
    fused.backend = "native"
    fused(*inputs)
    change(fused, path, hooked)
    with pytest.raises(RuntimeError, match=r"^backend 'native' was asked for, but \w+ has hooks: it has to be called$"):
        fused(*inputs)
    fused.backend = "reference"
    fused(*inputs)


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))
@pytest.mark.parametrize("kind", examples())
def test_plain_parts_are_fused(kind):
    """The check lets through what it should: parts as they were made run on the compiled ops."""
    arguments, inputs = examples()[kind]
    _, fused = pair(kind, **arguments)
    with Recorder("hybridops") as recorder:
        results(fused, inputs)
    assert recorder.calls
