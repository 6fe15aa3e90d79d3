"""FusedConcatAttention and FusedAdditiveAttention in place of the plain modules."""

from __future__ import annotations

import pytest
import torch

from hybridops import FusedAdditiveAttention
from hybridops.reference import AdditiveAttention, PreparedKeys
from tests import tolerances
from tests.modules.agreement import assert_agree, pair, randn, results

VARIANTS = {
    "plain": {},
    "bias": {"bias": True},
    "relu": {"activation": "relu"},
    "leaky_relu": {"activation": "leaky_relu", "negative_slope": 0.3},
    "scale": {"scale": 0.125},
    "dropout": {"dropout": 0.4},
    "heads": {"num_heads": 2, "bias": True, "scale": 0.7},
    "heads, dropout": {"num_heads": 2, "dropout": 0.4, "activation": "relu"},
}
variants = pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
MASK = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("mask", [None, MASK, MASK[:1], MASK[0]], ids=["none", "(B,T)", "(1,T)", "(T)"])
def test_the_documents_usage(mask):
    plain, fused = pair("ConcatAttention", 16)
    plain.load_state_dict(fused.state_dict(), strict=True)
    hidden, encoder_outputs = randn(2, 16), randn(2, 5, 16)
    assert_agree(plain, fused, hidden, encoder_outputs, mask)
    weights = fused(hidden, encoder_outputs, mask)
    assert weights.shape == (2, 5)
    attended = torch.ones(2) if mask is None else mask.expand(2, 5).any(-1)
    torch.testing.assert_close(weights.sum(1), attended.double(), **tolerances.FLOAT64)


@variants
@pytest.mark.parametrize("mask", [None, MASK, MASK[:, None].expand(2, 3, 5)], ids=["none", "(B,T)", "(B,S,T)"])
@pytest.mark.parametrize("training", [True, False])
def test_additive_attention(arguments, mask, training):
    """Dropout too draws what the plain module's draws."""
    modules = [module.train(training) for module in pair("AdditiveAttention", 4, 6, 8, **arguments)]
    query, key, value = randn(2, 3, 4), randn(2, 5, 6), randn(1, 2, 5, 8)[0]
    for need_weights in (True, False):
        assert_agree(*modules, query, key, value, mask, need_weights, seed=3)


@variants
def test_one_query(arguments):
    """(B, Q) in, (B, D) and (B, T) out; the key is the value."""
    plain, fused = (module.eval() for module in pair("AdditiveAttention", 4, 6, 8, **arguments))
    assert_agree(plain, fused, randn(2, 4), randn(2, 5, 6), None, MASK)
    context, weights = fused(randn(2, 4), randn(2, 5, 6), mask=MASK)
    assert (context.shape, weights.shape) == ((2, 6), (2, 5))


@variants
def test_state_dict_goes_both_ways(arguments):
    plain, fused = pair("AdditiveAttention", 4, 6, 8, **arguments)
    plain.load_state_dict(fused.state_dict(), strict=True)
    assert list(plain.state_dict()) == list(fused.state_dict())


# ----------------------------------------------------------------------------------- several heads, log-sum-exp


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_is_an_attention_of_its_own(bias):
    """On its share of the projections, of v and of the value."""
    for module in pair("AdditiveAttention", 4, 6, 8, num_heads=2, bias=bias, scale=0.7):
        query, key, value = randn(2, 3, 4), randn(2, 5, 6), randn(1, 2, 5, 10)[0]
        context, weights, lse = module(query, key, value, MASK, average_attn_weights=False, need_lse=True)
        assert (context.shape, weights.shape, lse.shape) == ((2, 3, 10), (2, 2, 3, 5), (2, 2, 3))
        torch.testing.assert_close(module(query, key, value, MASK)[1], weights.mean(1), **tolerances.FLOAT64)
        for head in range(2):
            rows = slice(4 * head, 4 * head + 4)
            single = AdditiveAttention(4, 6, 4, bias=bias, scale=0.7, dtype=torch.float64)
            state = {name: t[rows] for name, t in module.state_dict().items() if "proj" in name}
            single.load_state_dict(state | {"v.weight": module.v.weight[head : head + 1]}, strict=True)
            want = single(query, key, value[..., 5 * head : 5 * head + 5], MASK, need_lse=True)
            got = context[..., 5 * head : 5 * head + 5], weights[:, head], lse[:, head]
            torch.testing.assert_close(got, want, **tolerances.FLOAT64)


@variants
def test_log_sum_exp(arguments):
    """With gradients, of one query and of many, and beside prepared keys."""
    plain, fused = (module.eval() for module in pair("AdditiveAttention", 4, 6, 8, **arguments))
    key, value = randn(2, 5, 6), randn(1, 2, 5, 4)[0]
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0]], dtype=torch.bool)

    class WithLse(torch.nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.attention = attention

        def forward(self, query):
            return self.attention(query, key, value, mask, need_lse=True, average_attn_weights=False)

    for query in (randn(2, 3, 4), randn(2, 4), randn(6, 4), randn(4, 3, 4)):
        assert_agree(WithLse(plain), WithLse(fused), query)
        with torch.no_grad():
            prepared = fused.prepare(key, value, mask)
            got = fused(query, prepared, need_lse=True, average_attn_weights=False)
            torch.testing.assert_close(got, WithLse(plain)(query), **tolerances.FLOAT64)


def test_one_head_keeps_its_state_dict_and_shapes():
    for module in pair("AdditiveAttention", 4, 6, 8):
        assert module.state_dict()["v.weight"].shape == (1, 8)
        assert type(module.v) is torch.nn.Linear
        query, key = randn(2, 3, 4), randn(2, 5, 6)
        _, weights, lse = module(query, key, average_attn_weights=False, need_lse=True)
        assert (weights.shape, lse.shape) == ((2, 1, 3, 5), (2, 3))
        torch.testing.assert_close(weights[:, 0], module(query, key)[1], **tolerances.FLOAT64)
    for module in pair("AdditiveAttention", 4, 6, 8, num_heads=4):
        assert module.state_dict()["v.weight"].shape == (4, 2)


def test_a_hook_on_v_of_several_heads_runs():
    """Or, where a back end was named, it is said that it cannot."""
    plain, fused = pair("AdditiveAttention", 4, 6, 8, num_heads=2)
    for module in (plain, fused):
        module.v.register_forward_hook(lambda _, inputs, scores: 2 * scores)
    assert_agree(plain, fused, randn(2, 3, 4), randn(2, 5, 6))
    fused.backend = "native"
    with pytest.raises(RuntimeError, match="v has hooks"):
        fused(randn(2, 3, 4), randn(2, 5, 6))


def test_wrong_heads():
    for kind in (AdditiveAttention, FusedAdditiveAttention):
        with pytest.raises(ValueError, match=r"^attn_dim must be a multiple of num_heads, 3, got 8$"):
            kind(4, 6, 8, num_heads=3)
        with pytest.raises(ValueError, match=r"^num_heads must be a positive int, got 0$"):
            kind(4, 6, 8, num_heads=0)
        module = kind(4, 6, 8, num_heads=4)
        with pytest.raises(ValueError, match=r"^key must have a multiple of num_heads, 4, channels, got 6$"):
            module(torch.zeros(2, 4), torch.zeros(2, 5, 6))
        with pytest.raises(ValueError, match=r"^value must have a multiple of num_heads, 4, channels, got 7$"):
            module.prepare(torch.zeros(2, 5, 6), torch.zeros(2, 5, 7))


# -------------------------------------------------------------------------------------------------------- decoding


@variants
@pytest.mark.parametrize("mask", [None, MASK], ids=["none", "(B,T)"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_step_by_step_decoding(arguments, mask, backend):
    _, module = pair("AdditiveAttention", 4, 6, 8, **arguments)
    module.eval().backend = backend
    queries, key, value = randn(2, 7, 4), randn(2, 5, 6), randn(1, 2, 5, 4)[0]
    context, weights = module(queries, key, value, mask)
    prepared = module.prepare(key, value, mask)
    assert isinstance(prepared, PreparedKeys)
    steps = [module(query, prepared) for query in queries.unbind(1)]
    got = tuple(torch.stack(parts, 1) for parts in zip(*steps, strict=True))
    torch.testing.assert_close(got, (context, weights), **tolerances.FLOAT64)
    torch.testing.assert_close(module(queries, prepared), (context, weights), **tolerances.FLOAT64)


@variants
def test_gradients_through_prepared_keys(arguments):
    """To the keys' projection too, from every step."""
    plain, fused = (module.eval() for module in pair("AdditiveAttention", 4, 6, 8, **arguments))
    inputs = (randn(2, 7, 4), randn(2, 5, 6))

    class Decoder(torch.nn.Module):
        def __init__(self, attention, prepare):
            super().__init__()
            self.attention, self.prepare = attention, prepare

        def forward(self, queries, key):
            prepared = self.attention.prepare(key, mask=MASK) if self.prepare else key
            mask = None if self.prepare else MASK
            return torch.stack([self.attention(query, prepared, None, mask)[0] for query in queries.unbind(1)], 1)

    assert_agree(Decoder(plain, False), Decoder(fused, True), *inputs)


@variants
@pytest.mark.parametrize("mask", [None, MASK], ids=["none", "(B,T)"])
@pytest.mark.parametrize("queries", [(6, 4), (6, 3, 4)], ids=["one query", "three"])
def test_beams_share_keys(arguments, mask, queries):
    """As if the keys were repeated for each beam, gradients included."""
    plain, fused = (module.eval() for module in pair("AdditiveAttention", 4, 6, 8, **arguments))
    query, key, value = randn(*queries), randn(2, 5, 6), randn(1, 2, 5, 4)[0]
    repeated = [None if t is None else t.repeat_interleave(3, 0) for t in (key, value, mask)]
    want = plain(query, *repeated)
    for module in plain, fused:
        torch.testing.assert_close(module(query, key, value, mask), want, **tolerances.FLOAT64)
        torch.testing.assert_close(module(query, module.prepare(key, value, mask)), want, **tolerances.FLOAT64)
    leaves = [query.requires_grad_(), key.requires_grad_()]
    grads = [
        torch.autograd.grad(module(query, k, mask=m)[0].square().sum(), leaves)
        for module, k, m in ((fused, key, mask), (plain, key.repeat_interleave(3, 0), repeated[2]))
    ]
    torch.testing.assert_close(*grads, **tolerances.FLOAT64)


@pytest.mark.parametrize("count", [1, 3, 5, 0])
def test_queries_that_are_no_beams(count):
    for module in pair("AdditiveAttention", 4, 6, 8):
        with pytest.raises(ValueError, match=rf"^query must have the batch size of key, 2, .* got {count}$"):
            module(randn(count, 3, 4), randn(2, 5, 6))


def test_keys_prepared_by_one_back_end_serve_another():
    _, module = pair("AdditiveAttention", 4, 6, 8)
    query, key = randn(2, 4), randn(2, 5, 6)
    want = module(query, key)
    for first, second in ((None, "reference"), ("reference", None)):
        module.backend = first
        prepared = module.prepare(key)
        module.backend = second
        torch.testing.assert_close(module(query, prepared), want, **tolerances.FLOAT64)


def test_keys_prepared_by_the_plain_module_serve():
    plain, fused = pair("AdditiveAttention", 4, 6, 8)
    query, key = randn(2, 4), randn(2, 5, 6)
    torch.testing.assert_close(fused(query, plain.prepare(key)), plain(query, key), **tolerances.FLOAT64)
    torch.testing.assert_close(plain(query, fused.prepare(key)), plain(query, key), **tolerances.FLOAT64)


def test_prepared_keys_of_any_magnitude():
    _, module = pair("AdditiveAttention", 4, 6, 8)
    for scale in (1e-3, 1.0, 30.0, 1e3, 1e6):
        query, key = scale * randn(2, 4), scale * randn(2, 5, 6)
        torch.testing.assert_close(module(query, module.prepare(key)), module(query, key), **tolerances.FLOAT64)


def test_weights_left_out_change_nothing_else():
    _, module = pair("AdditiveAttention", 4, 6, 8)
    query, key = randn(2, 3, 4), randn(2, 5, 6)
    (context, _), _ = results(module, (query, key))
    without, nothing = module(query, key, need_weights=False)
    torch.testing.assert_close(without, context, **tolerances.EXACT)
    assert nothing is None
