"""`forge-jax quantize`: a checkpoint of any format, written with its weights in fewer bits.

A target that ends in .gguf is one of llama.cpp's mixes, such as Q4_K_M; any other is a HuggingFace directory whose
matrices are packed in a scheme of `forge_jax.quantization.packers`, in the format that holds it.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from forge_jax.cli import options

if TYPE_CHECKING:
    import numpy as np

    from forge_jax.loading import Model

DTYPES = ("stored", "float32", "bfloat16", "float16")


def add(commands: options.Commands) -> None:
    """Describe the command."""
    parser = options.command(
        commands,
        "quantize",
        run,
        "write a checkpoint in fewer bits",
        "forge-jax quantize org/name model.gguf --scheme Q4_K_M\n"
        "  forge-jax quantize org/name my-model --scheme int4-g128 --policy 'layers.*.mlp.down=int8'",
    )
    parser.add_argument("source", metavar="SOURCE", help="a directory, a file or a hub id")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the .gguf file, or the directory, to write")
    parser.add_argument("--scheme", required=True, help="Q4_K_M, Q8_0, ... of a .gguf; int4-g128, nf4, fp8, mxfp4, ...")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="PATTERN=SCHEME",
        help="another scheme, or none, for what a pattern of paths matches; repeatable, the first that matches decides",
    )
    parser.add_argument("--fallback", metavar="SCHEME", help="for rows that are no whole number of a scheme's blocks")
    parser.add_argument("--importance", metavar="FILE", type=Path, help="llama.cpp's imatrix of the model, for a .gguf")
    parser.add_argument("--requantize", action="store_true", help="take weights that are packed as what they decode to")
    parser.add_argument("--dtype", choices=DTYPES, help="of what stays as it is, not for a .gguf (stored)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at TARGET")
    options.add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Load, pack, write, and say what was written."""
    policy = check(args)
    options.check_target(args)
    importance = read_importance(args)
    model = options.load(args, args.source, args.dtype or "stored")
    if args.target.suffix == ".gguf":
        write_file(model, args, importance)
    else:
        write_directory(model, args, policy)
    options.show_files(args.target)
    return 0


def check(args: argparse.Namespace) -> dict[str, str | None]:
    """Find what the target cannot hold before a large file is read; gives the policy.

    Raises:
        ValueError: a scheme that the target does not have, or an option that it does not take.
    """
    if args.target.suffix == ".gguf":
        from converters.gguf import mixes

        given = {"--policy": args.policy, "--fallback": args.fallback, "--dtype": args.dtype}
        if wrong := [option for option, value in given.items() if value]:
            raise ValueError(f"{wrong[0]} does not apply to a .gguf: llama.cpp's mixes say what is stored as what")
        mixes.find(args.scheme)
        return {}

    from forge_jax.quantization import packer
    from forge_jax.quantization.ggml import Ggml

    policy = read_policy(args.policy)
    if args.importance is not None:
        raise ValueError("--importance does not apply to a directory; it is for a .gguf")
    for name in (args.scheme, args.fallback, *policy.values()):
        scheme = None if name is None else packer(name).scheme
        if isinstance(scheme, Ggml):
            raise ValueError(f"{args.target}: {name} is a type of GGUF files; name a target that ends in .gguf")
        if scheme is not None and scheme.rounds:
            raise ValueError(f"{args.target}: no file keeps that inputs are rounded; write int8, and load and quantise")
    return policy


def read_policy(words: list[str]) -> dict[str, str | None]:
    """Patterns and schemes from "PATTERN=SCHEME".

    Raises:
        ValueError: a word without a pattern or a scheme.
    """
    policy: dict[str, str | None] = {}
    for word in words:
        pattern, _, scheme = word.partition("=")
        if not pattern or not scheme:
            raise ValueError(
                f"--policy {word!r}: expected PATTERN=SCHEME, such as 'layers.*.mlp.down=int8' or 'head=none'"
            )
        policy[pattern] = None if scheme == "none" else scheme
    return policy


def read_importance(args: argparse.Namespace) -> "Mapping[str, np.ndarray] | None":
    """The importance matrix that was given."""
    from converters.gguf.imatrix import read_imatrix

    return None if args.importance is None else read_imatrix(args.importance)


def write_file(model: "Model", args: argparse.Namespace, importance: "Mapping[str, np.ndarray] | None") -> None:
    """Write a GGUF.

    Raises:
        ValueError: weights are packed already, and --requantize was not given.
    """
    from forge_jax import exporting
    from forge_jax.params import flatten
    from forge_jax.tensor import QTensor

    packed = [f"{path} as {leaf.scheme.name}" for path, leaf in flatten(model.params) if isinstance(leaf, QTensor)]
    if packed and not args.requantize:
        raise ValueError(
            f"{args.source}: {len(packed)} weights are packed already, for example {packed[0]}; errors would add up. "
            "Add --requantize to pack what they decode to"
        )
    exporting.export_gguf(model, args.target, type=args.scheme, importance=importance)


def write_directory(model: "Model", args: argparse.Namespace, policy: Mapping[str, str | None]) -> None:
    """Write a directory of packed weights; the embedding and an untied head stay as they are, unless told."""
    from forge_jax.exporting_packed import export_packed
    from forge_jax.quantizing import quantize

    packed = quantize(
        model, args.scheme, policy=policy, outside=None, fallback=args.fallback, requantize=args.requantize
    )
    export_packed(packed, args.target, overwrite=args.overwrite)
