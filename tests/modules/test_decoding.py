"""Steps over prepared keys: one op where nothing stands between its parts, the same numbers everywhere."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import hybridops
from hybridops import FusedAdditiveAttention, native
from hybridops.functional import MAX_STEP_QUERIES
from hybridops.reference import AdditiveAttention
from tests import tolerances
from tests.modules.agreement import pair, randn
from tests.native.recorder import Recorder
from tests.problems import DTYPES

pytestmark = pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))

STEP = "hybridops::additive_attention_step"
DIMS = {"query_dim": 10, "key_dim": 12, "attn_dim": 20}
MASK = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


def decode(module: AdditiveAttention, query: Tensor, keys: object, **options: bool) -> tuple[Tensor | None, ...]:
    with torch.no_grad():
        return module(query, keys, **options)


def prepare(module: AdditiveAttention, *inputs: Tensor | None) -> object:
    with torch.no_grad():
        return module.prepare(*inputs)


def is_one_op(module: AdditiveAttention, query: Tensor, keys: object) -> bool:
    with Recorder("hybridops") as recorder:
        decode(module, query, keys)
    return [func.name() for func, _ in recorder.calls] == [STEP]


def assert_steps(arguments: dict[str, object], query: Tensor, key: Tensor, value: Tensor | None, mask: Tensor | None):
    """In one op, and as near to float64 as the plain module in that dtype."""
    plain, fused = pair("AdditiveAttention", **arguments, dtype=query.dtype)
    exact = copy.deepcopy(plain).double()
    inputs = (key, value, mask)
    keys = prepare(fused, *inputs)
    assert is_one_op(fused, query, keys)
    got = decode(fused, query, keys)
    wide = [t if t is None or t.dtype == torch.bool else t.double() for t in (query, *inputs)]
    for mine, its, best in zip(got, decode(plain, query, inputs[0], **_rest(*inputs)), exact(*wide), strict=True):
        assert (mine.shape, mine.dtype) == (its.shape, its.dtype)
        if query.dtype == torch.float64:
            torch.testing.assert_close(mine, its, **tolerances.FLOAT64)
        else:
            allowed = tolerances.allowed_error(its, best, query.dtype, arguments.get("scale", 1.0))
            assert tolerances.largest(mine.double() - best) <= allowed
    without, nothing = decode(fused, query, keys, need_weights=False)
    torch.testing.assert_close(without, got[0], **tolerances.EXACT)
    assert nothing is None


def _rest(key: Tensor, value: Tensor | None, mask: Tensor | None) -> dict[str, Tensor | None]:
    return {"value": value, "mask": mask}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "mask",
    [None, MASK, MASK[:, None], MASK[2], MASK[:, :1], MASK[:1, :1]],
    ids=["none", "(B,T)", "(B,1,T)", "(T)", "(B,1)", "(1,1)"],
)
@pytest.mark.parametrize("queries", [(3, 10), (3, 4, 10), (6, 10), (9, 2, 10)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_steps(bias, queries, mask, dtype):
    query, key, value = randn(*queries).to(dtype), randn(3, 5, 12).to(dtype), randn(1, 3, 5, 9)[0].to(dtype)
    if mask is not None and mask.dim() == 1:
        mask = mask[None]
    assert_steps(DIMS | {"bias": bias}, query, key, value, mask)


@pytest.mark.parametrize("arguments", [{"activation": "relu"}, {"activation": "leaky_relu"}, {"scale": 0.3}], ids=str)
def test_arguments(arguments):
    assert_steps(DIMS | arguments, randn(3, 10), randn(3, 5, 12), None, MASK)


@given(
    sizes=st.tuples(*[st.integers(1, 70)] * 3),
    batch=st.integers(1, 3),
    beams=st.integers(1, 25),
    keys=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
)
def test_sizes(sizes, batch, beams, keys, dtype):
    dims = dict(zip(DIMS, sizes, strict=True))
    query, key = randn(batch * beams, dims["query_dim"]).to(dtype), randn(batch, keys, dims["key_dim"]).to(dtype)
    assert_steps(dims | {"bias": True}, query, key, None, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 64, 65, 200])
def test_many_rows(rows, dtype):
    """More than a block of rows, more than a chunk of inputs."""
    dims = {"query_dim": 300, "key_dim": 12, "attn_dim": 130, "bias": True}
    assert_steps(dims, randn(rows, 300).to(dtype), randn(1, 5, 12).to(dtype), None, None)


def test_most_rows():
    plain, fused = pair("AdditiveAttention", **DIMS)
    key = randn(2, 5, 12)
    keys = prepare(fused, key)
    for queries, one_op in ((MAX_STEP_QUERIES // 2, True), (MAX_STEP_QUERIES // 2 + 1, False)):
        query = randn(2, queries, 10)
        assert is_one_op(fused, query, keys) == one_op
        torch.testing.assert_close(decode(fused, query, keys), decode(plain, query, key), **tolerances.FLOAT64)


def test_vmap():
    _, fused = pair("AdditiveAttention", **DIMS)
    query, keys = randn(4, 3, 10), prepare(fused, randn(3, 5, 12))
    with torch.no_grad():
        context, weights = torch.vmap(lambda query: fused(query, keys))(query)
    for each in range(4):
        torch.testing.assert_close(
            (context[each], weights[each]), decode(fused, query[each], keys), **tolerances.FLOAT64
        )


def test_layouts():
    """Queries cut out of a sequence, weights and keys that are views."""
    plain, fused = pair("AdditiveAttention", **DIMS)
    for module in plain, fused:
        module.query_proj.weight = nn.Parameter(randn(10, 20).t())
    query, key = randn(3, 4, 10)[:, 1], randn(3, 12, 5).transpose(1, 2)
    keys = prepare(fused, key)
    assert is_one_op(fused, query, keys)
    torch.testing.assert_close(decode(fused, query, keys), decode(plain, query, key), **tolerances.FLOAT64)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite(bad):
    plain, fused = pair("AdditiveAttention", **DIMS)
    query, key = randn(3, 10), randn(3, 5, 12)
    query[1, 3] = bad
    got = decode(fused, query, prepare(fused, key))
    torch.testing.assert_close(got, decode(plain, query, key), equal_nan=True, **tolerances.FLOAT64)


def test_no_keys():
    _, fused = pair("AdditiveAttention", **DIMS)
    context, weights = decode(fused, randn(3, 10), prepare(fused, randn(3, 0, 12)))
    torch.testing.assert_close((context, weights), (torch.zeros(3, 12).double(), torch.zeros(3, 0).double()))


# --------------------------------------------------------------------------------------- what is not for the one op


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def other_weight(module: FusedAdditiveAttention) -> None:
    module.query_proj.weight = nn.Parameter(randn(20, 10))


def changed_weight(module: FusedAdditiveAttention) -> None:
    with torch.no_grad():
        module.query_proj.weight.mul_(2)


def other_memory(module: FusedAdditiveAttention) -> None:
    module.query_proj.weight.data = randn(20, 10)


def other_projection(module: FusedAdditiveAttention) -> None:
    module.query_proj = Doubled(10, 20, dtype=torch.float64)


def hooked(module: FusedAdditiveAttention) -> None:
    module.query_proj.register_forward_hook(lambda module, args, out: out + 1)


def hooked_before(module: FusedAdditiveAttention) -> None:
    module.query_proj.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def other_forward(module: FusedAdditiveAttention) -> None:
    """As libraries do that move weights between devices."""
    module.query_proj.forward = lambda x: 3 * nn.functional.linear(x, module.query_proj.weight)


class Wrapped(nn.Module):
    """Around the same parameter, as adapters are."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.weight, self.bias = linear, linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.linear(x)


def wrapped(module: FusedAdditiveAttention) -> None:
    module.query_proj = Wrapped(module.query_proj)


def parametrized(module: FusedAdditiveAttention) -> None:
    nn.utils.parametrizations.weight_norm(module.query_proj)


def changed_unseen(module: FusedAdditiveAttention) -> None:
    """As an optimizer with fused=True does: neither the version of the weight nor its memory tells."""
    weight = module.query_proj.weight
    version, pointer = weight._version, weight.data_ptr()
    weight.data.mul_(2)
    assert (weight._version, weight.data_ptr()) == (version, pointer)


def stepped(module: FusedAdditiveAttention) -> None:
    optimizer = torch.optim.SGD(module.query_proj.parameters(), lr=0.1, fused=True)
    module.query_proj.weight.grad = torch.ones_like(module.query_proj.weight)
    optimizer.step()
    module.query_proj.weight.grad = None


WEIGHTS = [
    other_weight,
    changed_weight,
    other_memory,
    changed_unseen,
    stepped,
    parametrized,
]  # it is read at every step
CALLED = [other_projection, other_forward, wrapped, hooked, hooked_before]


@pytest.mark.parametrize("change", WEIGHTS + CALLED, ids=lambda change: change.__name__)
def test_the_projection_is_changed_after_prepare(change):
    """It counts as it is now."""
    plain, fused = pair("AdditiveAttention", **DIMS)
    query, key = randn(3, 10), randn(3, 5, 12)
    keys = prepare(fused, key)
    before = decode(fused, query, keys)
    assert is_one_op(fused, query, keys)
    change(fused)
    assert is_one_op(fused, query, keys) == (change in WEIGHTS)
    plain.query_proj = fused.query_proj
    got = decode(fused, query, keys)
    assert change is parametrized or not torch.allclose(got[0], before[0])
    torch.testing.assert_close(got, decode(plain, query, key), **tolerances.FLOAT64)
    torch.testing.assert_close(decode(fused, query, prepare(fused, key)), got, **tolerances.FLOAT64)


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_hooks_of_all_modules(register):
    _, fused = pair("AdditiveAttention", **DIMS)
    query, keys = randn(3, 10), prepare(fused, randn(3, 5, 12))
    called = []
    handle = register(lambda module, *_: called.append(module))
    decode(fused, query, keys)
    handle.remove()
    assert {*called} == {fused, fused.query_proj, fused.v}  # v as well, as in the plain module
    assert is_one_op(fused, query, keys)


@pytest.mark.parametrize("name", ["query_proj.bias", "v.weight"])
def test_other_parameters_are_changed_after_prepare(name):
    """They are read at every step."""
    plain, fused = pair("AdditiveAttention", **DIMS, bias=True)
    query, key = randn(3, 10), randn(3, 5, 12)
    keys = prepare(fused, key)
    for module in plain, fused:
        module.get_parameter(name).data.mul_(-2)
    assert is_one_op(fused, query, keys)
    torch.testing.assert_close(decode(fused, query, keys), decode(plain, query, key), **tolerances.FLOAT64)


def test_the_keys_are_changed_after_prepare():
    plain, fused = pair("AdditiveAttention", **DIMS)
    query, key, value = randn(3, 10), randn(3, 5, 12), randn(1, 3, 5, 9)[0]
    keys = dataclasses.replace(prepare(fused, key), value=value, mask=MASK[:, None])
    want = decode(plain, query, key, value=value, mask=MASK)
    torch.testing.assert_close(decode(fused, query, keys), want, **tolerances.FLOAT64)


def test_gradients_are_wanted():
    _, fused = pair("AdditiveAttention", **DIMS)
    query, key = randn(3, 10).requires_grad_(), randn(3, 5, 12)
    context, _ = fused(query, prepare(fused, key))
    want, _ = fused(query, key)
    for parameter in (query, fused.query_proj.weight, fused.v.weight):
        grads = [torch.autograd.grad(out.square().sum(), parameter, retain_graph=True) for out in (context, want)]
        torch.testing.assert_close(*grads, **tolerances.FLOAT64)


def test_weights_are_dropped_in_training():
    plain, fused = pair("AdditiveAttention", **DIMS, dropout=0.5)
    query, key = randn(3, 10), randn(3, 5, 12)
    keys = prepare(fused, key)
    got = []
    for module, its in ((plain, key), (fused, keys)):
        torch.manual_seed(1)
        got.append(decode(module, query, its))
    torch.testing.assert_close(*got, **tolerances.FLOAT64)
    fused.eval()
    assert is_one_op(fused, query, keys)


@pytest.mark.parametrize("shape", [(3, 2, 5), (1, 2, 5), (3, 2, 1), (1, 2, 1), (3, 1, 1), (2, 1)], ids=str)
def test_masks_that_broadcast(shape):
    """A mask of a size 1 is laid out over all that it stands for, on whichever path."""
    plain, fused = pair("AdditiveAttention", **DIMS)
    query, key, mask = randn(3, 2, 10), randn(3, 5, 12), randn(1, *shape)[0] > 0
    mask = mask[None] if mask.dim() == 2 and shape[0] != 3 else mask
    got = decode(fused, query, prepare(fused, key, None, mask))
    torch.testing.assert_close(got, decode(plain, query, key, mask=mask), **tolerances.FLOAT64)


def test_meta():
    """Shapes without memory."""
    module = FusedAdditiveAttention(**DIMS, device="meta")
    with torch.no_grad():
        keys = module.prepare(torch.empty(3, 5, 12, device="meta"), mask=MASK.to("meta"))
        context, weights = module(torch.empty(3, 10, device="meta"), keys)
    assert (context.shape, weights.shape) == ((3, 12), (3, 5))
    assert context.is_meta


def test_pickled_keys(tmp_path):
    _, fused = pair("AdditiveAttention", **DIMS)
    query, keys = randn(3, 10), prepare(fused, randn(3, 5, 12), None, MASK)
    want = decode(fused, query, keys)
    torch.save(keys, tmp_path / "keys")
    again = torch.load(tmp_path / "keys", weights_only=False)
    torch.testing.assert_close(decode(fused, query, again), want, **tolerances.EXACT)


def test_autocast():
    _, fused = pair("AdditiveAttention", **DIMS, dtype=torch.float32)
    query, key = randn(3, 10, dtype=torch.float32), randn(3, 5, 12, dtype=torch.float32)
    keys = prepare(fused, key)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_one_op(fused, query, keys)
        got, want = decode(fused, query, prepare(fused, key)), decode(fused, query, key)
    assert want[0].dtype == torch.bfloat16
    torch.testing.assert_close(got, want, **tolerances.EXACT)


def test_a_back_end_is_named():
    _, fused = pair("AdditiveAttention", **DIMS)
    query, keys = randn(3, 10), prepare(fused, randn(3, 5, 12))
    with hybridops.use_backend("reference"):
        assert not is_one_op(fused, query, keys)
    assert is_one_op(fused, query, keys)


def test_inference_mode():
    _, fused = pair("AdditiveAttention", **DIMS)
    query, key = randn(3, 10), randn(3, 5, 12)
    want = decode(fused, query, key)
    with torch.inference_mode():
        keys = fused.prepare(key)
        assert is_one_op(fused, query, keys)
        torch.testing.assert_close(fused(query, keys), want, **tolerances.FLOAT64)
        made_here = FusedAdditiveAttention(**DIMS, dtype=torch.float64)
        made_here.load_state_dict(fused.state_dict())
        torch.testing.assert_close(made_here(query, made_here.prepare(key)), want, **tolerances.FLOAT64)


def test_compiled():
    _, fused = pair("AdditiveAttention", **DIMS)
    query, key = randn(3, 10), randn(3, 5, 12)
    keys = prepare(fused, key)
    compiled = torch.compile(lambda query: fused(query, keys), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(query), fused(query, key), **tolerances.FLOAT64)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (randn(3, 11), r"^query must have shape \(m·B, 10\), got \(3, 11\)$"),
        (randn(4, 10), "^query must have the batch size of key, 3, or a multiple of it, got 4$"),
        (randn(10), r"^query must have shape \(m·B, S, 10\), got \(10\)$"),
        (randn(3, 1, 1, 10), r"^query must have shape \(m·B, S, 10\), got \(3, 1, 1, 10\)$"),
    ],
    ids=["channels", "batch", "one dimension", "four dimensions"],
)
def test_errors(query, message):
    _, fused = pair("AdditiveAttention", **DIMS)
    with pytest.raises(ValueError, match=message):
        decode(fused, query, prepare(fused, randn(3, 5, 12)))


def test_keys_of_another_width():
    _, fused = pair("AdditiveAttention", **DIMS)
    fused.key_proj = nn.Linear(12, 19, dtype=torch.float64)
    keys = prepare(fused, randn(3, 5, 12))
    with pytest.raises(ValueError, match=r"^key must have shape \(3, T, 20\), got \(3, 5, 19\)$"):
        decode(fused, randn(3, 10), keys)


def test_a_bias_of_another_width():
    _, fused = pair("AdditiveAttention", **DIMS, bias=True)
    keys = prepare(fused, randn(3, 5, 12))
    fused.query_proj.bias = nn.Parameter(randn(19))
    with pytest.raises(RuntimeError, match="must match the existing size"):
        decode(fused, randn(3, 10), keys)


@pytest.mark.parametrize("part", ["query_proj", "v"])
def test_parts_of_other_dtypes(part):
    """Refused, not read as if they were of the query's."""
    _, fused = pair("AdditiveAttention", **DIMS)
    keys = prepare(fused, randn(3, 5, 12))
    getattr(fused, part).float()
    with pytest.raises((TypeError, RuntimeError), match="dtype"):
        decode(fused, randn(3, 10), keys)
