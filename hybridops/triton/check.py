"""Compiles every kernel in every configuration of the tables, for sm_80, sm_90 and sm_100, on any machine.

    python -m hybridops.triton.check [--arch 90] [--only conv_lstm] [--jobs 2]

Prints the registers, shared memory and stack of each. Fails if one spills registers, which go to the stack, or needs
more shared memory than there is. What is compiled is what the ops launch: they run here on small tensors of each kind,
and each launch is recorded, not carried out.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hybridops.checks import ACTIVATIONS
from hybridops.contract import (
    Activation,
    AttentionInputs,
    ConvLSTMInputs,
    ConvLSTMStates,
    DecoderInputs,
    DecoderOptions,
    DecoderUpstreamGrads,
    Save,
    StateGradients,
)
from hybridops.formulas.attention_decoder import CELLS, GATES, QUERIES
from hybridops.triton import (
    additive_attention,
    attention_decoder,
    attention_decoder_kernels,
    attention_decoder_steps,
    conv_lstm,
)
from hybridops.triton.launch import Config, options

# Bytes of shared memory that a block may have, by compute capability (CUDA C++ Programming Guide, technical
# specifications: 163 KB for 8.0, 227 KB for 9.0 and 10.0).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
POINTERS = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.bool: "*i1",
}  # fmt: skip
FAMILIES = {
    "conv_lstm": conv_lstm, "additive_attention": additive_attention, "attention_decoder": attention_decoder_steps,
}  # fmt: skip
# Of queries, keys and channels: strides and sizes that are multiples of a vector, and that are not.
SIZES = {"even": 64, "odd": 63}


DECODER_KERNELS = [name for name in vars(attention_decoder_kernels) if name.endswith("_kernel")]


class Launch(NamedTuple):
    """A kernel as one launch specialises it. It can be sent to another process."""

    module: str
    kernel: str
    case: str
    signature: tuple[tuple[str, Any], ...]
    # Where in the arguments: its index and, of an element of a tuple, that within it.
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    aligned: tuple[tuple[int, ...], ...]  # what is a multiple of 16
    config: Config

    @property
    def name(self) -> str:
        blocks = "×".join(map(str, self.config.blocks.values()))
        return f"{self.kernel}, {self.case}, {blocks}, {self.config.num_warps} warps, {self.config.num_stages} stages"


class Usage(NamedTuple):
    registers: int
    stack: int
    shared: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, choices=SHARED_MEMORY, nargs="+", default=list(SHARED_MEMORY))
    parser.add_argument("--only", default="", help="modules, kernels and cases whose name has this in it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    named = ((f"{launch.module}, {launch.name}", launch) for launch in all_launches())
    launches = {repr(launch): launch for name, launch in named if args.only in name}.values()  # each once
    if not launches:
        parser.error(f"no module, kernel or case has {args.only!r} in its name")
    wanted = [(launch, arch) for launch in launches for arch in args.arch]
    failed = 0
    print(f"Triton {triton.__version__}\n{'registers':>9} {'shared':>7} {'stack':>6}")
    with ProcessPoolExecutor(args.jobs) as pool:
        for (launch, arch), usage in zip(wanted, pool.map(compiled, *zip(*wanted, strict=True)), strict=True):
            fits = usage.stack == 0 and usage.shared <= SHARED_MEMORY[arch]
            failed += not fits
            remark = "" if fits else "  SPILLS" if usage.stack else "  TOO MUCH SHARED MEMORY"
            print(f"{usage.registers:9} {usage.shared:7} {usage.stack:6}  sm_{arch} {launch.name}{remark}", flush=True)
    print(f"{failed} of {len(wanted)} do not fit" if failed else f"all {len(wanted)} fit")
    return 1 if failed else 0


def compiled(launch: Launch, arch: int) -> Usage:
    source = ASTSource(
        fn=getattr(FAMILIES[launch.module], launch.kernel),
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={path: [["tt.divisibility", 16]] for path in launch.aligned},
    )
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options(launch.config))
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(result.asm["cubin"])
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.findall(rf"{word}:(\d+)", said)[0]) for word in ("REG", "STACK"))
    return Usage(registers, stack, result.metadata.shared)


# ----------------------------------------------------------------------------------------------- what is launched


def all_launches() -> Iterator[Launch]:
    yield from conv_lstm_launches()
    yield from additive_attention_launches()
    yield from attention_decoder_launches()


def conv_lstm_launches() -> Iterator[Launch]:
    """With all arguments, and channels that are multiples of a vector and that are not; with the fewest arguments; and
    with the input convolved ahead. The last happens only with the smallest blocks: larger ones are taken where there
    are enough programs."""
    dtypes = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "float64": torch.float64}
    for kind, dtype in dtypes.items():
        torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
        for table, run in ((conv_lstm.FORWARD, run_conv_lstm_forward), (conv_lstm.BACKWARD, run_conv_lstm_backward)):
            for config in table[kind]:
                last = config is table[kind][-1]
                conv_lstm._config = lambda *_, config=config: config
                cases = {"even": (64, 64), "odd": (3, 17 if last else 3 * config.blocks["BLOCK_N"])}
                if last and table is conv_lstm.FORWARD:
                    cases |= {f"{case}, input ahead": sizes for case, sizes in cases.items()}
                if config is table[kind][0]:
                    cases["least"] = (64, 64)
                for case, sizes in cases.items():
                    conv_lstm._hoists = lambda *_, case=case: case.endswith("ahead")
                    yield from recorded("conv_lstm", f"{kind}, {case}", run, dtype, *sizes, case == "least")


def run_conv_lstm_forward(dtype: torch.dtype, channels: int, hidden: int, least: bool) -> None:
    acc = torch.promote_types(dtype, torch.float32)
    x, state = torch.zeros(2, 2, 8, 16, channels, dtype=dtype), torch.zeros(2, 8, 16, hidden)
    w_ih, w_hh = (torch.zeros(4 * hidden, size, 3, 3, dtype=dtype) for size in (channels, hidden))
    bias, peephole = torch.zeros(4 * hidden, dtype=dtype), torch.zeros(3, 8, 16, hidden)
    inputs = ConvLSTMInputs(x, state.to(dtype), state.to(acc), w_ih, w_hh, bias, peephole)
    if least:
        inputs = ConvLSTMInputs(x, None, None, w_ih, w_hh, None, None)
    conv_lstm.conv_lstm_forward(inputs, Save.NOTHING if least else Save.GATES)


def run_conv_lstm_backward(dtype: torch.dtype, channels: int, hidden: int, least: bool) -> None:
    acc = torch.promote_types(dtype, torch.float32)
    x, h, c, gates = (
        torch.zeros(2, 2, 8, 16, size, dtype=t)
        for size, t in ((1, dtype), (hidden, dtype), (hidden, acc), (4 * hidden, dtype))
    )
    w_ih, w_hh = (torch.zeros(4 * hidden, size, 3, 3, dtype=dtype) for size in (1, hidden))
    peephole = torch.zeros(3, 8, 16, hidden)
    grads, inputs = StateGradients(h, h[0], c[0]), ConvLSTMInputs(x, h[0], c[0], w_ih, w_hh, None, peephole)
    if least:
        grads, inputs = StateGradients(h, None, None), ConvLSTMInputs(x, None, None, w_ih, w_hh, None, None)
    conv_lstm.conv_lstm_backward(grads, inputs, ConvLSTMStates(h, c, gates), not least)


def additive_attention_launches() -> Iterator[Launch]:
    """For relu and leaky_relu only the largest blocks: without exponentials, a kernel is smaller."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    for dtype, activation in product((torch.bfloat16, torch.float32, torch.float64), ACTIVATIONS):
        if activation != "tanh" and dtype != torch.float32:
            continue
        name = f"{str(dtype).removeprefix('torch.')}, {activation}"
        blocks = additive_attention.SCORES if activation == "tanh" else ("many pairs",)
        yield from attention_launches(name, dtype, activation, blocks)
        for enough, (case, size) in product((0, 1 << 30), SIZES.items()):
            additive_attention.MIN_PROGRAMS_LARGE = enough
            yield from recorded("additive_attention", f"{name}, {case}", run_gradients, dtype, activation, size)
    # sizes of one are constants
    yield from recorded("additive_attention", "one of everything", run_attention, torch.float32, "tanh", 1, 1)
    yield from recorded("additive_attention", "one of everything", run_gradients, torch.float32, "tanh", 1)
    # ... and tf32 is for what multiplies matrices
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    for launch in attention_launches("tf32, tanh", torch.float32, "tanh", additive_attention.SCORES):
        if launch.kernel == "attention_kernel":
            yield launch


def attention_launches(name: str, dtype: torch.dtype, activation: str, blocks: Iterable[str]) -> Iterator[Launch]:
    """With and without splits of the keys."""
    for config, (case, size) in product(blocks, SIZES.items()):
        additive_attention._scores_config = lambda table, *_, config=config: table[config]
        widest = additive_attention.MAX_VALUE_CHANNELS - 64 + size
        for splits, values in ((1, size), (additive_attention.MAX_SPLITS, widest)):
            additive_attention._splits = lambda *_, splits=splits: splits
            yield from recorded("additive_attention", f"{name}, {case}", run_attention, dtype, activation, values, size)


def run_attention(dtype: torch.dtype, activation: str, values: int, size: int) -> None:
    q, k, v, mask, bias = attention_inputs(dtype, size)
    value = torch.zeros(*k.shape[:2], values, dtype=dtype)
    act = Activation(activation, 0.01)
    additive_attention.additive_attention_forward(AttentionInputs(q, k, v, value, mask, bias), act, 1.0)
    additive_attention.additive_scores_forward(q, k, v, act)


def run_gradients(dtype: torch.dtype, activation: str, size: int) -> None:
    q, k, v, _, bias = attention_inputs(dtype, size)
    additive_attention.additive_scores_backward(bias, q, k, v, Activation(activation, 0.01))


def attention_inputs(dtype: torch.dtype, size: int) -> tuple[Tensor, ...]:
    """Batch, queries, keys and channels are all of that size."""
    q, k, v = (torch.zeros(*shape, dtype=dtype) for shape in ((size, size, size), (size, size, size), (size,)))
    mask = torch.ones(size, size, size, dtype=torch.bool)
    return q, k, v, mask, torch.zeros(mask.shape, dtype=torch.promote_types(dtype, torch.float32))


def attention_decoder_launches() -> Iterator[Launch]:
    """What the additive family does not launch too: with all arguments, with the fewest, and with sizes of one."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    everything = list(product((torch.bfloat16, torch.float32, torch.float64), ("tanh",), SIZES.items(), (False, True)))
    everything += [(torch.float32, activation, item, False) for activation in ACTIVATIONS[1:] for item in SIZES.items()]
    everything += [(torch.float32, "tanh", ("one of everything", 1), least) for least in (False, True)]
    for (dtype, activation, (case, size), least), cell in product(everything, CELLS):
        name = f"{str(dtype).removeprefix('torch.')}, {activation}, {case}{', least' if least else ''}"
        for launch in recorded("attention_decoder", name, run_decoder, dtype, activation, size, cell, least):
            of_activation = launch.kernel == "gradients_kernel"
            if of_activation or (launch.kernel in DECODER_KERNELS and activation == "tanh"):
                yield launch


def run_decoder(dtype: torch.dtype, activation: str, size: int, cell: str, least: bool) -> None:
    """All sizes are `size`, but for two steps."""
    acc, steps = torch.promote_types(dtype, torch.float32), min(size, 2)

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    gates, pairs = GATES[cell] * size, (size, steps, size)
    state, square, row = zeros(size, size), zeros(size, size), zeros(size)
    inputs = DecoderInputs(
        x_gates=zeros(size, steps, gates), key=zeros(size, size, size), value=zeros(size, size, size), v=row, h0=state,
        cell0=state.to(acc) if cell == "lstm" else None, context0=None, w_q=square, b_q=None, w_c=zeros(gates, size),
        w_h=zeros(gates, size), b_h=None, w_beta=None if least else square, b_beta=None,
        mask=None if least else square > 0, score_bias=None if least else zeros(*pairs, dtype=acc),
        keep=None if least else zeros(*pairs), lengths=None if least else torch.zeros(size, dtype=torch.int64),
    )  # fmt: skip
    options = DecoderOptions(Activation(activation, 0.01), 1.0, cell, QUERIES[least])
    states = attention_decoder.attention_decoder_forward(inputs, options, not least)
    if least:  # its backward is that of what is saved
        states = attention_decoder.attention_decoder_forward(inputs, options, True)
    grads = DecoderUpstreamGrads(*(None if least else zeros(*pairs) for _ in DecoderUpstreamGrads._fields))
    grads = grads._replace(h_n=None, cell_n=None)
    attention_decoder.attention_decoder_backward(grads, inputs, options, states)


def recorded(module: str, case: str, run: Callable[..., None], *arguments: Any) -> list[Launch]:
    """What `run` would launch. Nothing is launched, so results stay uninitialised."""
    launches: list[Launch] = []

    def note(kernel: Any, grid: tuple[int, ...], config: Config, *values: Any, **constants: Any) -> None:
        launches.append(specialised(module, case, kernel, config, values, constants))

    for family in FAMILIES.values():
        setattr(family, "launch", note)  # noqa: B010
    run(*arguments)
    return launches


def specialised(
    module: str, case: str, kernel: Any, config: Config, values: tuple[Any, ...], constants: dict[str, Any]
) -> Launch:
    """As Triton's own launcher does it: None and 1 become constants, and multiples of 16 are marked."""
    named = constants | config.blocks
    fixed: dict[tuple[int, ...], Any] = {(kernel.arg_names.index(name),): value for name, value in named.items()}
    aligned: list[tuple[int, ...]] = []

    def kind(value: Any, path: tuple[int, ...]) -> Any:
        if path in fixed:
            return "constexpr"
        if isinstance(value, tuple):
            kinds = [kind(element, (*path, index)) for index, element in enumerate(value)]
            return type(value)(*kinds) if hasattr(value, "_fields") else tuple(kinds)
        if value is None or (not isinstance(value, Tensor) and value == 1):
            fixed[path] = value
            return "constexpr"
        if isinstance(value, Tensor) or value % 16 == 0:
            aligned.append(path)
        return POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"

    arguments = zip(kernel.arg_names, (*values, *named), strict=True)
    signature = tuple((name, kind(value, (index,))) for index, (name, value) in enumerate(arguments))
    return Launch(module, kernel.__name__, case, signature, tuple(fixed.items()), tuple(aligned), config)


if __name__ == "__main__":
    sys.exit(main())
