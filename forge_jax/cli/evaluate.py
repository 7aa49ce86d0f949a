"""`forge-jax evaluate`: the perplexity of models on a text, and how far they are from a reference."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from forge_jax.cli import options

if TYPE_CHECKING:
    from forge_jax.loading import Model


def add(commands: options.Commands) -> None:
    """Describe the command."""
    parser = options.command(
        commands,
        "evaluate",
        run,
        "measure perplexity on a text, and KL divergence from a reference",
        "forge-jax evaluate smollm2 --text wiki.txt\n"
        "  forge-jax evaluate q4.gguf q8.gguf --reference org/name --text wiki.txt --json figures.json",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a directory, a file or a hub id; a row each")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="the text (UTF-8)")
    parser.add_argument("--reference", metavar="MODEL", help="a model of the same vocabulary to compare with")
    parser.add_argument("--tokens", type=int, metavar="N", help="read only so many tokens of the text")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a window (512, or what the model can see)")
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="score every token, windows ending N tokens apart; default: the second half of each window, as llama.cpp",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="windows that are computed together (1)")
    parser.add_argument("--cache", metavar="CODEC", help=options.CACHE_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument(
        "--dtype", choices=options.DTYPES, default="auto", help="of the weights (auto: float32 on a CPU)"
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="KEY", help="a config key that may stay unread; repeatable"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate one model after the other and print the table."""
    text = options.read_text(args.text)

    from forge_jax.cli.streaming import Watch
    from forge_jax.evaluation import evaluate, table

    reference = None if args.reference is None else load(args, args.reference)
    results = []
    for name in args.models:
        model = load(args, name)
        with Watch() as watch:
            found = evaluate(
                model,
                text,
                reference=reference,
                context=args.context,
                stride=args.stride,
                batch=args.batch,
                tokens=args.tokens,
                cache_dtype=args.cache,
                progress=sys.stderr.isatty(),
            )
        del model  # the next one takes its place
        compared = None if found.comparison is None else replace(found.comparison, name=args.reference)
        results.append(replace(found, name=name, comparison=compared))
        read, seconds = found.windows * found.context, max(found.seconds - watch.compiling, 1e-9)
        print(f"{name}: {read / seconds:.0f} tok/s, and {watch.compiling:.1f} s of compiling", file=sys.stderr)
    print(table(results))
    if args.json:
        about = {"text": str(args.text), "dtype": args.dtype, "models": [result.to_dict() for result in results]}
        args.json.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return 0


def load(args: argparse.Namespace, name: str) -> "Model":
    """One of the models."""
    from forge_jax import loading

    return loading.load(name, dtype=args.dtype, allow=args.allow, progress=sys.stderr.isatty())
