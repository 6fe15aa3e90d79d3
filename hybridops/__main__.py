"""python -m hybridops info | demo | systems | bench | check: each command is a module in hybridops/cli."""

from __future__ import annotations

import argparse
import sys

from hybridops import __version__
from hybridops.cli import bench, check, demo, info, systems


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hybridops", description="Fused ConvLSTM and additive attention.")
    parser.add_argument("--version", action="version", version=f"hybridops {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for module in (info, demo, systems, bench, check):
        name = module.__name__.rsplit(".", 1)[-1]
        summary, _, rest = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(name, help=summary, description=summary + rest)
        module.add_arguments(command)
        command.set_defaults(run=module.run)

    args, others = parser.parse_known_args()
    if others and args.run is not bench.run:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    status: int = args.run(args, others) if others else args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
