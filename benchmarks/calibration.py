"""What a text helps in quantisation: the same bits with and without it, beside the model in float32.

    python benchmarks/calibration.py --text wiki.txt [--model smollm2] [--tokens 4096] [--samples 16] [--json out.json]

The head of the text is scored, its end is calibrated on; they do not overlap. The reference and the embedding are those
of benchmarks/quantisation.py. "nearest" rounds on the grid that GPTQ and AWQ round on, without a search for scales.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from quantisation import described, kept, summary

import forge_jax as forge
from forge_jax.calibration import matrices
from forge_jax.calibration.rounding import round_leaf
from forge_jax.loading import Model
from forge_jax.params import abstract, flatten, unflatten
from forge_jax.quantization.grid import Grid, Rounded

LENGTH = 512  # tokens of a window, as forge.calibrate has it
FALLBACKS = {"Q4_K": "Q5_0", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL"}  # for rows of no whole blocks
SCHEMES = ("int4-g64-asym", "int3-g64", "Q4_K", "IQ4_XS", "Q3_K")


def nearest(model: Model, grid: Grid) -> Model:
    """The matrices that are calibrated, rounded to the nearest numbers of the same grid."""

    def rounded(rows: np.ndarray, gram: np.ndarray) -> Rounded:
        return Rounded(grid.nearest(rows, lines := grid.lines(rows)), lines)

    leaves = dict(flatten(model.params))
    for path, param in flatten(abstract(model.spec)):
        if matrices(path, param):
            unseen = np.broadcast_to(np.float32(0), (*param.shape[: param.stacked], param.fan_in, param.fan_in))
            leaves[path] = round_leaf(leaves[path], param, unseen, rounded, grid)
    return replace(model, params=unflatten(leaves))


def ways(model: Model, ids: np.ndarray) -> dict[str, Callable[[], Model]]:
    """What is measured, by the name of its row."""
    group = 128
    found = {
        "int4-g128-asym, nearest": lambda: nearest(model, Grid(4, group)),
        "GPTQ": lambda: forge.calibrate(model, ids, "gptq", group=group),
        "GPTQ, act_order": lambda: forge.calibrate(model, ids, "gptq", group=group, act_order=True),
        "AWQ": lambda: forge.calibrate(model, ids, "awq", group=group),
    }
    for scheme in SCHEMES:
        found[scheme] = lambda scheme=scheme: packed(model, scheme)
        found[f"{scheme}, importance"] = lambda scheme=scheme: packed(model, scheme, forge.importance(model, ids))
    return found


def packed(model: Model, scheme: str, importance: dict[str, np.ndarray] | None = None) -> Model:
    """The layers in a scheme."""
    return forge.quantize(model, scheme, outside=None, importance=importance, fallback=FALLBACKS.get(scheme))


def main() -> None:
    """Print the table, a row as soon as it is there, and all of them at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=16, help="at most 128")
    parser.add_argument("--ways", nargs="+", help="rows to measure, all of them if none is named")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    reference = forge.load(args.model, packed=False, dtype="float32", progress=False).model
    if reference.tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer")
    ids = np.asarray(reference.tokenizer.encode(text, add_special=False, parse_special=False))
    if len(ids) < args.tokens + args.samples * LENGTH:
        raise ValueError(f"{args.text} has {len(ids)} tokens, {args.tokens} and {args.samples} x {LENGTH} are needed")
    every, rows = ways(reference, ids[-args.samples * LENGTH :]), []
    for name in args.ways or every:
        start = time.perf_counter()
        model = every[name]()
        model = forge.quantize(model, "Q8_0", policy={"layers.*": None}, outside="Q8_0")
        rows.append(described(name, model, time.perf_counter() - start, reference, text, args.tokens))
        kept(rows, args.json)
    summary(rows, reference)


if __name__ == "__main__":
    main()
