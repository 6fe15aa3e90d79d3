"""Two processes, through torchrun: replicas (DDP) and shards (FSDP2) have the gradients of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.modules.agreement import examples
from tests.processes import run_python

pytestmark = pytest.mark.slow

RUN = """
import runpy, sys
sys.argv = ["torchrun", "--standalone", "--nproc-per-node", "2", {script!r}]
runpy.run_module("torch.distributed.run", run_name="__main__")
"""


def test_gradients():
    ran = run_python(RUN.format(script=str(Path(__file__).with_name("distributed.py"))), OMP_NUM_THREADS="1")
    ways = ("DistributedDataParallel", "FSDPFused{}")
    assert ran.splitlines() == [f"{kind} {way.format(kind)}" for kind in examples() for way in ways]
