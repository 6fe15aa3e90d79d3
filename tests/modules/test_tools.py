"""Tools that people put around modules leave the fused ones right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from examples.systems.table import plain_copy
from hybridops import (
    FusedAdditiveAttention,
    FusedAttentionDecoder,
    FusedConcatAttention,
    FusedConvLSTM,
    FusedConvLSTMCell,
)

MADE = {
    FusedConvLSTMCell: ((2, 3, 3), (torch.randn(2, 2, 5, 6),)),
    FusedConvLSTM: ((2, 3, 3), (torch.randn(2, 4, 2, 5, 6),)),
    FusedConcatAttention: ((4,), (torch.randn(2, 4), torch.randn(2, 5, 4))),
    FusedAdditiveAttention: ((4, 3, 6), (torch.randn(2, 7, 4), torch.randn(2, 5, 3))),
    FusedAttentionDecoder: ((3, 4, 5, 6), (torch.randn(2, 3, 3), torch.randn(2, 5, 5))),
}


def first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


@pytest.mark.parametrize("kind", MADE)
def test_skip_init(kind):
    arguments, inputs = MADE[kind]
    module = nn.utils.skip_init(kind, *arguments)
    other = kind(*arguments)
    module.load_state_dict(other.state_dict())
    torch.testing.assert_close(first(module(*inputs)), first(other(*inputs)))


@pytest.mark.parametrize("kind", MADE)
def test_made_on_the_meta_device_and_drawn_later(kind):
    arguments, inputs = MADE[kind]
    with torch.device("meta"):
        module = kind(*arguments)
    module = module.to_empty(device="cpu")
    torch.manual_seed(0)
    module.reset_parameters()
    torch.manual_seed(0)
    other = kind(*arguments)
    torch.testing.assert_close(first(module(*inputs)), first(other(*inputs)))


class Parent(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.scale = part, nn.Parameter(torch.tensor(2.0))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.scale * first(self.part(*inputs))


class Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, tuple(MADE)) or super().is_leaf_module(module, name)


def test_fx_with_the_fused_module_as_a_leaf():
    part = FusedConvLSTM(2, 3, 3)

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = part, nn.Conv2d(3, 1, 1)

        def forward(self, frames: Tensor) -> Tensor:
            output, _ = self.lstm(frames)
            return self.head(output[:, -1])

    model, frames = Frames(), torch.randn(2, 4, 2, 5, 6)
    traced = fx.GraphModule(model, Tracer().trace(model))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["lstm", "head"]
    torch.testing.assert_close(traced(frames), model(frames))


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
@pytest.mark.parametrize("kind", [FusedAdditiveAttention, FusedConcatAttention, FusedAttentionDecoder])
def test_parts_quantised_to_int8_are_called(kind):
    """The numbers are those of the plain forward on the same quantised parts, near those of before."""
    arguments, inputs = MADE[kind]
    model = Parent(kind(*arguments)).eval()
    with torch.no_grad():
        before = model(*inputs)
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear, nn.LSTMCell}, torch.qint8)
        after = quantised(*inputs)
    assert any("quantized" in type(part).__module__ for part in quantised.modules())
    assert 0 < (after - before).abs().max() < 0.1
    with torch.no_grad():
        torch.testing.assert_close(after, plain_copy(quantised)(*inputs), rtol=1e-4, atol=1e-5)


class LoRA(nn.Module):
    """What peft puts in the place of a layer: it, and a product of two small matrices beside it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("name", ["query_proj", "key_proj", "v"])
def test_low_rank_adapters_train(name):
    arguments, inputs = MADE[FusedAdditiveAttention]
    module = FusedAdditiveAttention(*arguments)
    adapter = LoRA(module.get_submodule(name))
    setattr(module, name, adapter)
    first(module(*inputs)).square().sum().backward()
    assert adapter.a.grad is not None
    assert adapter.a.grad.abs().sum() > 0
    assert adapter.base.weight.grad is None
