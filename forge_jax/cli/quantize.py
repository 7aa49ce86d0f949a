"""`forge-jax quantize`: a checkpoint of any format, written with its weights in fewer bits.

A target that ends in .gguf is one of llama.cpp's mixes, such as Q4_K_M; any other is a HuggingFace directory whose
matrices are packed in a scheme of `forge_jax.quantization.packers`, in the format that holds it. A text, or llama.cpp's
importance matrix, says what matters; GPTQ and AWQ round by a text.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from forge_jax.cli import options
from forge_jax.cli.convert import DTYPES, PACKED

if TYPE_CHECKING:
    import numpy as np

    from forge_jax.loading import Model
    from forge_jax.params import Tree
    from forge_jax.quantization.grid import Grid

METHODS = ("gptq", "awq")
SETTINGS = ("act_order", "static_groups", "damping", "samples", "length")
"""Options of `forge_jax.calibrate`, which has their usual values."""


def add(commands: options.Commands) -> None:
    """Describe the command."""
    parser = options.command(
        commands,
        "quantize",
        run,
        "write a checkpoint in fewer bits",
        "forge-jax quantize org/name model.gguf --scheme Q4_K_M\n"
        "  forge-jax quantize org/name my-model --scheme int4-g128 --policy 'layers.*.mlp.down=int8'\n"
        "  forge-jax quantize org/name my-model --scheme int4-g128 --method gptq --text calibration.txt",
    )
    parser.add_argument("source", metavar="SOURCE", help="a directory, a file or a hub id")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the .gguf file, or the directory, to write")
    parser.add_argument("--scheme", required=True, help="Q4_K_M, Q8_0, ... of a .gguf; int4-g128, nf4, fp8, mxfp4, ...")
    parser.add_argument("--to", choices=PACKED[1:], help="the format of a directory (one that holds the scheme)")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="PATTERN=SCHEME",
        help="another scheme, or none, for what a pattern of paths matches; repeatable, the first that matches decides",
    )
    parser.add_argument("--fallback", metavar="SCHEME", help="for rows that are no whole number of a scheme's blocks")
    parser.add_argument("--requantize", action="store_true", help="take weights that are packed as what they decode to")
    parser.add_argument("--dtype", choices=DTYPES, help="of what stays as it is, not for a .gguf (stored)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at TARGET")
    group = parser.add_argument_group("what matters")
    group.add_argument("--importance", metavar="FILE", type=Path, help="llama.cpp's imatrix of the model")
    group.add_argument(
        "--text", metavar="FILE", type=Path, help="a text (UTF-8): importance on it, or what --method rounds by"
    )
    group.add_argument("--method", choices=METHODS, help="how to round by --text, in a scheme of integers")
    group.add_argument("--act-order", action="store_true", help="of gptq: the largest inputs first")
    group.add_argument("--static-groups", action="store_true", help="of gptq: groups are of neighbouring inputs anyway")
    group.add_argument("--damping", type=float, metavar="N", help="of gptq: a part of the inputs' mean square (0.01)")
    group.add_argument("--samples", type=int, metavar="N", help="read at most so many windows of the text (128)")
    group.add_argument("--length", type=int, metavar="N", help="tokens of a window (512)")
    options.add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Load, pack, write, and say what was written."""
    policy = check(args)
    options.check_target(args)
    text = None if args.text is None else options.read_text(args.text)
    given = read_importance(args)
    model = options.load(args, args.source, "stored" if text is None else "float32")
    check_plain(model, args)
    if args.target.suffix == ".gguf":
        write_file(model, args, given, text)
    else:
        write_directory(model, args, policy, given, text)
    options.show_files(args.target)
    return 0


def check(args: argparse.Namespace) -> dict[str, str | None]:
    """Find what the target cannot hold before a large file is read; gives the policy.

    Raises:
        ValueError: a scheme that the target does not have, or an option that it does not take.
    """
    check_text(args)
    if args.target.suffix == ".gguf":
        from converters.gguf import mixes

        names = ("policy", "fallback", "dtype", "to")
        if wrong := [name for name in names if vars(args)[name]]:
            raise ValueError(f"--{wrong[0]} does not apply to a .gguf: llama.cpp's mixes say what is stored as what")
        if args.method is not None:
            raise ValueError(
                f"--method {args.method} does not apply to a .gguf, whose blocks are rounded by importance; leave it "
                "out, or name a directory"
            )
        mixes.find(args.scheme)
        return {}

    from forge_jax.quantization import packer
    from forge_jax.quantization.ggml import Ggml
    from forge_jax.quantization.schemes import Integers

    policy = read_policy(args.policy)
    schemes = [packer(name).scheme for name in (args.scheme, args.fallback, *policy.values()) if name is not None]
    for scheme in schemes:
        if isinstance(scheme, Ggml):
            raise ValueError(f"{args.target}: {scheme.name} is a type of GGUF files; name a target that ends in .gguf")
        if scheme.rounds:
            raise ValueError(f"{args.target}: no file keeps that inputs are rounded; write int8, and load and quantise")
    if args.method is not None:
        grid(args.scheme)
    elif (args.text or args.importance) and not any(isinstance(scheme, Integers) for scheme in schemes):
        raise ValueError(
            f"importance changes nothing in {args.scheme}, whose scales follow from the weights alone; leave out "
            f"{'--text' if args.text else '--importance'}, or choose integers, such as int4-g128"
        )
    return policy


def check_text(args: argparse.Namespace) -> None:
    """Raise ValueError for options about a text that do not go together."""
    said = {f"--{name.replace('_', '-')}": vars(args)[name] for name in SETTINGS}
    given = [option for option, value in said.items() if value not in (None, False)]
    if args.text is None and (args.method is not None or given):
        raise ValueError(f"{'--method' if args.method else given[0]} needs a text to round by; add --text FILE")
    if args.text is not None and args.importance is not None:
        raise ValueError("--importance and --text both say what matters; give one of them")
    if args.method is None:
        if wrong := [option for option in given if option not in ("--samples", "--length")]:
            raise ValueError(f"{wrong[0]} is an option of --method gptq")
    elif args.act_order and not args.static_groups and args.to not in (None, "gptq"):
        raise ValueError(f"--to {args.to} holds no inputs in another order than their groups; add --static-groups")
    elif wrong := [name for name in ("policy", "fallback") if vars(args)[name]]:
        raise ValueError(
            f"--{wrong[0]} does not apply to --method {args.method}, which rounds all matrices of the layers alike; "
            "leave out one of them"
        )


def grid(name: str) -> "Grid":
    """The numbers that GPTQ and AWQ round to for a scheme.

    Raises:
        ValueError: there is no such scheme, or they do not round to it.
    """
    from forge_jax.quantization import packer
    from forge_jax.quantization.grid import BITS, Grid
    from forge_jax.quantization.schemes import Integers

    scheme = packer(name).scheme
    if not isinstance(scheme, Integers) or scheme.bits not in BITS:
        raise ValueError(
            f"--method rounds to integers of {', '.join(map(str, BITS))} bits, such as int4-g128 or int4-g128-asym, "
            f"not to {name}"
        )
    return Grid(scheme.bits, scheme.group, not name.endswith("-asym"))


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


def check_plain(model: "Model", args: argparse.Namespace) -> None:
    """Raise ValueError if weights are packed already, and --requantize was not given."""
    from forge_jax.params import flatten
    from forge_jax.tensor import QTensor

    packed = [f"{path} as {leaf.scheme.name}" for path, leaf in flatten(model.params) if isinstance(leaf, QTensor)]
    if packed and not args.requantize:
        raise ValueError(
            f"{args.source}: {len(packed)} weights are packed already, for example {packed[0]}; errors would add up. "
            "Add --requantize to pack what they decode to"
        )


def write_file(
    model: "Model", args: argparse.Namespace, given: "Mapping[str, np.ndarray] | None", text: str | None
) -> None:
    """Write a GGUF."""
    from converters.gguf.imatrix import read_imatrix
    from forge_jax import exporting
    from forge_jax.calibrating import importance

    if text is not None:
        with TemporaryDirectory() as directory:
            file = Path(directory, "imatrix.gguf")
            importance(model, text, file=file, **settings(args))
            given = read_imatrix(file)
    exporting.export_gguf(model, args.target, type=args.scheme, importance=given)


def write_directory(
    model: "Model",
    args: argparse.Namespace,
    policy: Mapping[str, str | None],
    given: "Mapping[str, np.ndarray] | None",
    text: str | None,
) -> None:
    """Write a directory of packed weights; the embedding and an untied head stay as they are, unless told."""
    from converters.gguf.importance import by_path
    from forge_jax import calibrating
    from forge_jax.exporting_packed import export_packed
    from forge_jax.quantizing import quantize

    if text is not None and args.method is not None:
        to = grid(args.scheme)
        packed = calibrating.calibrate(
            model, text, args.method, bits=to.bits, group=to.group, symmetric=to.symmetric, **settings(args)
        )
    else:
        if text is not None:
            weights = calibrating.importance(model, text, **settings(args))
        else:
            weights = given and by_path(given, model.spec, str(model.config.get("model_type")))
        packed = quantize(
            model,
            args.scheme,
            policy=policy,
            outside=None,
            importance=weights,
            fallback=args.fallback,
            requantize=args.requantize,
        )
    packed = replace(packed, params=decoded(packed.params, model.params))
    export_packed(packed, args.target, method=args.to or "auto", dtype=args.dtype or "stored", overwrite=args.overwrite)


def decoded(params: "Tree", before: "Tree") -> "Tree":
    """The parameters, of which those that stayed as they were are plain: a directory holds no packed tables."""
    from forge_jax.params import flatten, unflatten
    from forge_jax.tensor import dense

    old = dict(flatten(before))
    return unflatten({path: dense(leaf) if leaf is old[path] else leaf for path, leaf in flatten(params)})


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `SETTINGS` that were given."""
    return {name: vars(args)[name] for name in SETTINGS if vars(args)[name] not in (None, False)}
