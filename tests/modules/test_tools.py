"""Tools that people put around modules leave the fused ones right."""

from __future__ import annotations

import copy
from functools import partial

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
    native,
)
from tests.native.recorder import Recorder

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


def dynamic(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear, nn.LSTMCell}, torch.qint8)


def of_torchao(model: nn.Module) -> nn.Module:
    torchao, quantised = pytest.importorskip("torchao.quantization"), copy.deepcopy(model)
    torchao.quantize_(quantised, torchao.Int8WeightOnlyConfig())
    return quantised


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
@pytest.mark.parametrize("how", [dynamic, of_torchao])
@pytest.mark.parametrize("kind", [FusedAdditiveAttention, FusedConcatAttention, FusedAttentionDecoder])
def test_parts_quantised_to_int8_are_called(kind, how):
    """The numbers are those of the plain forward on the same quantised parts, near those of before."""
    arguments, inputs = MADE[kind]
    model = Parent(kind(*arguments)).eval()
    with torch.no_grad():
        before, quantised = model(*inputs), how(model)
        after = quantised(*inputs)
        assert 0 < (after - before).abs().max() < 0.1
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


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        (FusedConvLSTMCell, {"target_modules": ["conv"]}),
        (FusedConvLSTM, {"target_modules": ["conv"]}),
        (FusedConcatAttention, {"target_modules": ["attn", "v"]}),
        (FusedAdditiveAttention, {"target_modules": ["query_proj"]}),
        (FusedAdditiveAttention, {"target_modules": ["key_proj", "v"]}),
        (FusedAttentionDecoder, {"target_modules": ["query_proj", "key_proj", "v"]}),
        (FusedAttentionDecoder, {"target_modules": [], "target_parameters": ["cell.weight_ih", "cell.weight_hh"]}),
    ],
)
def test_peft_trains_adapters_and_merges_them(kind, targets):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    arguments, inputs = MADE[kind]
    model = Parent(kind(*arguments))
    before, base = model(*inputs).detach(), {name: value.clone() for name, value in model.named_parameters()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, **targets))
    torch.testing.assert_close(adapted(*inputs), before)
    adapters, aim, losses = [p for p in adapted.parameters() if p.requires_grad], torch.randn_like(before), []
    optimizer = torch.optim.Adam(adapters, 5e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = (adapted(*inputs) - aim).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    frozen = {id(p) for p in adapters}
    held = [p for p in adapted.parameters() if id(p) not in frozen]
    assert len(held) == len(base)
    assert all(any(torch.equal(p, value) for value in base.values()) for p in held)
    found = adapted(*inputs).detach()
    merged = adapted.merge_and_unload()
    assert {type(part) for part in merged.modules()} == {type(part) for part in Parent(kind(*arguments)).modules()}
    torch.testing.assert_close(merged(*inputs), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", ["memory", "disk"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", MADE)
def test_accelerate_loads_offloaded_weights(kind, together, to, tmp_path):
    """A part at a time, which the plain forward runs through; or of a whole module, which is fused then."""
    accelerate = pytest.importorskip("accelerate")
    arguments, inputs = MADE[kind]
    model = Parent(kind(*arguments)).eval()
    with torch.no_grad():
        before = model(*inputs)
        offload = partial(accelerate.disk_offload, offload_dir=tmp_path) if to == "disk" else accelerate.cpu_offload
        whole = {"preload_module_classes": [kind.__name__]} if together else {}
        model = offload(model, execution_device="cpu", **whole)
        assert all(p.is_meta for p in model.part.parameters())
        with Recorder("hybridops") as recorder:
            torch.testing.assert_close(model(*inputs), before)
    fused = [op for op, _ in recorder.calls if "forward" in op.name()]  # keys are prepared for either
    assert bool(fused) == (together and native.unavailable_reason() is None)


@pytest.mark.parametrize("kind", MADE)
def test_summaries_count_what_they_count_of_the_plain_module(kind):
    torchinfo, fvcore = pytest.importorskip("torchinfo"), pytest.importorskip("fvcore.nn")
    arguments, inputs = MADE[kind]
    model, counts = Parent(kind(*arguments)).eval(), []
    before = model(*inputs)
    for each in model, plain_copy(model):
        summary = torchinfo.summary(each, input_data=inputs, verbose=0)
        flops = fvcore.FlopCountAnalysis(each, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts.append((summary.total_params, summary.total_mult_adds, flops.total()))
    assert counts[0] == counts[1]
    assert torch.equal(model(*inputs), before)


@pytest.mark.parametrize("kind", MADE)
def test_lightning_sums_up_what_it_sums_up_of_the_plain_module(kind):
    lightning = pytest.importorskip("lightning.pytorch")
    summaries = pytest.importorskip("lightning.pytorch.utilities.model_summary")
    arguments, inputs = MADE[kind]
    found = []
    part = Parent(kind(*arguments)).eval()
    for each in part, plain_copy(part):
        model = lightning.LightningModule()
        model.model, model.forward, model.example_input_array = each, each.forward, inputs
        summary = summaries.ModelSummary(model, max_depth=-1)
        found.append(
            (summary.param_nums, summary.layer_names, summary.in_sizes, summary.out_sizes, summary.total_flops)
        )
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", MADE)
def test_torchscript_trace_without_gradients(kind, tmp_path):
    """Saved and loaded, at another batch."""
    arguments, inputs = MADE[kind]
    model = Parent(kind(*arguments)).eval()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, inputs), tmp_path / "model.pt")
        inputs = tuple(torch.cat([each, each[:1]]) for each in inputs)
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(*inputs), model(*inputs))
