"""Decode and prefill on an accelerator, with weights of real size and random values, beside what its memory allows.

    python benchmarks/gpu.py [--sizes 1b,8b] [--schemes bfloat16,int8,int4-g128,Q4_K] [--context 1024] [--json out.json]
    python benchmarks/gpu.py --pallas off,on --schemes int8,int4-g128 --cache bfloat16,int8,int4
    python benchmarks/gpu.py --cudnn off,on --schemes bfloat16 --context 2048

`bandwidth`: GB/s of a copy, bytes read and written, measured in this run. `of it`: the bytes of the weights that a
token reads, over the time of a token, as a part of that. Every scheme runs the same spec, prompt and functions.
`--pallas off,on`: every row without and with the kernels in Pallas, which FORGE_JAX_PALLAS switches on.
`--cudnn off,on`: the same with attention of prompts by cuDNN, which FORGE_JAX_CUDNN switches on.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
from table import machine, seconds, show

import forge_jax as forge
from forge_jax.kernels import cudnn, pallas
from forge_jax.limits import copy_rate
from forge_jax.params import Param, abstract, flatten, unflatten
from forge_jax.quantization import packer
from forge_jax.quantization.policy import choose
from forge_jax.quantization.trees import rows_of
from forge_jax.tensor import QTensor

SIZES = {
    "tiny": {"dim": 256, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 512},
    "1b": {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "hidden_dim": 8192},
    "8b": {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "hidden_dim": 14336},
}
VOCABULARY = 128256
SAMPLE = 16  # rows that are drawn and packed; a weight repeats them
STEPS = 32


def drawn(param: Param, scheme: str | None) -> Any:
    """A weight of random values, packed if a scheme is named."""
    rng = np.random.default_rng(param.size)
    if scheme is None:
        if param.fill is not None:
            return jnp.full(param.shape, param.fill, jnp.bfloat16)
        sample = rng.normal(size=(SAMPLE, param.shape[-1])) * param.fan_in**-0.5
        rows = math.prod(param.shape[:-1])
        return repeated(sample.astype(jnp.bfloat16), rows).reshape(param.shape)
    like, inner, trailing = rows_of(np.broadcast_to(np.float32(0), param.shape), param)
    outputs, size = like.shape[:-1], like.shape[-1]
    made = packer(scheme)
    parts = made.pack((rng.normal(size=(SAMPLE, size)) * size**-0.5).astype(np.float32), None)
    whole = {
        name: repeated(part, math.prod(outputs)).reshape(*outputs, -1)
        if part.shape[0] == SAMPLE
        else jnp.asarray(part).reshape(*(1,) * len(outputs), -1)
        for name, part in parts.items()
    }
    return QTensor(whole, made.scheme, inner, trailing, "bfloat16")


def repeated(sample: np.ndarray, rows: int) -> jax.Array:
    """The rows of a sample again and again, [rows, ...]."""
    return jnp.tile(jnp.asarray(sample), (-(-rows // SAMPLE), 1))[:rows]


def parameters(spec: forge.ModelSpec, scheme: str) -> Any:
    """Random weights, the head in the scheme of the layers, the embedding always in bfloat16: a token reads one row."""
    chosen = {} if scheme == "bfloat16" else choose(spec, scheme, outside=scheme)
    described = dict(flatten(abstract(spec)))
    return unflatten(
        {path: drawn(p, scheme if path in chosen and path != "embed" else None) for path, p in described.items()}
    )


def measure(
    size: str, scheme: str, cache: str, kernels: str, flash: str, context: int, batch: int, rounds: int, limit: float
) -> dict[str, Any]:
    """One row. kernels, flash: "on" or "off", those in Pallas and of cuDNN; settled while programs are traced."""
    for switch, state in ((pallas.SWITCH, kernels), (cudnn.SWITCH, flash)):
        os.environ[switch] = {"on": "1", "off": "0"}[state]
    jax.clear_caches()
    config = forge.ForgeConfig.from_dict({"vocab_size": VOCABULARY, "max_seq_len": 8192} | SIZES[size])
    spec = replace(config.to_spec(), tied=False)
    params = parameters(spec, scheme)
    jax.block_until_ready(params)
    read = sum(leaf.nbytes for path, leaf in flatten(params) if path != "embed")
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (batch, context)).tolist()

    def begin() -> forge.Session:
        session = forge.Session(spec, params, ids, max_new_tokens=STEPS * (rounds + 2), cache_dtype=cache or None)
        jax.block_until_ready(session.state)
        return session

    compiling, _ = seconds(begin)
    prefill, session = seconds(begin)
    compiling += seconds(lambda: session.advance(STEPS))[0]
    times = [seconds(lambda: session.advance(STEPS))[0] / STEPS for _ in range(rounds)]
    token = statistics.median(times)
    return {
        "size": size,
        "weights": scheme,
        "cache": cache or "as it comes",
        "pallas": kernels,
        "cudnn": flash,
        "GB": read / 1e9,
        "batch": batch,
        "ms a token": token * 1e3,
        "tok/s": batch / token,
        "of it": read / token / limit,
        "prefill tok/s": batch * context / prefill,
        "compiling s": compiling - prefill - token * STEPS,
    }


def main() -> None:
    """Run the rows that were asked for."""
    parser = argparse.ArgumentParser(description="Decode and prefill with weights of real size and random values.")
    parser.add_argument("--sizes", default="1b,8b")
    parser.add_argument("--schemes", default="bfloat16,int8,Q8_0,int4-g128,Q4_K,nf4,mxfp4")
    parser.add_argument("--cache", default="", help="how keys and values are kept, such as bfloat16,int8,int4")
    parser.add_argument("--pallas", default="off", help="off, on, or off,on")
    parser.add_argument("--cudnn", default="off", help="off, on, or off,on")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    limit, rows = copy_rate(), []
    about = machine() | {"bandwidth": f"{limit / 1e9:.0f} GB/s"}
    asked = (args.sizes, args.schemes, args.cache, args.pallas, args.cudnn)
    for each in itertools.product(*(names.split(",") for names in asked)):
        rows.append(measure(*each, args.context, args.batch, args.rounds, limit))
        print(json.dumps(rows[-1]), flush=True)
        if args.json:
            args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    show(rows, about)


if __name__ == "__main__":
    main()
