"""What codecs of caches cost: a model that sees keys and values as each keeps them, beside itself, on a text.

    python benchmarks/caches.py --text wiki.txt [--model smollm2] [--tokens 4096]

Every window is read as one prompt: how a text is cut into calls does not matter to what a codec shows (docs/caches.md).
"""

import argparse
from pathlib import Path
from typing import Any

from table import machine, show

from forge_jax import cache as caches
from forge_jax.evaluation import evaluate
from forge_jax.loading import Model, load

CODECS: dict[str, Any] = {
    "bfloat16": "bfloat16",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "int4",
    "int2": "int2",
    "int4, values int8": {"*": "int4", "*.v": "int8"},
    "k8v4": "k8v4",
    "int4, ends bfloat16": {"*": "int4", "layers.0": "bfloat16", "layers.-1": "bfloat16"},
}


def measure(model: Model, name: str, text: str, tokens: int) -> dict[str, Any]:
    """One row: bytes, and what the text shows."""
    found = evaluate(model, text, reference=model, tokens=tokens, cache_dtype=CODECS[name]).to_dict()
    beside = found["comparison"]
    return {
        "cache": name,
        "bytes a token": f"{caches.bytes_per_token(model.spec, CODECS[name]):,.0f}",
        "KL, nats": f"{beside['divergence']['value']:.6f}",
        "99 %": f"{beside['divergence_percentiles']['99']:.6f}",
        "same top-1 %": f"{beside['same_top1']['value']:.1f}",
        "perplexity": f"{found['perplexity']['value']:.3f}",
        "more": f"{found['perplexity']['value'] - beside['perplexity']['value']:+.3f}",
    }


def main() -> None:
    """Print a row as soon as it is there, and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="UTF-8")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS))
    args = parser.parse_args()
    model, text = load(args.model, packed=False, dtype="float32", progress=False), args.text.read_text(encoding="utf-8")
    rows = []
    for name in args.codecs:
        rows.append(measure(model, name, text, args.tokens))
        print(*rows[-1].values(), sep="  ", flush=True)
    show(rows, machine() | {"bytes a token in float32": caches.bytes_per_token(model.spec)})


if __name__ == "__main__":
    main()
