"""An exported model in onnxruntime beside the library itself: a prompt, and decoding after it, on the CPU.

    python benchmarks/onnx_files.py [--model smollm2] [--prompt 256] [--rounds 3] [--json out.json]

Both compute in float32 and feed each token back by themselves; rows name what ran.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from table import alternately, machine, show

from forge_jax import cache as caches
from forge_jax.decoder import forward, inputs
from forge_jax.exporting import export_onnx
from forge_jax.loading import Model, load
from forge_jax.ops import Context

STEPS = 32  # tokens that one timed call decodes

Calls = dict[str, Callable[[], Any]]


def library(model: Model, ids: np.ndarray) -> Calls:
    """A prompt and STEPS tokens after it, by the jitted decoder."""
    run = partial(jax.jit, static_argnums=(0, 4))(forward)
    step = partial(jax.jit, static_argnums=(0, 4), donate_argnums=3)(forward)
    length = ids.shape[1]

    def prompt() -> tuple[jax.Array, Any]:
        cache = caches.init(model.spec, 1, length + STEPS)
        return jax.block_until_ready(run(model.spec, model.params, inputs(ids), cache, Context(fresh=True)))

    logits, held = prompt()

    def decode() -> None:
        cache, token = jax.tree.map(jnp.array, held), np.asarray(logits[:, -1:].argmax(-1))
        for i in range(STEPS):
            found, cache = step(model.spec, model.params, inputs(token, length + i), cache, Context())
            token = np.asarray(found[:, -1:].argmax(-1))

    return {"prompt": prompt, "decode": decode}


def graph(model: Model, ids: np.ndarray, directory: Path) -> Calls:
    """The same by onnxruntime; the graph's past is what it gave before."""
    session = onnxruntime.InferenceSession(str(export_onnx(model, directory / "model.onnx")))
    pasts = [put.name.replace("present", "past_key_values") for put in session.get_outputs()[1:]]
    empty = {
        put.name: np.zeros([size if isinstance(size, int) else int(size == "batch_size") for size in put.shape], "f4")
        for put in session.get_inputs()
        if put.name.startswith("past")
    }

    def run(token: np.ndarray, past: dict[str, np.ndarray], before: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        after = before + token.shape[1]
        feed = {"input_ids": token, "attention_mask": np.ones((1, after))}
        feed |= {"position_ids": np.arange(before, after)[None]}
        out = session.run(None, {name: x.astype(np.int64) for name, x in feed.items()} | past)
        return out[0], dict(zip(pasts, out[1:], strict=True))

    logits, held = run(ids, empty, 0)

    def decode() -> None:
        past, token = held, logits[:, -1:].argmax(-1)
        for i in range(STEPS):
            found, past = run(token, past, ids.shape[1] + i)
            token = found[:, -1:].argmax(-1)

    return {"prompt": partial(run, ids, empty, 0), "decode": decode}


def main() -> None:
    """Run, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="one whose layers are attention")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load(args.model, dtype="float32", packed=False)
    ids = np.random.default_rng(0).integers(0, model.spec.vocab_size, (1, args.prompt))
    with tempfile.TemporaryDirectory() as directory:
        runs = {"library": library(model, ids), "onnxruntime": graph(model, ids, Path(directory))}
        about, rows = machine(), []
        for name, calls in runs.items():
            times = alternately(calls, args.rounds)
            speeds = {"prompt tokens/s": args.prompt / times["prompt"], "decoded tokens/s": STEPS / times["decode"]}
            rows.append({"what": name} | speeds)
    show(rows, about)
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
