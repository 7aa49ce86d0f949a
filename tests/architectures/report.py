"""Writes docs/architectures.md: what each architecture has, and how near its numbers are, measured now.

    python tests/architectures/report.py [model type ...]

With model types, only their rows are measured again. Every figure is of this run: parity and round trip over all
goldens of a model type, sharding for its plainest.
"""

import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: F401  eight devices, before jax starts
import jax
import jax.numpy as jnp
import numpy as np
from helpers import GOLDENS, TOKENS, VOCABULARY, Golden, read_golden
from parallel_check import QUICK, distance, plain, two_pieces
from test_sharded import one_layer_of_each_kind

import forge_jax as forge
from forge_jax import cache as caches
from forge_jax import parallel
from forge_jax.decoder import forward, inputs
from forge_jax.ops import Context
from forge_jax.parallel.axes import SPLIT
from forge_jax.params import abstract, flatten

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
NOTES = Path(__file__).with_name("notes.md")  # written by hand: where the reference is wrong, with the evidence
SHARDS = 4

HEAD = """# Architectures

Written by `python tests/architectures/report.py`; do not edit.
{count} model types, {goldens} goldens, JAX {jax} on a CPU.

- **parity**: the largest difference of a logit from transformers' in float32, relative to the largest logit, over all
  goldens of the type (config, ids and logits that transformers made; weights are a function of their names). Models
  whose code lives on the hub are compared with the float64 forwards of tests/architectures/hub_models.py instead.
- **round trip**: whether every tensor of every golden comes back bit for bit.
- **sharded**: the same difference between {shards} devices and one, prompt and continuation, for the plainest golden;
  "split" names the axes that are split over the devices besides the vocabulary. An op without any is computed whole on
  each device.
- **GGUF**: the architecture of llama.cpp under which files are read and written.

| model type | family | ops | goldens | parity | round trip | sharded | split | GGUF |
|---|---|---|---|---|---|---|---|---|
"""

TAIL = """
## Composites

Of a checkpoint that also sees or hears, the language model is read (and a warning names the rest):

{composites}

"""


@dataclass
class Row:
    """What is known of one model type."""

    goldens: list[Golden] = field(default_factory=list)
    parity: float = 0.0
    round_trip: bool = True
    sharded: float = 0.0


def parity(golden: Golden) -> float:
    """How far its logits are from the reference."""
    logits, _ = jax.jit(forward, static_argnums=0, compiler_options=QUICK)(
        golden.spec, golden.params, inputs(jnp.asarray(golden.tokens))
    )
    return distance(np.asarray(logits)[:, list(TOKENS), VOCABULARY], golden.logits)


def comes_back(golden: Golden) -> bool:
    """Whether its tensors are written as they were read."""
    written = golden.written()
    return written.keys() == golden.to_write() and all(
        np.array_equal(array, golden.arrays[name]) for name, array in written.items()
    )


def sharded(golden: Golden) -> float:
    """How far several devices are from one."""
    host = golden.checkpoint.read(lambda _, values: values)
    spec, params = one_layer_of_each_kind(golden.spec, host)
    mesh, shape = parallel.make_mesh(SHARDS), golden.tokens.shape
    expected = plain(spec, params, golden.tokens, caches.init(spec, *shape), Context(), "loop")[0]
    run = jax.jit(parallel.shard_mapped(partial(two_pieces), spec, mesh), compiler_options=QUICK)
    cache = parallel.init_cache(spec, *shape, mesh=mesh)
    return distance(run(parallel.shard(spec, params, mesh), golden.tokens, cache)[0], expected)


def ops_of(golden: Golden) -> list[str]:
    """The kinds of op of a model, in order."""
    kinds = [type(branch.op).__name__ for block in golden.spec.layers for branch in block.branches]
    return list(dict.fromkeys(kinds))


def split_axes(golden: Golden) -> list[str]:
    """The axes of its layers that several devices share out."""
    axes = {axis for path, param in flatten(abstract(golden.spec)) if path.startswith("layers.") for axis in param.axes}
    return [axis for axis in SPLIT if axis in axes]


def line(kind: str, row: Row) -> str:
    """One row of the table."""
    known, plainest = forge.architectures()[kind], row.goldens[0]
    cells = [
        f"`{kind}`",
        known.family,
        ", ".join(ops_of(plainest)),
        len(row.goldens),
        f"{row.parity:.0e}",
        "exact" if row.round_trip else "**differs**",
        f"{row.sharded:.0e}",
        ", ".join(split_axes(plainest)) or "-",
        ", ".join(known.gguf) or "-",
    ]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def kept() -> dict[str, str]:
    """The rows of the page as it is, by model type."""
    lines = PAGE.read_text().splitlines(keepends=True) if PAGE.exists() else []
    found = [(re.match(r"\| `(\S+)` \|", text), text) for text in lines]
    return {match[1]: text for match, text in found if match}


def main() -> None:
    """Measure what is asked for and write the page."""
    asked = set(sys.argv[1:])
    table = {kind: text for kind, text in kept().items() if asked and kind in forge.architectures()}
    rows: dict[str, Row] = defaultdict(Row)
    names = sorted(path.stem for path in GOLDENS.glob("*.npz"))
    for name in names:
        golden = read_golden(name)
        if asked and golden.config["model_type"] not in asked:
            continue
        row = rows[golden.config["model_type"]]
        row.goldens.append(golden)
        row.parity = max(row.parity, parity(golden))
        row.round_trip &= comes_back(golden)
        jax.clear_caches()
    for kind, row in rows.items():
        row.sharded = sharded(row.goldens[0])
        jax.clear_caches()
        table[kind] = line(kind, row)
        print(table[kind], end="", flush=True)
    composites = "\n".join(
        f"- `{known.model_type}`: `{known.text_of}`" for known in forge.architectures().values() if known.text_of
    )
    head = HEAD.format(count=len(table), goldens=len(names), jax=jax.__version__, shards=SHARDS)
    body = "".join(text for _, text in sorted(table.items()))
    PAGE.write_text(head + body + TAIL.format(composites=composites) + NOTES.read_text())


if __name__ == "__main__":
    main()
