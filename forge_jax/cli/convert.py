"""`forge-jax convert`: a checkpoint of any format that is read, written in any format that is written.

The weights are in memory once, as the checkpoint stores them; writers take them one at a time. What is packed is
decoded; the formats of PACKED take it as it is, if they hold it exactly.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from forge_jax.cli import options

if TYPE_CHECKING:
    from forge_jax.loading import Model

KINDS = ("huggingface", "safetensors", "gguf", "orbax", "onnx")
PACKED = ("packed", "awq", "bitsandbytes", "compressed-tensors", "fp8", "gptq", "mxfp4")
FILES = {".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx"}
DTYPES = ("stored", "float32", "bfloat16", "float16")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def add(commands: options.Commands) -> None:
    """Describe the command."""
    parser = options.command(
        commands,
        "convert",
        run,
        "write a checkpoint in another format",
        "forge-jax convert org/name model.gguf --type Q4_K_M\n"
        "  forge-jax convert model.gguf my-model --to huggingface --dtype bfloat16\n"
        "  forge-jax convert org/name-gptq my-model --to compressed-tensors",
    )
    parser.add_argument("source", metavar="SOURCE", help="a directory, a file or a hub id")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the file or directory to write")
    parser.add_argument(
        "--to", choices=(*KINDS, *PACKED), help="what to write (TARGET tells .gguf, .safetensors and .onnx)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights, not for GGUF (stored: as in the source)")
    parser.add_argument("--type", help="of the matrices of a GGUF, such as F16, Q8_0, Q4_K_M (as most of the source)")
    parser.add_argument("--importance", metavar="FILE", type=Path, help="llama.cpp's imatrix of the model, for --type")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of huggingface's files (5GB)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at TARGET")
    options.add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Load, write, and say what was written."""
    kind = args.to or FILES.get(args.target.suffix, "huggingface")
    check(args, kind)
    shard = read_size(args.max_shard_size or "5GB")
    model = options.load(args, args.source, "stored")
    write(model, kind, args, shard)
    options.show_files(args.target)
    beside = args.target.with_name(args.target.name + ".data")
    if kind == "onnx" and beside.exists():  # the weights of a large file
        options.show_files(beside)
    return 0


def check(args: argparse.Namespace, kind: str) -> None:
    """Find what cannot be before a large file is read.

    Raises:
        FileExistsError: there is something at the target.
        ValueError: an option that this kind of target does not have, or an unknown type.
    """
    for option, value, kinds in (
        ("--type", args.type, ("gguf",)),
        ("--importance", args.importance, ("gguf",)),
        ("--dtype", args.dtype, ("huggingface", "safetensors", "onnx")),
        ("--max-shard-size", args.max_shard_size, ("huggingface", *PACKED)),
    ):
        if value is not None and kind not in kinds:
            raise ValueError(f"{option} does not apply to {kind}; it is for {' and '.join(kinds)}")
    if args.type is not None:
        from converters.gguf import mixes

        mixes.find(args.type)
    options.check_target(args)


def write(model: "Model", kind: str, args: argparse.Namespace, shard: int) -> None:
    """Write the model as one of KINDS or PACKED."""
    from converters.gguf.imatrix import read_imatrix
    from forge_jax import exporting
    from forge_jax.exporting_packed import export_packed

    match kind:
        case "huggingface":
            exporting.export_huggingface(
                model, args.target, dtype=args.dtype or "stored", max_shard_bytes=shard, overwrite=args.overwrite
            )
        case "safetensors":
            exporting.export_safetensors(model, args.target, dtype=args.dtype or "stored")
        case "gguf":
            importance = read_imatrix(args.importance) if args.importance else None
            exporting.export_gguf(model, args.target, type=args.type or usual_type(model), importance=importance)
        case "orbax":
            exporting.export_orbax(model, args.target, overwrite=args.overwrite)
        case "onnx":
            exporting.export_onnx(model, args.target, dtype=args.dtype or "float32", overwrite=args.overwrite)
        case method:
            method = "auto" if method == "packed" else method
            export_packed(model, args.target, method=method, max_shard_bytes=shard, overwrite=args.overwrite)


def usual_type(model: "Model") -> Literal["F32", "F16", "BF16", "stored"]:
    """The type that loses nothing: "stored" for blocks of ggml, else what most weights have, F32 if that is packed."""
    from forge_jax.params import flatten
    from forge_jax.quantization.ggml import Ggml
    from forge_jax.tensor import QTensor

    packed = [leaf.scheme for _, leaf in flatten(model.params) if isinstance(leaf, QTensor)]
    if packed and all(isinstance(scheme, Ggml) for scheme in packed):
        return "stored"
    sizes: dict[str, int] = defaultdict(int)
    for path, leaf in flatten(model.params):
        sizes[model.stored.get(path, "F32")] += leaf.size
    most = max(sizes, key=sizes.__getitem__)
    return "F16" if most == "F16" else "BF16" if most == "BF16" else "F32"


def read_size(text: str) -> int:
    """Bytes of "5GB", "500MB", "2GiB" or "1000".

    Raises:
        ValueError: something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    unit = UNITS.get(match[2].upper().removesuffix("B") + "B" if match[2] else "") if match else None
    if match is None or unit is None or not float(match[1]):
        raise ValueError(f"--max-shard-size {text!r}: expected a size such as 5GB, 500MB or 2GiB")
    return int(float(match[1]) * unit)
