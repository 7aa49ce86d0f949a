"""Attention of one layer by the kernel for CPUs and plainly, in turns: new tokens after others that a cache keeps.

    python benchmarks/attention.py [--new 1,16,512] [--before 128,1024,4096] [--caches float32,int8] [--rounds 9]

Heads are SmolLM2's unless told; the last 64 slots of the cache are empty.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from table import alternately, machine, show

from forge_jax.cache.codecs import codec
from forge_jax.cache.stored import keep, view
from forge_jax.ops.found import Keys, attend, attend_plainly
from forge_jax.ops.packed import Held

EMPTY = 64


def slots(name: str, kvs: int, size: int, seen_BTS: Array) -> Any:
    """Keys and values of one row as a cache keeps them, and what is seen of them."""
    random = np.random.default_rng(seen_BTS.shape[2])
    k, v = (jnp.asarray(random.normal(size=(1, kvs, seen_BTS.shape[2], size)), jnp.float32) for _ in "kv")
    return keep(k, codec(name)), keep(v, codec(name)), seen_BTS


def measure(new: int, before: int, name: str, heads: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """One row of the table."""
    queries, kvs, size = heads
    order, parts = np.arange(before, before + new)[:, None], []
    for first, count in ((0, before + EMPTY if before else 0), (before, new)):
        key = np.arange(first, first + count)
        seen = (key <= order) & (key < before if not first and before else True)
        parts += [slots(name, kvs, size, jnp.asarray(seen[None]))] if count else []
    q = jnp.asarray(np.random.default_rng(0).normal(size=(1, new, queries, size)), jnp.float32)

    def by(way: Any) -> Any:
        def run(q: Array, parts: list[Any]) -> Array:
            keys = [Keys(view(k, q.dtype), view(v, q.dtype), seen, held=Held(k, v, None)) for k, v, seen in parts]
            return way(q, keys, scale=size**-0.5, softcap=None, sinks_N=None)

        compiled = jax.jit(run)
        return lambda: compiled(q, parts).block_until_ready()

    took = alternately({"kernel": by(attend), "plain": by(attend_plainly)}, rounds)
    sums = 4 * size * queries * sum(int(np.asarray(seen).sum()) for _, _, seen in parts)
    return {
        "cache": name,
        "before": before,
        "new": new,
        "kernel us": took["kernel"] * 1e6,
        "plain us": took["plain"] * 1e6,
        "times": took["plain"] / took["kernel"],
        "GFLOP/s": sums / took["kernel"] / 1e9,
    }


def main() -> None:
    """Print a row for each cache, length of what was before, and number of new tokens."""
    numbers = lambda text: [int(number) for number in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", type=numbers, default=[1, 16, 128, 512])
    parser.add_argument("--before", type=numbers, default=[0, 128, 1024, 4096])
    parser.add_argument("--caches", type=lambda text: text.split(","), default=["float32", "int8"])
    parser.add_argument("--heads", type=numbers, default=[9, 3, 64], help="of queries, of keys, and their features")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    cases = [(new, before, name) for name in args.caches for before in args.before for new in args.new]
    show([measure(*case, tuple(args.heads), args.rounds) for case in cases], machine())


if __name__ == "__main__":
    main()
