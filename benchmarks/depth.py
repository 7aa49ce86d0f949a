"""Seconds to compile prefill and decode of ever deeper models, as a loop over layers and stacked, and a token's time.

    python benchmarks/depth.py [--layers 4,8,16,32] [--dim 256] [--json out.json]

Small models of equal width with random float32 weights; nothing is kept from one to the next.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import numpy as np
from table import machine, seconds, show

import forge_jax as forge
from forge_jax.params import init

VOCABULARY, PROMPT, STEPS = 1024, 64, 16


def measure(layers: int, dim: int, *, stacked: bool, rounds: int) -> dict[str, Any]:
    """One row: the first prefill and the first step with compiling, then steps without."""
    spec = forge.ForgeConfig(vocab_size=VOCABULARY, dim=dim, n_layers=layers, n_heads=4, max_seq_len=512).to_spec()
    params = init(spec, jax.random.key(0))
    params = jax.block_until_ready(forge.stack(spec, params) if stacked else params)
    jax.clear_caches()
    prompt = [list(range(PROMPT))]

    def begin() -> forge.Session:
        session = forge.Session(spec, params, prompt, max_new_tokens=STEPS * (rounds + 2))
        session.ids()
        return session

    cold, session = seconds(begin)
    warm, session = seconds(begin)
    first, _ = seconds(lambda: session.advance(1))
    steps = [seconds(lambda: session.advance(STEPS))[0] / STEPS for _ in range(rounds)]
    return {
        "layers": layers,
        "as": "stacked" if stacked else "loop",
        "compiling prefill s": cold - warm,
        "compiling decode s": first - statistics.median(steps),
        "ms a token": statistics.median(steps) * 1e3,
    }


def main() -> None:
    """Run the rows, and fit a line through each column."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", type=lambda text: [int(number) for number in text.split(",")], default=[4, 8, 16, 32]
    )
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    made = [measure(n, args.dim, stacked=s, rounds=args.rounds) for n in args.layers for s in (False, True)]
    show(made, about)
    for kind in ("loop", "stacked"):
        rows = [row for row in made if row["as"] == kind]
        for column in ("compiling prefill s", "compiling decode s", "ms a token"):
            slope, start = np.polyfit([row["layers"] for row in rows], [row[column] for row in rows], 1)
            print(f"{kind}: {column} = {start:.2f} + {slope:.3f} a layer")
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "rows": made}, indent=1))


if __name__ == "__main__":
    main()
