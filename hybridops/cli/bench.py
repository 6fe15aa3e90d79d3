"""The benchmarks of the repository, run by pytest-benchmark; other arguments go to pytest."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence

from hybridops.cli import checkout

NEEDS = "benchmarks/conftest.py"  # what a wheel does not bring


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--smoke", action="store_true", help="one tiny round of everything: does it run?")


def run(args: argparse.Namespace, pytest_args: Sequence[str] = ()) -> int:
    checkout.need(NEEDS)
    for module, package in ("pytest", "pytest"), ("pytest_benchmark", "pytest-benchmark"):
        if importlib.util.find_spec(module) is None:
            sys.exit(f"the benchmarks need {package}: pip install {package}")
    command = [sys.executable, "-m", "pytest", "benchmarks", *pytest_args]
    smoke = {"HYBRIDOPS_BENCH_SMOKE": "1"} if args.smoke else {}
    return subprocess.run(command, cwd=checkout.ROOT, env=os.environ | smoke, check=False).returncode
