"""Train the documents' systems on their data, and say what each reached, and how fast, plain against fused.

Without a name: all of them whose data are here, some minutes each. Scores go to benchmarks/results/systems. The exit
status is 1 if one of them misses what it must reach.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hybridops.cli import checkout

NEEDS = "examples/systems/__init__.py"  # what a wheel does not bring


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all; see --list)")
    parser.add_argument("--list", action="store_true", help="only say which there are")
    parser.add_argument("--smoke", action="store_true", help="seconds on a little data: shows that all of it runs")
    parser.add_argument("--speed", action="store_true", help="only time the steps, train nothing")
    parser.add_argument("--out", type=Path, default=Path("systems_output"), help="where pictures go (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    checkout.need(NEEDS)
    there_are = described()
    names = known(args.names, there_are)
    if args.list:
        print_list(there_are)
        return 0
    return train(names, smoke=args.smoke, speed=args.speed, out=args.out, seed=args.seed)


def described() -> dict[str, str]:
    """Every system's name, and what it is."""
    sys.path.insert(0, str(checkout.ROOT))
    from examples.systems import SYSTEMS

    return SYSTEMS


def known(names: Sequence[str], there_are: Mapping[str, str]) -> list[str]:
    """The names, if all of them are among those that there are."""
    unknown = [name for name in names if name not in there_are]
    if unknown:
        sys.exit(f"nothing is called {', '.join(unknown)}; there are {', '.join(there_are)}")
    return list(names)


def print_list(there_are: Mapping[str, str]) -> None:
    width = 2 + max(map(len, there_are))
    for name, description in there_are.items():
        print(f"{name:{width}}{description}")


def train(names: Sequence[str], *, smoke: bool = False, speed: bool = False, out: Path, seed: int) -> int:
    """Those named, or all whose data are here; gives the exit status."""
    from examples.systems import SYSTEMS

    for package in ("rich", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"the systems need {package}: pip install {package}, or hybridops[systems] for all")
    from examples.systems import table

    out.mkdir(parents=True, exist_ok=True)
    options = table.Options(smoke=smoke, out=out, seed=seed)
    all_rows: list[table.Row] = []
    all_speeds: list[table.Speed] = []
    left_out: list[str] = []
    for name in names or SYSTEMS:
        print(f"{name}: {SYSTEMS[name]}", flush=True)
        try:
            module = importlib.import_module(f"examples.systems.{name}")
            rows = None if speed else module.run(options)
            speeds = module.speed(options)
        except ModuleNotFoundError as error:
            if names:
                sys.exit(str(error))
            left_out.append(f"left out: {name}: {error}")
            continue
        if not smoke:
            table.save(name, rows, speeds)
        all_rows += rows or []
        all_speeds += speeds

    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    for title in (table.scores_table(all_rows) if all_rows else None), table.speeds_table(all_speeds):
        if title is not None:
            console.print(title)
    print(*left_out, sep="\n", end="\n" if left_out else "")
    return 0 if smoke or all(row.reached for row in all_rows) else 1
