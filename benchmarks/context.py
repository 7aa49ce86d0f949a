"""Decoding far into a text: time and memory of a step at 1k, 8k and 64k tokens, for each way to look back.

    python benchmarks/context.py [--rounds 5] [--json out.json]

Small models of equal width with random float32 weights; the cache is made for the length, a step at its end timed.
A window or a running state costs the same at any length; looking back on everything does not.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
from table import alternately, machine, show

from forge_jax import cache as caches
from forge_jax.decoder import Inputs, forward
from forge_jax.params import init
from forge_jax.spec import Attention, Block, Branch, Mamba, Mamba2, Mlp, ModelSpec, Norm, Op, Rope

LENGTHS = (1024, 8192, 65536)
STEPS = 16  # tokens that one timed call decodes
DIM, LAYERS = 256, 4
NORM = Norm(1e-5)
ATTENTION = Attention(4, 2, 64, 0.125, Rope(64))
OPS: dict[str, Op] = {
    "attention over everything": ATTENTION,
    "attention, window 512": Attention(4, 2, 64, 0.125, Rope(64), window=512),
    "Mamba": Mamba(512, 16, 16),
    "Mamba-2": Mamba2(8, 64, 64, norm=NORM),
}


def model(op: Op) -> ModelSpec:
    """Four layers of one op and a feed-forward."""
    block = Block((Branch("mixer", op, pre=NORM), Branch("mlp", Mlp(512), pre=NORM)))
    return ModelSpec(1024, DIM, (block,) * LAYERS, max(LENGTHS), NORM)


def stepper(spec: ModelSpec, length: int) -> tuple[Callable[[], Any], int]:
    """A call that decodes STEPS tokens at the end of a text of `length`, and the bytes of the cache."""
    params = init(spec, jax.random.key(0))

    @partial(jax.jit, donate_argnums=0)
    def steps(cache: caches.Cache) -> caches.Cache:
        def once(i: Any, cache: caches.Cache) -> caches.Cache:
            order = jnp.full((1, 1), length - STEPS, jnp.int32) + i
            return forward(spec, params, Inputs(jnp.ones_like(order), order), cache)[1]  # type: ignore[return-value]

        return jax.lax.fori_loop(0, STEPS, once, cache)

    held = [jax.tree.map(jnp.array, caches.init(spec, 1, length))]  # no two leaves share a buffer

    def call() -> None:
        held[0] = steps(held[0])
        jax.block_until_ready(held[0])

    return call, sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(held[0]))


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One row: the three lengths in turn."""
    made = {length: stepper(model(OPS[name]), length) for length in LENGTHS}
    times = alternately({str(length): call for length, (call, _) in made.items()}, rounds)
    row: dict[str, Any] = {"looks back by": name}
    row |= {f"ms at {length // 1024}k": times[str(length)] / STEPS * 1e3 for length in LENGTHS}
    row |= {f"cache MB at {length // 1024}k": made[length][1] / 1e6 for length in LENGTHS}
    return row


def main() -> None:
    """Run, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about, rows = machine(), [measure(name, options.rounds) for name in OPS]
    show(rows, about)
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
