"""`forge-jax doctor`: what this installation is and what the machine can do, for a bug report or a slow run."""

import argparse
import json

from forge_jax.cli import options


def add(commands: options.Commands) -> None:
    """Describe the command."""
    parser = options.command(
        commands,
        "doctor",
        run,
        "show the machine and its measured limits, the versions, what is installed, and where things are kept",
        "forge-jax doctor --json > machine.json",
    )
    parser.add_argument("--no-measure", dest="measure", action="store_false", help="leave out the limits (seconds)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Print what there is."""
    from forge_jax.checkup import checkup, report

    facts = checkup(measure=args.measure)
    print(json.dumps(facts, indent=2) if args.json else report(facts))
    return 0
