"""The plain attention modules against the text-book form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridops.reference import AdditiveAttention, ConcatAttention, PreparedKeys

# float64, values of order one, sums of some hundred terms in another order: about 1e-14 of rounding, and room.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
EXACT = {"rtol": 0, "atol": 0}
INF, NAN = math.inf, math.nan

activations = pytest.mark.parametrize("activation", ["tanh", "relu", "leaky_relu"])
anomaly_mode = pytest.mark.filterwarnings("ignore:Anomaly Detection")  # its notice that it is on


class DocumentAttention(nn.Module):
    """As it stands in text books."""

    def __init__(self, hidden_dim):
        super().__init__()
        self.attn = nn.Linear(hidden_dim * 2, hidden_dim)
        self.v = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, hidden, encoder_outputs):
        hidden = hidden.unsqueeze(1).repeat(1, encoder_outputs.shape[1], 1)
        energy = torch.tanh(self.attn(torch.cat((hidden, encoder_outputs), dim=2)))
        return F.softmax(self.v(energy).squeeze(2), dim=1)


def make_attention(**arguments):
    """A module with three different sizes, and a query (2, 3, 4), key (2, 5, 6), value (2, 5, 7) for it."""
    torch.manual_seed(0)
    module = AdditiveAttention(4, 6, 8, dtype=torch.float64, **arguments)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 4), (2, 5, 6), (2, 5, 7))]
    return module, *inputs


def test_concat_attention_is_the_documents_attention():
    document, module = DocumentAttention(6), ConcatAttention(6)
    module.load_state_dict(document.state_dict())
    hidden, encoder_outputs = torch.randn(4, 6), torch.randn(4, 7, 6)
    weights = module(hidden, encoder_outputs)
    torch.testing.assert_close(weights, document(hidden, encoder_outputs), **EXACT)  # the same operations
    assert list(module.state_dict()) == ["attn.weight", "attn.bias", "v.weight"]


def test_concat_attention_masks():
    module, hidden = ConcatAttention(6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    encoder_outputs = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    weights = module(hidden, encoder_outputs, mask)
    torch.testing.assert_close(weights[:1, :3], module(hidden[:1], encoder_outputs[:1, :3]), **CLOSE)
    assert not weights[~mask].any()
    (grad,) = torch.autograd.grad(weights.square().sum(), encoder_outputs)
    assert not grad[~mask].any()
    assert grad[mask].any()


@pytest.mark.parametrize("bias", [False, True])
def test_additive_attention_state_dict(bias):
    shapes = {"query_proj.weight": (8, 4), "key_proj.weight": (8, 6), "v.weight": (1, 8)}
    if bias:
        shapes |= {"query_proj.bias": (8,), "key_proj.bias": (8,)}
    module, *_ = make_attention(bias=bias)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == shapes


def test_one_query_is_a_row_of_many():
    module, query, key, value = make_attention()
    mask = torch.rand(2, 5) > 0.3
    context, weights = module(query, key, value, mask)
    assert (context.shape, weights.shape) == ((2, 3, 7), (2, 3, 5))
    torch.testing.assert_close(module(query[:, 1], key, value, mask), (context[:, 1], weights[:, 1]), **CLOSE)


def test_value_is_the_key_unless_given():
    module, query, key, _ = make_attention()
    torch.testing.assert_close(module(query, key), module(query, key, key), **EXACT)


def test_weights_are_left_out_on_request():
    module, query, key, value = make_attention()
    for q in (query, query[:, 0]):
        context, weights = module(q, key, value, need_weights=False)
        torch.testing.assert_close(context, module(q, key, value)[0], **EXACT)
        assert weights is None


def test_prepared_keys_stand_for_key_value_and_mask():
    module, query, key, value = make_attention(bias=True)
    for mask in (None, torch.rand(2, 5) > 0.3, torch.rand(2, 3, 5) > 0.3):
        prepared = module.prepare(key, value, mask)
        assert isinstance(prepared, PreparedKeys)
        torch.testing.assert_close(module(query, prepared), module(query, key, value, mask), **EXACT)
    for arguments in ({"value": value}, {"mask": mask}):
        with pytest.raises(ValueError, match=r"^value and mask must be None"):
            module(query, prepared, **arguments)


@pytest.mark.parametrize("shape", [(2, 5), (1, 5), (2, 1, 5), (2, 3, 5), (1, 3, 5), (2, 3, 1), (5,)])
def test_mask_shapes(shape):
    module, query, key, value = make_attention()
    mask = torch.rand(shape) > 0.4
    full = (mask[:, None] if mask.dim() == 2 else mask).expand(2, 3, 5)
    context, weights = module(query, key, value, mask)
    torch.testing.assert_close((context, weights), module(query, key, value, full), **EXACT)
    assert not weights[~full].any()


@anomaly_mode
def test_a_row_that_may_attend_nothing():
    module, *inputs = make_attention(bias=True)
    query, key, value = (tensor.requires_grad_() for tensor in inputs)
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[0, 1] = False
    mask[1] = False
    context, weights = module(query, key, value, mask)
    assert not context[0, 1].any()
    assert not weights[0, 1].any()
    with torch.autograd.detect_anomaly(check_nan=True):
        d_query, d_key, d_value = torch.autograd.grad(context.square().sum(), (query, key, value))
    assert not d_query[0, 1].any()
    assert not any(grad[1].any() for grad in (d_query, d_key, d_value))
    assert all(grad[0].any() for grad in (d_query, d_key, d_value))


def test_dropout_is_for_training():
    module, query, key, value = make_attention(dropout=0.5)
    plain, *_ = make_attention()
    context, weights = module(query, key, value)
    assert (weights == 0).any()
    torch.testing.assert_close(context, weights @ value, **CLOSE)
    kept = weights != 0
    torch.testing.assert_close(weights[kept], 2 * plain(query, key, value)[1][kept], **CLOSE)
    torch.testing.assert_close(module.eval()(query, key, value), plain(query, key, value), **EXACT)


@pytest.mark.parametrize(
    ("error", "name", "arguments"),
    [
        (ValueError, "query_dim", {"query_dim": 0}),
        (TypeError, "key_dim", {"key_dim": 2.0}),
        (TypeError, "attn_dim", {"attn_dim": True}),
        (TypeError, "bias", {"bias": 1}),
        (ValueError, "activation", {"activation": "gelu"}),
        (TypeError, "negative_slope", {"negative_slope": "steep"}),
        (ValueError, "scale", {"scale": NAN}),
        (TypeError, "scale", {"scale": True}),
        (ValueError, "dropout", {"dropout": 1.1}),
        (ValueError, "dropout", {"dropout": -0.1}),
        (TypeError, "dropout", {"dropout": None}),
    ],
)
def test_wrong_constructor_arguments(error, name, arguments):
    with pytest.raises(error, match=rf"^{name} must"):
        AdditiveAttention(**{"query_dim": 4, "key_dim": 6, "attn_dim": 8, **arguments})


@pytest.mark.parametrize(("error", "hidden_dim"), [(ValueError, 0), (TypeError, True)])
def test_wrong_concat_constructor_arguments(error, hidden_dim):
    with pytest.raises(error, match=r"^hidden_dim must"):
        ConcatAttention(hidden_dim)


@pytest.mark.parametrize(
    ("error", "name", "changed"),
    [
        (TypeError, "query", {"query": None}),
        (ValueError, "query", {"query": torch.zeros(2, 3, 5)}),
        (ValueError, "query", {"query": torch.zeros(3, 4)}),
        (ValueError, "query", {"query": torch.zeros(4)}),
        (ValueError, "key", {"key": torch.zeros(2, 5, 7)}),
        (ValueError, "key", {"key": torch.zeros(6)}),
        (ValueError, "value", {"value": torch.zeros(2, 4, 7)}),
        (TypeError, "mask", {"mask": torch.zeros(2, 5)}),
        (TypeError, "mask", {"mask": [True]}),
        (ValueError, "mask", {"mask": torch.ones(2, 4, dtype=torch.bool)}),
        (ValueError, "mask", {"mask": torch.ones(2, 2, 5, dtype=torch.bool)}),
        (ValueError, "mask", {"mask": torch.ones(1, 2, 3, 5, dtype=torch.bool)}),
    ],
)
def test_wrong_inputs(error, name, changed):
    module = AdditiveAttention(4, 6, 8)
    with pytest.raises(error, match=rf"^{name} must"):
        module(**{"query": torch.zeros(2, 3, 4), "key": torch.zeros(2, 5, 6), **changed})


@pytest.mark.parametrize(
    ("error", "name", "changed"),
    [
        (ValueError, "hidden", {"hidden": torch.zeros(2, 5)}),
        (ValueError, "encoder_outputs", {"encoder_outputs": torch.zeros(3, 5, 6)}),
        (ValueError, "encoder_outputs", {"encoder_outputs": torch.zeros(2, 6)}),
        (TypeError, "mask", {"mask": torch.ones(2, 5)}),
        (ValueError, "mask", {"mask": torch.ones(2, 4, dtype=torch.bool)}),
        (ValueError, "mask", {"mask": torch.ones(2, 2, 5, dtype=torch.bool)}),
    ],
)
def test_wrong_concat_inputs(error, name, changed):
    with pytest.raises(error, match=rf"^{name} must"):
        ConcatAttention(6)(**{"hidden": torch.zeros(2, 6), "encoder_outputs": torch.zeros(2, 5, 6), **changed})
