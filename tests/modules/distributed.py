"""What test_distributed.py runs in each process: half a batch, and the gradients that one process has of all of it."""

from __future__ import annotations

import copy
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from tests import tolerances
from tests.modules.agreement import examples, pair, randn

SIZES = {
    "ConvLSTMCell": [(4, 3, 5, 6)],
    "ConvLSTM": [(4, 5, 3, 5, 6)],
    "ConcatAttention": [(4, 16), (4, 5, 16)],
    "AttentionDecoder": [(4, 6, 3), (4, 5, 12)],
    "AdditiveAttention": [(4, 3, 10), (4, 5, 12)],
}


def gradients(module: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Of a mean over the batch, which is what averaging over processes presumes."""
    sum(out.square().mean() for out in tree_leaves(module(*inputs)) if out is not None).backward()
    return {
        name.removeprefix("module."): p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        for name, p in module.named_parameters()
    }


def main() -> None:
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    for kind, (arguments, _) in examples().items():
        _, module = pair(kind, **arguments)
        replicated, sharded = (
            DistributedDataParallel(copy.deepcopy(module)),
            fully_shard(copy.deepcopy(module), mesh=mesh),
        )
        inputs = [randn(*shape) for shape in SIZES[kind]]
        want = gradients(module, inputs)
        for parallel in (replicated, sharded):
            got = gradients(parallel, [t.chunk(count)[rank] for t in inputs])
            torch.testing.assert_close(got, want, **tolerances.FLOAT64)
            if rank == 0:  # an error in the others ends torchrun with one
                print(kind, type(parallel).__name__)
    dist.barrier()
    dist.destroy_process_group()
    # FSDP2's caches keep gloo's threads alive, and one that drops a tensor while the interpreter ends aborts the
    # process (github.com/pytorch/pytorch/issues/190489). All is checked by now: end without finalizing.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
