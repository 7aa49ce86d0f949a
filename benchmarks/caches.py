"""What codecs of caches cost: a model that sees keys and values as each keeps them, beside itself, on a text.

    python benchmarks/caches.py --text wiki.txt [--model smollm2] [--tokens 4096] [--json out.json]

Every window is read as one prompt: how a text is cut into calls does not matter to what a codec shows (docs/caches.md).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from table import machine

from forge_jax import cache as caches
from forge_jax.evaluation import evaluate
from forge_jax.evaluation.tables import aligned
from forge_jax.loading import Model, load

CODECS: dict[str, Any] = {
    "bfloat16": "bfloat16",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "int4",
    "int2": "int2",
    "int4, values int8": {"*": "int4", "*.v": "int8"},
    "int4, ends bfloat16": {"*": "int4", "layers.0": "bfloat16", "layers.-1": "bfloat16"},
}
HEAD = ("cache", "bytes a token", "KL, nats", "99 %", "same top-1 %", "perplexity", "more")


def measure(model: Model, name: str, text: str, tokens: int) -> dict[str, Any]:
    """One row: bytes, and what the text shows."""
    found = evaluate(model, text, reference=model, tokens=tokens, cache_dtype=CODECS[name])
    return {
        "cache": name,
        "bytes": caches.bytes_per_token(model.spec, CODECS[name]),
        "evaluation": found.to_dict(),
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row for people."""
    found = row["evaluation"]
    beside = found["comparison"]
    top = beside["same_top1"]["value"]
    before, after = beside["perplexity"]["value"], found["perplexity"]["value"]
    return (
        *(row["cache"], f"{row['bytes']:,.0f}", f"{beside['divergence']['value']:.6f}"),
        *(f"{beside['divergence_percentiles']['99']:.6f}", f"{top:.1f}", f"{after:.3f}", f"{after - before:+.3f}"),
    )


def main() -> None:
    """Print the table, a row as soon as it is there, and all of them at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    model = load(args.model, packed=False, dtype="float32", progress=False)
    rows = []
    for name in args.codecs:
        rows.append(measure(model, name, text, args.tokens))
        print("  ".join(cells(rows[-1])), flush=True)
        if args.json:
            args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")
    before = rows[0]["evaluation"]["comparison"]["perplexity"]["value"]
    whole = caches.bytes_per_token(model.spec)
    print(f"\n{machine()}; float32: {whole:,.0f} bytes a token, perplexity {before:.3f}\n")
    print("\n".join(aligned([HEAD, *map(cells, rows)])))


if __name__ == "__main__":
    main()
