"""`forge-jax generate`: complete a text. The text goes to stdout as it is made, everything else to stderr."""

import argparse
import sys
from pathlib import Path
from typing import Any

from forge_jax.cli import options


def add(commands: options.Commands) -> None:
    """Describe the command."""
    parser = options.command(
        commands,
        "generate",
        run,
        "complete a text",
        'forge-jax generate "The capital of France is" --max-new-tokens 20\n'
        "  git diff | forge-jax generate --chat --system 'Summarise the change.' -m org/name",
    )
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="the text; or pipe it in; or --prompt-file")
    options.add_model(parser)
    options.add_settings(parser)
    options.add_drafts(parser)
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="take the prompt from a file (UTF-8)")
    parser.add_argument("--n", type=int, default=1, help="so many texts for the prompt (with a temperature)")
    options.add_cache(parser)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--chat", action="store_true", help="the prompt is a message: use the model's chat template")
    kind.add_argument("--raw", dest="chat", action="store_false", help="the prompt is a text to go on with (default)")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system message")
    options.add_constraint(parser)
    parser.add_argument("--no-stats", dest="stats", action="store_false", help="no line about speed and memory")


def run(args: argparse.Namespace) -> int:
    """Load the model and print what it makes of the prompt."""
    prompt = read_prompt(args)
    sampling = options.sampling(options.settings_of(args))
    constraint = options.constraint(args)
    if args.n > 1 and not args.temperature:
        raise ValueError(f"--n {args.n} at temperature 0 gives the same text {args.n} times; add --temperature 0.7")
    if args.system is not None and not args.chat:
        raise ValueError("--system is a message of a chat; add --chat")
    turns: Any = prompt
    if args.chat:
        system = [] if args.system is None else [{"role": "system", "content": args.system}]
        turns = [*system, {"role": "user", "content": prompt}]
    model = options.load(args, args.model, args.dtype)

    from forge_jax import text
    from forge_jax.cli.streaming import Watch

    given = {"max_new_tokens": args.max_new_tokens, "sampling": sampling, "stop": args.stop, "seed": args.seed}
    given |= options.cache(args)
    given["draft"] = options.drafter(args, model)
    given["constraint"] = constraint
    with Watch() as watch:
        if args.n == 1:
            stream = watch.begin(lambda: text.stream(model, turns, **given))
            for piece in stream:
                print(piece, end="", flush=True)
            print()
            line = watch.line(stream.stats)
        else:
            with watch.waiting():
                replies, stats = text.complete(model, [turns], n=args.n, **given)
            for i, reply in enumerate(replies, 1):
                print(f"--- {i} of {args.n}\n{reply.text}")
            line = watch.whole_line(stats)
    if args.stats:
        print(line, file=sys.stderr)
    return 0


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt from wherever it is; the newline that ends a file or a pipe is not part of it.

    Raises:
        ValueError: none, or from two places.
    """
    if args.prompt and args.prompt_file:
        raise ValueError("a prompt and --prompt-file; give one of them")
    if args.prompt:
        return " ".join(args.prompt)
    if args.prompt_file:
        return args.prompt_file.read_text(encoding="utf-8").removesuffix("\n")
    if sys.stdin.isatty():
        raise ValueError('no prompt; give one in quotes: forge-jax generate "The capital of France is"')
    return sys.stdin.read().removesuffix("\n")
