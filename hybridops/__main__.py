"""python -m hybridops info | demo | systems | bench | check: each command is a module in hybridops/cli."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hybridops import __version__
from hybridops.cli import bench, check, checkout, demo, info, systems


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hybridops", description="Fused ConvLSTM and additive attention.")
    parser.add_argument("--version", action="version", version=f"hybridops {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for module in (info, demo, systems, bench, check):
        name = module.__name__.rsplit(".", 1)[-1]
        summary, _, rest = (module.__doc__ or "").partition("\n")
        # a command that needs a checkout is not offered elsewhere; called by its name it says what is missing
        offered: dict[str, Any] = {"help": summary} if checkout.has(getattr(module, "NEEDS", "")) else {}
        command = commands.add_parser(name, description=summary + rest, **offered)
        module.add_arguments(command)
        command.set_defaults(run=module.run)

    args, others = parser.parse_known_args()
    if others and args.run is not bench.run:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    status: int = args.run(args, others) if others else args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
