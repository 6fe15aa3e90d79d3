"""Train the documents' systems on their data, and say what each reached, and how fast, plain against fused.

Without a name: all of them whose data are here, some minutes each. Scores go to benchmarks/results/systems. The exit
status is 1 if one of them misses what it must reach.
"""

from __future__ import annotations

import argparse
import importlib
import sys
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
    sys.path.insert(0, str(checkout.ROOT))
    from examples.systems import SYSTEMS

    unknown = [name for name in args.names if name not in SYSTEMS]
    if unknown:
        sys.exit(f"no system is called {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    if args.list:
        width = 2 + max(map(len, SYSTEMS))
        for name, description in SYSTEMS.items():
            print(f"{name:{width}}{description}")
        return 0
    for package in ("rich", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"the systems need {package}: pip install {package}, or hybridops[systems] for all")
    from examples.systems import table

    args.out.mkdir(parents=True, exist_ok=True)
    options = table.Options(smoke=args.smoke, out=args.out, seed=args.seed)
    all_rows: list[table.Row] = []
    all_speeds: list[table.Speed] = []
    left_out: list[str] = []
    for name in args.names or SYSTEMS:
        print(f"{name}: {SYSTEMS[name]}", flush=True)
        try:
            module = importlib.import_module(f"examples.systems.{name}")
            rows = None if args.speed else module.run(options)
            speeds = module.speed(options)
        except ModuleNotFoundError as error:
            if args.names:
                sys.exit(str(error))
            left_out.append(f"left out: {name}: {error}")
            continue
        if not args.smoke:
            table.save(name, rows, speeds)
        all_rows += rows or []
        all_speeds += speeds

    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    for title in (table.scores_table(all_rows) if all_rows else None), table.speeds_table(all_speeds):
        if title is not None:
            console.print(title)
    print(*left_out, sep="\n", end="\n" if left_out else "")
    return 0 if args.smoke or all(row.reached for row in all_rows) else 1
