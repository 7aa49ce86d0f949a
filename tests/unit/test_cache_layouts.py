"""Every layout, codec, batch and number of devices gives the logits of dense slabs on one device, same codec."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parallel_check import QUICK

from forge_jax import cache as caches
from forge_jax import parallel
from forge_jax.decoder import Inputs, forward
from forge_jax.generation import Session
from forge_jax.generation.layouts import Dense, Paged
from forge_jax.generation.session import local_programs
from forge_jax.params import Tree, init
from forge_jax.sampling import SamplingParams
from forge_jax.spec import Attention, Block, Branch, Latent, Mlp, ModelSpec, Norm, Rope

ATTENTION = Attention(4, 2, 16, 0.25, rope=Rope(16))
OPS = (ATTENTION, replace(ATTENTION, window=6), Latent(4, 16, 8, 8, 16, 0.25, Norm(), Rope(8), q_rank=None))
SPEC = ModelSpec(
    64,
    32,
    tuple(Block((Branch("attention", op, pre=Norm()), Branch("mlp", Mlp(64), pre=Norm()))) for op in OPS),
    512,
    Norm(),
    tied=True,
)
PARAMS = init(SPEC, jax.random.key(0))
LENGTHS = (29, 17, 29)
IDS = np.random.default_rng(0).integers(0, 64, (3, 29))
IDS[2, :16] = IDS[0, :16]
SLACK = 9
LAYOUTS: dict[str, Any] = {"dense": Dense, "paged": partial(Paged, page=4)}
CHUNKS = ((9, 9, 1, 1, 9), (9, 1, 1, 9, 9))
RUN = jax.jit(forward, static_argnums=0, compiler_options=QUICK)


def pieces(batch: int, sizes: tuple[int, ...]) -> Iterator[tuple[Inputs, list[int], list[int]]]:
    """The texts cut into calls; a row that has ended is padding. With the first and last place of each row."""
    at = 0
    for size in sizes:
        order = np.arange(at, at + size, dtype=np.int32)[None].repeat(batch, 0)
        order = np.where(order < np.array(LENGTHS[:batch])[:, None], order, -1)
        starts = [min(at, length) for length in LENGTHS[:batch]]
        yield (
            Inputs(jnp.asarray(IDS[:batch, at : at + size]), jnp.asarray(order)),
            starts,
            [min(at + size, length) for length in LENGTHS[:batch]],
        )
        at += size


def read(batch: int, kept: Any, how: str, shards: int, sizes: tuple[int, ...], params: Tree = PARAMS) -> np.ndarray:
    """Logits of all texts, piece by piece."""
    new: Any = caches.init
    run: Any = partial(RUN, SPEC)
    if shards > 1:
        mesh = parallel.make_mesh(shards)
        params, new = parallel.shard(SPEC, params, mesh), partial(parallel.init_cache, mesh=mesh)
        run = jax.jit(parallel.shard_mapped(forward, SPEC, mesh), compiler_options=QUICK)
    layout = LAYOUTS[how](SPEC, new, {"slack": SLACK, "dtype": caches.policy(kept)})
    cache = layout.empty(batch, 32)
    for rows in layout.rows.values() if isinstance(layout, Paged) else ():
        for page in np.random.default_rng(batch).permutation(list(rows.pool.free)).tolist():
            rows.pool.free.move_to_end(page)  # dealt out in no order
    cache = layout.admit(cache, [IDS[row, : min(sizes[0], LENGTHS[row])].tolist() for row in range(batch)])
    out = []
    for call, starts, stops in pieces(batch, sizes):
        cache = layout.room(cache, starts if out else stops, stops)
        logits, cache = run(params, call, cache)
        out.append(np.asarray(logits))
    return np.concatenate(out, 1)


def assert_same(found: np.ndarray, expected: np.ndarray, batch: int, lossy: bool) -> None:
    """Compare where there are tokens. A number at the border of two codes falls to either side."""
    there = np.arange(29)[None] < np.array(LENGTHS[:batch])[:, None]
    apart = np.abs(found[:, :29] - expected[:, :29])[there] / np.abs(expected[:, :29][there]).max()
    assert np.quantile(apart, 0.5) < 5e-6
    assert apart.max() < (5e-3 if lossy else 1e-5)


CODECS = ("float32", "bfloat16", "fp8", "int8", "int4", {"*": "int8", "*.v": "int4", "layers.0": "bf16"})
CROSS = list(product(("dense", "paged"), CODECS, (1, 3), (1, 2)))
SHORT = [("paged", "float32", 3, 1), ("paged", "int4", 3, 2), ("paged", CODECS[-1], 1, 1)]


@pytest.mark.parametrize(
    ("layout", "kept", "batch", "shards"),
    [pytest.param(*case, marks=[] if case in SHORT else [pytest.mark.slow]) for case in CROSS],
    ids=lambda value: "mixed" if isinstance(value, dict) else str(value),
)
def test_all_combinations_are_the_plain_path(layout: str, kept: Any, batch: int, shards: int):
    expected = read(batch, kept, "dense", 1, CHUNKS[0])
    found = read(batch, kept, layout, shards, CHUNKS[1])
    assert_same(found, expected, batch, kept != "float32")


def test_rows_of_a_session_share_the_pages_of_their_prompt():
    prompts = [IDS[0].tolist() * 3, (IDS[0].tolist() * 3)[:40] + [1, 2]]
    options: Any = {"n": 3, "max_new_tokens": 60, "seed": 3, "programs": local_programs(QUICK)}
    options["sampling"] = SamplingParams(temperature=1.0, logprobs=0)
    sessions = [Session(SPEC, PARAMS, prompts, layout=layout, **options) for layout in ("dense", "paged")]
    size = [sum(leaf.nbytes for leaf in jax.tree.leaves(session.state.cache.layers)) for session in sessions]
    assert size[1] < size[0]
    for session in sessions:
        session.advance(50)
        session.finish(1, 30)
        session.extend([[5, 6, 7]] * 6, max_new_tokens=[4, 20, 20, 20, 20, 20])
        session.advance()
    for dense, paged in zip(*(session.outputs() for session in sessions), strict=True):
        assert dense.ids == paged.ids
        np.testing.assert_allclose(paged.logprobs, dense.logprobs, atol=1e-5)
