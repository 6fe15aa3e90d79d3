"""What holds for every model, on a small one of each (cases.py)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.systems.table import plain_copy
from hybridops import models
from tests import tolerances
from tests.models.cases import CASES, Case

QUANTISED = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]


def loss_of(logits: Tensor) -> Tensor:
    """Against labels that have nothing to do with the input, always the same ones."""
    labels = torch.randint(logits.shape[-1], logits.shape[:-1], generator=torch.Generator().manual_seed(0))
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


def test_every_model_has_a_case():
    made = {type(case.make()).__name__ for case in CASES.values()}
    assert made == set(models.__all__) - {"AnomalyDetector"}  # which takes no batch and gives no logits


def test_fused_is_plain(case):
    """Values and gradients, in float64."""
    fused = case.make().double()
    plain, inputs = plain_copy(fused), case.inputs(torch.float64)
    grads = []
    for model in plain, fused:
        logits = model(*inputs)
        loss_of(logits.double()).backward()
        grads.append((logits, *(p.grad for p in model.parameters())))
    torch.testing.assert_close(grads[1], grads[0], **tolerances.FLOAT64)
    assert all(grad is not None and grad.isfinite().all() for grad in grads[1][1:])


def test_padding_changes_nothing(case):
    if case.padded is None:
        pytest.skip("takes no padding")
    model, inputs = case.make().double().eval(), case.inputs(torch.float64)
    torch.testing.assert_close(model(*case.padded(inputs)), model(*inputs), **tolerances.FLOAT64)


def test_a_row_does_not_depend_on_the_others(case):
    model, inputs = case.make().double().eval(), case.inputs(torch.float64)
    logits = model(*inputs)
    for row in range(4):
        alone = model(*(part[row : row + 1] for part in inputs))
        torch.testing.assert_close(alone[0], logits[row], **tolerances.FLOAT64)


def test_training_lowers_the_loss(case):
    model, inputs = case.make(), case.inputs(torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_of(model(*inputs))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case, dtype):
    model = case.make().to(dtype)
    logits = model(*case.inputs(dtype))
    assert logits.dtype == dtype
    loss_of(logits).backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_autocast(case):
    model = case.make()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(*case.inputs(torch.float32))
    loss_of(logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_state_dict(case, tmp_path):
    model, other = case.make().eval(), case.make().eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    inputs = case.inputs(torch.float32)
    assert torch.equal(other(*inputs), model(*inputs))


@pytest.mark.slow
def test_compile(case):
    model = case.make().double()
    compiled, inputs = torch.compile(copy.deepcopy(model), backend="aot_eager"), case.inputs(torch.float64)
    grads = []
    for each in model, compiled:
        logits = each(*inputs)
        loss_of(logits.double()).backward()
        grads.append((logits, *(p.grad for p in each.parameters())))
    torch.testing.assert_close(grads[1], grads[0], **tolerances.FLOAT64)


@pytest.mark.slow
def test_export(case):
    """For any number of examples, more than one."""
    model, inputs = case.make().eval(), case.exported(case.inputs(torch.float32))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)).module()
    for rows in (torch.arange(4), torch.tensor([2, 0, 1])):
        some = tuple(part[rows] for part in inputs)
        torch.testing.assert_close(program(*some), model(*some))


@pytest.mark.filterwarnings("ignore:.*quantization is deprecated:DeprecationWarning")
def test_quantised_to_int8(case):
    """PyTorch's dynamic quantization of linear layers and recurrent ones: the model runs on the parts that it gets."""
    model, inputs = case.make().eval(), case.inputs(torch.float32)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.TransformerEncoderLayer)]
    left = {part for layer in layers for part in layer.modules()}  # PyTorch's layer reads the weights of its parts
    names = {name for name, part in model.named_modules() if type(part) in QUANTISED and part not in left}
    quantised = torch.ao.quantization.quantize_dynamic(model, names)
    with torch.no_grad():
        logits, want = quantised(*inputs), model(*inputs)
    assert 0 < (logits - want).abs().max() < 0.1 * want.abs().max()


def test_no_example(case):
    model = case.make().eval()
    logits = model(*(part[:0] for part in case.inputs(torch.float32)))
    assert logits.shape[0] == 0


def test_on_the_meta_device(case):
    with torch.device("meta"):
        model: nn.Module = case.make()
    assert all(p.is_meta for p in model.parameters())
