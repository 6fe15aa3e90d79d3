"""The plain attention modules against the text-book form, and the explicit formulas against loops and autograd."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridops.reference import AdditiveAttention, ConcatAttention, PreparedKeys
from hybridops.reference.additive_attention import additive_scores_backward, additive_scores_forward, masked_softmax

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


def make_scores(batch=2, queries=3, keys=5, channels=4, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((batch, queries, channels), (batch, keys, channels), (channels,))
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def make_attention(**arguments):
    """A module with three different sizes, and a query (2, 3, 4), key (2, 5, 6), value (2, 5, 7) for it."""
    torch.manual_seed(0)
    module = AdditiveAttention(4, 6, 8, dtype=torch.float64, **arguments)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 4), (2, 5, 6), (2, 5, 7))]
    return module, *inputs


# ---------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize(
    ("activation", "act"),
    [("tanh", math.tanh), ("relu", lambda z: max(z, 0)), ("leaky_relu", lambda z: z if z > 0 else 0.3 * z)],
)
def test_scores_by_hand(activation, act):
    q, k, v = make_scores()
    scores = additive_scores_forward(q, k, v, activation, 0.3)
    want = [
        [
            [sum(va * act(qa + ka) for va, qa, ka in zip(v.tolist(), q_s, k_t, strict=True)) for k_t in k_b]
            for q_s in q_b
        ]
        for q_b, k_b in zip(q.tolist(), k.tolist(), strict=True)
    ]
    torch.testing.assert_close(scores, torch.tensor(want, dtype=torch.float64), **CLOSE)


@activations
def test_scores_are_the_plain_modules(activation):
    module, query, key, value = make_attention(activation=activation, negative_slope=0.3, scale=1.7, bias=True)
    q, k, v = module.query_proj(query), module.key_proj(key), module.v.weight[0]
    weights = torch.softmax(1.7 * additive_scores_forward(q, k, v, activation, 0.3), dim=-1)
    torch.testing.assert_close(module(query, key, value), (weights @ value, weights), **CLOSE)


@activations
@pytest.mark.parametrize("kinks", [False, True])
def test_backward_formula_is_autograd(activation, kinks):
    q, k, v = (tensor.detach() for tensor in make_scores())
    if kinks:  # whole numbers: many sums are exactly 0; and one is NaN
        q, k = q.round(), k.round()
        q[0, 0, 0] = NAN
    q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
    scores = additive_scores_forward(q, k, v, activation, 0.3)
    grad = torch.randn_like(scores)
    want = torch.autograd.grad(scores, (q, k, v), grad)
    got = additive_scores_backward(grad, q, k, v, activation, 0.3)
    torch.testing.assert_close(got, want, equal_nan=True, **CLOSE)


@activations
@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 5), (2, 0, 5), (2, 3, 0), (1, 1, 1)])
def test_empty_and_single(activation, batch, queries, keys):
    q, k, v = make_scores(batch, queries, keys)
    scores = additive_scores_forward(q, k, v, activation, 0.3)
    assert scores.shape == (batch, queries, keys)
    grads = additive_scores_backward(scores, q, k, v, activation, 0.3)
    torch.testing.assert_close(grads, torch.autograd.grad(scores, (q, k, v), scores.detach()), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    q, k, v = make_scores(dtype=dtype, channels=64)
    scores = additive_scores_forward(q, k, v, "tanh", 0.0)
    assert scores.dtype == torch.float32
    assert {grad.dtype for grad in additive_scores_backward(scores, q, k, v, "tanh", 0.0)} == {dtype}
    exact = additive_scores_forward(q.double(), k.double(), v.double(), "tanh", 0.0)
    # Half precision enters with the inputs only, so what is left is float32's rounding of 64 terms.
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-5)


@activations
def test_formulas_are_differentiable(activation):
    """Double backward runs the backward formula again under autograd."""
    q, k, v = make_scores()
    grad = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    arguments = (grad, q, k, v)
    assert torch.autograd.gradcheck(lambda *a: additive_scores_backward(*a, activation, 0.3), arguments)


# ------------------------------------------------------------------------------------------------- masked softmax


def test_softmax_without_a_mask_is_torchs():
    scores = torch.tensor([[1.0, 2.0, -INF], [NAN, 0.0, 1.0], [INF, 0.0, 1.0], [-INF, -INF, -INF]])
    torch.testing.assert_close(masked_softmax(scores, None), torch.softmax(scores, -1), equal_nan=True, **EXACT)
    everything = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(masked_softmax(scores, everything), torch.softmax(scores, -1), equal_nan=True, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_masked_positions_do_not_count(dtype):
    scores = torch.tensor([[1.0, NAN, 2.0], [1.0, 2.0, INF], [0.0, NAN, 1.0], [NAN, 5.0, -INF]], dtype=dtype)
    mask = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    a, b = torch.softmax(scores[0, ::2], -1), torch.softmax(scores[1, :2], -1)
    want = torch.stack([a[0], 0 * a[0], a[1], b[0], b[1], 0 * b[0]]).reshape(2, 3)
    weights = masked_softmax(scores, mask)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights[:2], want)
    assert not weights[:2][~mask[:2]].any()
    assert weights[2, 0] == 0  # exactly, in a row that is NaN elsewhere
    assert weights[2, 1:].isnan().all()
    assert not weights[3].any()


@anomaly_mode
def test_an_empty_row_has_no_gradient_and_makes_no_nan():
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    with torch.autograd.detect_anomaly(check_nan=True):
        (grad,) = torch.autograd.grad(masked_softmax(scores, mask).square().sum(), scores)
    assert not grad[~mask].any()
    assert grad[0, mask[0]].all()
    assert torch.autograd.gradcheck(masked_softmax, (scores, mask))
    assert torch.autograd.gradgradcheck(masked_softmax, (scores, mask))


def test_mask_is_broadcast():
    scores, mask = torch.randn(2, 3, 5), torch.rand(2, 1, 5) > 0.5
    torch.testing.assert_close(masked_softmax(scores, mask), masked_softmax(scores, mask.expand(2, 3, 5)), **EXACT)


# ---------------------------------------------------------------------------------------------------- the modules


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
        (ValueError, "key", {"key": torch.zeros(2, 6)}),
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
