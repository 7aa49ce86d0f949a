"""What quantisation costs: a model in each scheme beside itself in float32, on a text.

    python benchmarks/quantisation.py --text wiki.txt [--model smollm2] [--tokens 4096] [--json out.json]

The reference is the model with its weights decoded to float32. The embedding (of a tied model the head as well) is Q8_0
in every row, so that rows differ by the matrices of the layers alone; rows that are no whole number of a K-quant's 256
numbers get what llama.cpp gives them.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
from table import machine

from forge_jax.evaluation import evaluate
from forge_jax.evaluation.tables import aligned
from forge_jax.loading import Model, load
from forge_jax.quantizing import quantize
from forge_jax.tensor import QTensor

FALLBACKS = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "int4-g128": "int4-g64"}
SCHEMES = (
    *("Q8_0", "int8", "int8-dynamic", "Q6_K", "fp8", "Q5_0", "Q4_K", "int4-g32", "Q4_0", "int4-g64-asym", "int4-g64"),
    *("nf4", "nvfp4", "int4-g128", "mxfp4", "int3-g64"),
)
HEAD = ("scheme", "bits", "MB", "KL, nats", "median", "99 %", "same top-1 %", "perplexity", "s")


def megabytes(model: Model) -> float:
    """What the weights occupy."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) / 1e6


def bits(model: Model) -> float:
    """Bits a number of the layers' matrices, scales counted."""
    leaves = [leaf for leaf in jax.tree.leaves(model.params["layers"], is_leaf=is_packed) if is_packed(leaf)]
    return 8 * sum(leaf.nbytes for leaf in leaves) / sum(leaf.size for leaf in leaves)


def is_packed(leaf: Any) -> bool:
    """Whether a leaf is packed."""
    return isinstance(leaf, QTensor)


def measure(reference: Model, scheme: str, text: str, tokens: int) -> dict[str, Any]:
    """The row of a scheme."""
    start = time.perf_counter()
    model = quantize(reference, scheme, outside="Q8_0", fallback=FALLBACKS.get(scheme))
    return described(scheme, model, time.perf_counter() - start, reference, text, tokens)


def described(name: str, model: Model, seconds: float, reference: Model, text: str, tokens: int) -> dict[str, Any]:
    """One row: sizes, seconds that packing took, and what the text shows."""
    found = evaluate(model, text, reference=reference, tokens=tokens)
    sizes = {"scheme": name, "bits": bits(model), "MB": megabytes(model), "seconds": seconds}
    return sizes | {"evaluation": found.to_dict()}


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row for people."""
    found = row["evaluation"]
    beside = found["comparison"]
    figures = [beside["divergence"]["value"], *(beside["divergence_percentiles"][key] for key in ("50", "99"))]
    top, error = (beside["same_top1"][key] for key in ("value", "error"))
    perplexity = found["perplexity"]["value"]
    return (
        *(row["scheme"], f"{row['bits']:.2f}", f"{row['MB']:.1f}", *(f"{value:.6f}" for value in figures)),
        *(f"{top:.1f} ± {error:.1f}", f"{perplexity:.3f}", f"{row['seconds']:.1f}"),
    )


def kept(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Print the newest row, and write all of them."""
    print("  ".join(cells(rows[-1])), flush=True)
    if path:
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


def summary(rows: list[dict[str, Any]], reference: Model) -> None:
    """Print where it was measured, the reference and the table."""
    found = rows[0]["evaluation"]["comparison"]
    print(f"\n{machine()}; float32: {megabytes(reference):.1f} MB, perplexity {found['perplexity']['value']:.3f}\n")
    print("\n".join(aligned([HEAD, *map(cells, rows)])))


def main() -> None:
    """Print the table, a row as soon as it is there, and all of them at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    reference = load(args.model, packed=False, dtype="float32", progress=False)
    rows = []
    for scheme in args.schemes:
        rows.append(measure(reference, scheme, text, args.tokens))
        kept(rows, args.json)
    summary(rows, reference)


if __name__ == "__main__":
    main()
