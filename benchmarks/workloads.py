"""What is measured: the workloads of all families, and the variants that run them; the decoder's are in decoders.py.

A job is one variant of one task of a workload, such as ("kth", "training", "native"). The variants:

    eager              the plain module, as it stands in hybridops.reference
    compiled           the same under torch.compile
    native             the fused module on that back end, and so on for every back end that is here
    native-recompute   the same, trained with save="recompute"
    native-high        the same under torch.set_float32_matmul_precision("high"), on a CPU
    native-direct      the same without Winograd's convolutions, on a CPU
    eager-autocast     on a GPU, eager, compiled and each back end under autocast to bfloat16 too
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import ClassVar
from unittest import mock

import torch
from torch import Tensor, nn

import hybridops
import hybridops.functional as HF
from benchmarks import decoders
from benchmarks.decoders import AttentionDecoderWorkload
from benchmarks.environment import DEVICE, SMOKE, Place, compile_in_place, compiled_function
from hybridops import backends, reference
from hybridops.native import conv_lstm as native_conv_lstm

# The largest error allowed, relative to the largest element: rounding in float32 gives about 1e-6, a wrong formula more
# than 1e-2. (On CUDA, convolutions that round to TF32 give 1e-3: that is turned off.) In bfloat16, of 8 bits, rounding
# gives 1e-2 after some steps, and only what is altogether wrong is found out.
TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 5e-2


@dataclass(frozen=True)
class ConvLSTMWorkload:
    """One layer over a sequence (batch, steps, channels, size, size)."""

    name: str
    batch: int
    steps: int
    channels: int
    hidden: int
    size: int
    kernel: int
    dtype: torch.dtype = torch.float32

    family: ClassVar[str] = "conv_lstm"
    tasks: ClassVar[tuple[str, ...]] = ("inference", "training")
    unit: ClassVar[str] = "GFLOP/s"

    def operations(self, task: str) -> float:
        """Floating-point operations of the convolutions. Training also has the gradients of input and weight."""
        images, taps = self.batch * self.steps * self.size**2, self.kernel**2
        forward = 2 * images * (self.channels + self.hidden) * 4 * self.hidden * taps
        return 3 * forward if task == "training" else forward

    def multiply_adds(self, task: str) -> float:
        return self.operations(task) / 2

    def to_check(self) -> ConvLSTMWorkload:
        """The same code runs for three steps as for more, in less time."""
        return replace(self, steps=min(self.steps, 3))

    def inputs(self, task: str) -> tuple[Tensor, ...]:
        return (torch.randn(self.batch, self.steps, self.channels, self.size, self.size),)

    def function(self, task: str, variant: str, place: Place) -> Callable[..., Tensor]:
        sizes = (self.channels, self.hidden, self.kernel)
        if variant in ("eager", "compiled"):
            module = reference.ConvLSTM(*sizes).to(**place)
            if variant == "compiled":
                # A step, not the unrolled sequence: no slower, and compiled in seconds whatever the number of steps.
                for cell in module.cell_list:
                    compile_in_place(cell)
            return module
        backend, _, save = variant.partition("-")
        return hybridops.FusedConvLSTM(*sizes, backend=backend, save=save or "gates").to(**place)


@dataclass(frozen=True)
class AdditiveAttentionWorkload:
    """A batch of queries (batch, queries, width) over keys (batch, keys, width) and values (batch, keys, value_dim).

    Scores alone; attention (scores, softmax, context); and the module, with the projections of queries and keys. The
    module with one query is a step of decoding: at inference it finds its keys projected already (`prepare`).
    """

    name: str
    batch: int
    queries: int
    keys: int
    width: int
    value_dim: int

    family: ClassVar[str] = "additive_attention"
    dtype: ClassVar[torch.dtype] = torch.float32
    tasks: ClassVar[tuple[str, ...]] = tuple(
        f"{op} {mode}" for op in ("scores", "attention", "module") for mode in ("inference", "training")
    )
    unit: ClassVar[str] = "G pairs/s"

    def operations(self, task: str) -> float:
        """Pairs: sums q[b,s,a] + k[b,t,a] to take the tanh of."""
        return self.batch * self.queries * self.keys * self.width

    def multiply_adds(self, task: str) -> float:
        """The fewest that do it: multiply-adds, or additions or multiplications, which are no cheaper.

        A score: 14 for four pairs that share a division; its gradients: 15 for two. Context and projections: one a
        term, in training three. (Not counted: divisions, and what is done once a row or a score. Where additions have
        units of their own, as on AMD's Zen, not all of these are of a kind, and the floor is lower.)
        """
        op, mode = task.split()
        per_pair, per_term = (14 / 4, 1) if mode == "inference" else (14 / 4 + 15 / 2, 3)
        scores = self.operations(task)
        context = scores / self.width * self.value_dim
        query, key = self.batch * self.queries * self.width**2, self.batch * self.keys * self.value_dim * self.width
        projections = query if self.decodes(task) else query + key
        terms = {"scores": 0, "attention": context, "module": context + projections}[op]
        return per_pair * scores + per_term * terms

    def to_check(self) -> AdditiveAttentionWorkload:
        return self

    def inputs(self, task: str) -> tuple[Tensor, ...]:
        query = torch.randn(self.batch, self.queries, self.width)
        key = torch.randn(self.batch, self.keys, self.width)
        value = torch.randn(self.batch, self.keys, self.value_dim)
        v = torch.randn(self.width) / self.width**0.5
        if task.startswith("module"):
            return (query,) if self.decodes(task) else (query, value)
        return (query, key, v) if task.startswith("scores") else (query, key, value, v)

    def decodes(self, task: str) -> bool:
        return self.queries == 1 and task == "module inference"

    def function(self, task: str, variant: str, place: Place) -> Callable[..., Tensor]:
        op = task.split()[0]
        if op == "module":
            module = self.module(variant).to(**place)
            if not self.decodes(task):
                return module
            with torch.no_grad():
                prepared = module.prepare(torch.randn(self.batch, self.keys, self.value_dim).to(**place))
            return lambda query: module(query, prepared)
        if variant == "eager":
            return plain_scores if op == "scores" else plain_attention
        if variant == "compiled":
            return compiled_function(fusible_scores if op == "scores" else fusible_attention)
        return partial(HF.additive_scores if op == "scores" else HF.additive_attention, backend=variant)

    def module(self, variant: str) -> nn.Module:
        sizes = (self.width, self.value_dim, self.width)
        if variant not in ("eager", "compiled"):
            return hybridops.FusedAdditiveAttention(*sizes, backend=variant)
        module = reference.AdditiveAttention(*sizes)
        if variant == "compiled":
            compile_in_place(module)
        return module


@dataclass(frozen=True)
class MaskedAttentionWorkload(AdditiveAttentionWorkload):
    """The attention alone, of which each batch entry has a mask that leaves some keys, here and there."""

    attended: int = 1

    tasks: ClassVar[tuple[str, ...]] = ("attention inference", "attention training")

    def operations(self, task: str) -> float:
        return super().operations(task) * self.attended / self.keys

    def function(self, task: str, variant: str, place: Place) -> Callable[..., Tensor]:
        order = torch.rand(self.batch, self.keys, generator=torch.Generator().manual_seed(0)).argsort(1)
        mask = order.lt(self.attended).to(place["device"])
        return partial(super().function(task, variant, place), mask=mask)


@dataclass(frozen=True)
class DecodingLoopWorkload:
    """A decoder's attention over some steps, as it stands in text books: weights by concatenation, which projects the
    encoder's outputs anew at every step; then the context. Fused, they are prepared once.
    """

    name: str
    batch: int
    steps: int
    keys: int
    width: int

    family: ClassVar[str] = "additive_attention"
    dtype: ClassVar[torch.dtype] = torch.float32
    tasks: ClassVar[tuple[str, ...]] = ("loop inference",)
    unit: ClassVar[str] = "G pairs/s"

    def operations(self, task: str) -> float:
        return self.batch * self.steps * self.keys * self.width

    def multiply_adds(self, task: str) -> None:
        return None

    def to_check(self) -> DecodingLoopWorkload:
        return replace(self, steps=min(self.steps, 3))

    def inputs(self, task: str) -> tuple[Tensor, ...]:
        return torch.randn(self.steps, self.batch, self.width), torch.randn(self.batch, self.keys, self.width)

    def function(self, task: str, variant: str, place: Place) -> Callable[..., Tensor]:
        plain = reference.ConcatAttention(self.width).to(**place)
        if variant in ("eager", "compiled"):
            if variant == "compiled":
                compile_in_place(plain)
            return lambda hidden, encoded: torch.stack([torch.bmm(plain(h, encoded)[:, None], encoded) for h in hidden])
        w_query, w_key = plain.attn.weight.detach().split(self.width, dim=1)
        fused = hybridops.FusedAdditiveAttention(*[self.width] * 3, bias=True, backend=variant).to(**place)
        weights = {"query_proj.weight": w_query, "query_proj.bias": plain.attn.bias, "v.weight": plain.v.weight}
        zero = torch.zeros_like(plain.attn.bias)
        fused.load_state_dict(weights | {"key_proj.weight": w_key, "key_proj.bias": zero})

        def decode(hidden: Tensor, encoded: Tensor) -> Tensor:
            keys = fused.prepare(encoded)
            return torch.stack([fused(h, keys, need_weights=False)[0] for h in hidden]).unsqueeze(2)

        return decode


Workload = ConvLSTMWorkload | AdditiveAttentionWorkload | DecodingLoopWorkload | AttentionDecoderWorkload

WORKLOADS: dict[str, tuple[Workload, ...]] = {
    "conv_lstm": (
        ConvLSTMWorkload("document", 4, 5, 3, 16, 64, 3),
        ConvLSTMWorkload("small", 8, 10, 1, 64, 32, 3),
        ConvLSTMWorkload("square", 8, 10, 64, 64, 32, 3),
        ConvLSTMWorkload("wide_kernel", 4, 10, 16, 64, 16, 5),
        ConvLSTMWorkload("moving_mnist", 4, 10, 16, 128, 16, 5),
        ConvLSTMWorkload("moving_mnist_inner", 4, 10, 128, 128, 16, 5),
        ConvLSTMWorkload("kth", 1, 10, 4, 128, 64, 5),
        ConvLSTMWorkload("long", 1, 100, 16, 32, 32, 3),
        ConvLSTMWorkload("few", 4, 8, 1, 4, 64, 3),
        ConvLSTMWorkload("wide", 8, 8, 256, 256, 8, 3),
        ConvLSTMWorkload("wide_bfloat16", 8, 8, 256, 256, 8, 3, torch.bfloat16),
        ConvLSTMWorkload("wider_bfloat16", 8, 8, 512, 512, 4, 3, torch.bfloat16),
        ConvLSTMWorkload("pixels", 8, 8, 256, 256, 1, 3),
    ),
    "additive_attention": (
        AdditiveAttentionWorkload("gnmt", 32, 50, 50, 512, 512),
        AdditiveAttentionWorkload("captioning", 8, 50, 196, 512, 2048),
        AdditiveAttentionWorkload("tacotron", 4, 100, 200, 128, 128),
        AdditiveAttentionWorkload("decode", 32, 1, 50, 512, 512),
        AdditiveAttentionWorkload("decode128", 32, 1, 200, 128, 128),
        AdditiveAttentionWorkload("long", 1, 256, 2048, 256, 256),
        MaskedAttentionWorkload("masked", 8, 50, 196, 512, 2048, attended=16),
        DecodingLoopWorkload("decoder", 32, 50, 50, 512),
    ),
    "attention_decoder": decoders.WORKLOADS,
}
if SMOKE:
    WORKLOADS = {
        "conv_lstm": (ConvLSTMWorkload("tiny", 2, 4, 3, 8, 10, 3),),
        "additive_attention": (
            AdditiveAttentionWorkload("tiny", 2, 1, 7, 32, 16),
            MaskedAttentionWorkload("masked", 2, 8, 7, 32, 16, attended=2),
            DecodingLoopWorkload("decoder", 2, 3, 7, 16),
        ),
        "attention_decoder": decoders.SMOKE_WORKLOADS,
    }


def variants(family: str, task: str) -> Iterator[str]:
    yield "eager"
    yield "compiled"
    if family == "attention_decoder":
        yield "attention"
        if task in ("inference", "training"):
            yield "lstm"
    for backend in fused_backends(family):
        yield backend
        if family == "conv_lstm" and task == "training":
            yield f"{backend}-recompute"
    if family == "conv_lstm" and DEVICE == "cpu":
        yield from ("native-high", "native-direct")
    if DEVICE.startswith("cuda"):
        for name in ("eager", "compiled", *fused_backends(family)):
            yield f"{name}-autocast"


@contextlib.contextmanager
def _matmul_precision(value: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# What a job runs under, by the end of its variant's name
MODES: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "": contextlib.nullcontext,
    "high": partial(_matmul_precision, "high"),
    "direct": partial(mock.patch.object, native_conv_lstm, "precision", return_value=(False, 0)),
    "autocast": contextlib.nullcontext,  # of the forward alone
}


def split_mode(variant: str) -> tuple[str, str]:
    """native-high -> native, high"""
    name, _, mode = variant.rpartition("-")
    return (name, mode) if mode in MODES and name else (variant, "")


@cache
def fused_backends(family: str) -> tuple[str, ...]:
    """The back ends that are here and run this family on the device."""
    return tuple(name for name in backends.names() if name != "reference" and _runs(family, name))


def _runs(family: str, backend: str) -> bool:
    try:
        backends.choose(family, backend, torch.empty(0, device=DEVICE), spatial_dims=2)
    except RuntimeError:
        return False
    return True


# -------------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """Called, it does its work once, but does not wait for a GPU. Gives the output and, in training, gradients."""

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: tuple[Tensor, ...]
    grad: Tensor | None  # of the output; None: inference
    mode: str = ""

    def __call__(self) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(self.grad is not None), MODES[self.mode]():
            with torch.autocast("cuda", torch.bfloat16, enabled=self.mode == "autocast"):
                output = self.function(*self.inputs)
            output = output if isinstance(output, Tensor) else output[0]
            return (output,) if self.grad is None else (output.detach(), *self._gradients(output))

    def _gradients(self, output: Tensor) -> tuple[Tensor, ...]:
        parameters = self.function.parameters() if isinstance(self.function, nn.Module) else ()
        return torch.autograd.grad(output, [*self.inputs, *parameters], self.grad)


def checked_job(workload: Workload, task: str, variant: str) -> Job:
    """The job, after a check against the plain module in float64. A compiled one is good until the next is made.

    Raises:
        AssertionError: output or gradients are off by more than TOLERANCE, or in bfloat16 BFLOAT16_TOLERANCE.
    """
    name, mode = split_mode(variant)
    torch.backends.cudnn.allow_tf32 = False
    if name == "compiled":
        torch._dynamo.reset()  # all modules share the plain one's code, of which only so many versions are compiled
    place: Place = {"dtype": workload.dtype, "device": DEVICE}
    function, short = _function(workload, task, name, place), workload.to_check()
    if name == "lstm":  # computes something else
        return _job(workload, task, function, place)
    got, want = replace(_job(short, task, function, place), mode=mode)(), _oracle(short, task)
    for index, (mine, exact) in enumerate(zip(got, want, strict=True)):
        error = ((mine - exact).abs().max() / exact.abs().max()).item()
        if not error <= (BFLOAT16_TOLERANCE if mode == "autocast" or workload.dtype == torch.bfloat16 else TOLERANCE):
            what = ", ".join((workload.name, task, variant, f"gradient {index}" if index else "output"))
            raise AssertionError(f"{what}: an error of {error:.1e} of the largest value")
    return replace(_job(workload, task, function, place), mode=mode)


@lru_cache(maxsize=1)  # the variants of a task come one after the other
def _oracle(workload: Workload, task: str) -> tuple[Tensor, ...]:
    place: Place = {"dtype": torch.float64, "device": DEVICE}
    return _job(workload, task, _function(workload, task, "eager", place), place)()


# The same weights, inputs and gradient for every variant:


def _function(workload: Workload, task: str, variant: str, place: Place) -> Callable[..., Tensor]:
    torch.manual_seed(0)
    return workload.function(task, variant, place)


def _job(workload: Workload, task: str, function: Callable[..., Tensor], place: Place) -> Job:
    training = task.endswith("training")
    torch.manual_seed(1)
    inputs = tuple(x.to(**place).requires_grad_(training) for x in workload.inputs(task))
    grad = torch.randn(_output_shape(workload, task)).to(**place) if training else None
    return Job(function, inputs, grad)


def _output_shape(workload: Workload, task: str) -> tuple[int, ...]:
    if isinstance(workload, ConvLSTMWorkload):
        return workload.batch, workload.steps, workload.hidden, workload.size, workload.size
    if isinstance(workload, AttentionDecoderWorkload):
        return workload.output_shape(task)
    last = workload.keys if task.startswith("scores") else workload.value_dim
    return workload.batch, workload.queries, last


# ---------------------------------------------------------------------------------------------------------- baselines


def plain_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.tanh(q[:, :, None] + k[:, None]) @ v


def plain_attention(q: Tensor, k: Tensor, value: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return masked_softmax(plain_scores(q, k, v), mask) @ value


def fusible_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A sum instead of a product with v: slower eager, but the form that torch.compile fuses into one loop."""
    return (torch.tanh(q[:, :, None] + k[:, None]) * v).sum(-1)


def fusible_attention(q: Tensor, k: Tensor, value: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return masked_softmax(fusible_scores(q, k, v), mask) @ value


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(scores if mask is None else scores.masked_fill(~mask[:, None], -torch.inf), -1)


# ----------------------------------------------------------------------------------------------------------- accuracy

SCALES = (0.1, 1.0, 10.0, 100.0, 1000.0)


def score_error(variant: str, scale: float) -> float:
    """Largest error of a score in float32, relative to Σ|v|, with q and k normal numbers of that scale."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 30, 128) * scale, torch.randn(2, 40, 128) * scale, torch.randn(128)
    function = plain_scores if variant == "eager" else partial(HF.additive_scores, backend=variant)
    got = function(*(t.to(DEVICE) for t in (q, k, v))).cpu()
    want = plain_scores(q.double(), k.double(), v.double())
    return ((got - want).abs().max() / v.double().abs().sum()).item()
