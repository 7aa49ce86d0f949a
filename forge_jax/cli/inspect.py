"""`forge-jax inspect`: what a checkpoint is, from its headers."""

import argparse
import json

from forge_jax.cli import options


def add(commands: options.Commands) -> None:
    """Describe the command."""
    parser = options.command(
        commands,
        "inspect",
        run,
        "show what a checkpoint is, and the memory it takes, without reading or downloading its weights",
        "forge-jax inspect org/name --context 8192 --batch 4 --dtype bfloat16",
    )
    parser.add_argument("name", metavar="MODEL", help="a directory, a file or a hub id")
    parser.add_argument("--context", type=int, metavar="N", help="tokens a row to count memory for (all that it can)")
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="rows to count memory for (1)")
    parser.add_argument("--dtype", choices=options.DTYPES, default="auto", help="of the weights once loaded")
    parser.add_argument("--cache", metavar="CODEC", help=options.CACHE_HELP)
    parser.add_argument("--json", action="store_true", help="as JSON")
    options.add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    from forge_jax.inspection import inspect

    facts = inspect(
        args.name,
        context=args.context,
        batch=args.batch,
        dtype=args.dtype,
        cache_dtype=args.cache,
        revision=args.revision,
        subfolder=args.subfolder,
        file=args.file,
        allow=args.allow,
    )
    print(json.dumps(facts.to_dict(), indent=2, ensure_ascii=False) if args.json else facts)
    return 0
