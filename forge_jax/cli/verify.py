"""`forge-jax verify`: the same checkpoint in transformers, in float32, and how far the two are apart."""

import argparse
from pathlib import Path

from forge_jax.cli import options

TOLERANCE = 1e-4  # of the largest logit: sums of float32 in another order stay a hundred times below
PROMPT = "The capital of France is"


def add(commands: options.Commands) -> None:
    """Describe the command."""
    parser = options.command(
        commands,
        "verify",
        run,
        "compare logits and greedy ids with transformers (needs torch)",
        "forge-jax verify org/name --tokens 32",
    )
    parser.add_argument("name", metavar="MODEL", help="a directory, a file or a hub id")
    parser.add_argument("--prompt", default=PROMPT, help=f"the text to go on with ({PROMPT!r})")
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="tokens that both make (16)")
    parser.add_argument(
        "--reference", metavar="DIR", help="a HuggingFace directory of the same model; needed for a GGUF"
    )
    options.add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Print how far the two are apart; 1 if that is too far."""
    import importlib.util

    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"verify needs {' and '.join(missing)}: pip install 'transformers>=5' torch")
    if args.tokens < 1:
        raise ValueError(f"--tokens {args.tokens}; at least 1 is needed")

    from forge_jax.cli.verifying import compare
    from forge_jax.hub import resolve

    path = resolve(args.name, revision=args.revision, subfolder=args.subfolder, file=args.file)
    model = options.load(args, args.name, "float32")
    result = compare(model, reference_of(path, args.reference), args.prompt, args.tokens)
    print(result)
    good = result.relative <= TOLERANCE and result.same_ids
    print(f"{'the same' if good else 'DIFFERENT'}: {result.relative:.1e} of the largest logit, limit {TOLERANCE:.0e}")
    return 0 if good else 1


def reference_of(path: Path, given: str | None) -> Path:
    """The directory that transformers reads.

    Raises:
        ValueError: the checkpoint is a file that transformers has no sound way to read.
    """
    if given is not None:
        return Path(given)
    if path.is_dir() and not any(path.glob("*.gguf")):
        return path
    if path.name in ("model.safetensors", "pytorch_model.bin"):
        return path.parent
    raise ValueError(
        f"{path}: transformers would have to read this file itself, and where it reads GGUF it decodes, renames and "
        "guesses on its own, so that it proves nothing; give the model's HuggingFace directory as --reference DIR"
    )
