"""A mixture of experts against its dense reference: prefill of 512 tokens and decoding one, on the same weights.

    python benchmarks/experts.py [--rounds 5] [--json out.json]

One layer of random float32 weights. `reads` is the size of the experts that a call must read: the chosen ones, or all.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
from table import alternately, machine, show

from forge_jax.ops import Call, Context
from forge_jax.ops.moe import moe
from forge_jax.params import Tree, map_params
from forge_jax.spec import Block, Branch, ModelSpec, Moe, Router

CASES = (
    {"experts": 64, "chosen": 8, "dim": 512, "ff": 256},
    {"experts": 64, "chosen": 4, "dim": 512, "ff": 512},
    {"experts": 8, "chosen": 2, "dim": 512, "ff": 1024},
)
STEPS = 8  # tokens that one timed call decodes, one after another


def weights(op: Moe, dim: int) -> Tree:
    """Random parameters of one mixture."""
    rng = np.random.default_rng(0)
    spec = ModelSpec(1, dim, (Block((Branch("moe", op),)),), 1)
    draw = lambda p: jnp.asarray(rng.standard_normal(p.shape, np.float32) * max(p.fan_in, 1) ** -0.5)  # noqa: E731
    return map_params(draw, spec)["layers"]["0"]["moe"]


def apply(op: Moe, experts: str, steps: int, params: Tree, x_BTD: jax.Array) -> jax.Array:
    """The mixture `steps` times, each on what the last one gave."""
    order = jnp.zeros(x_BTD.shape[:2], jnp.int32)
    call = Call(order, order[..., None], order, {})

    def once(_: Any, x: jax.Array) -> jax.Array:
        return moe(op, params, x, None, call, Context(experts=experts))[0] + x  # type: ignore[arg-type]

    return jax.lax.fori_loop(0, steps, once, x_BTD)


def measure(case: dict[str, int], tokens: int, rounds: int) -> dict[str, Any]:
    """One row: both paths in turn."""
    op = Moe(Router(case["experts"], case["chosen"], renorm=1.0), case["ff"])
    params, steps = weights(op, case["dim"]), STEPS if tokens == 1 else 1
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, tokens, case["dim"]), np.float32))
    run = jax.jit(apply, static_argnums=(0, 1, 2))
    paths = {p: partial(lambda p: run(op, p, steps, params, x).block_until_ready(), p) for p in ("every", "best")}
    difference = float(jnp.abs(paths["every"]() - paths["best"]()).max() / jnp.abs(paths["every"]()).max())
    times = alternately(paths, rounds)
    one = 3 * case["dim"] * case["ff"] * 4 / 1e6
    return case | {
        "tokens": tokens,
        "every ms": times["every"] / steps * 1e3,
        "best ms": times["best"] / steps * 1e3,
        "times faster": times["every"] / times["best"],
        "every reads MB": one * case["experts"],
        "best reads MB": one * min(case["experts"], tokens * case["chosen"]),
        "difference": f"{difference:.0e}",
    }


def main() -> None:
    """Run, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about, rows = machine(), [measure(case, tokens, options.rounds) for tokens in (512, 1) for case in CASES]
    show(rows, about)
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
