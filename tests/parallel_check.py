"""Sharded against plain: one assertion for every test that has a spec, parameters and token ids."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax import cache as caches
from forge_jax import parallel
from forge_jax.cache import Cache
from forge_jax.decoder import Driver, forward, inputs
from forge_jax.ops import Context
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec

FIRST = 5  # tokens of the first of three pieces; the last piece is one token


def whole_and_pieces(
    spec: ModelSpec, params: Tree, tokens_BT: Array, cache: Cache, ctx: Context, driver: Driver = "loop"
) -> tuple[Array, Array, Cache]:
    """Logits of a text read at once without a cache, and read with one in three pieces; the cache after that."""
    whole, _ = forward(spec, params, inputs(tokens_BT), None, ctx, driver=driver)
    pieces = []
    last = tokens_BT.shape[1] - 1
    for start, stop in ((0, FIRST), (FIRST, last), (last, last + 1)):
        logits, cache = forward(spec, params, inputs(tokens_BT[:, start:stop], start), cache, ctx, driver=driver)
        pieces.append(logits)
    return whole, jnp.concatenate(pieces, 1), cache


plain = jax.jit(whole_and_pieces, static_argnames=("spec", "ctx", "driver"))


def distance(found: Array, expected: Array) -> float:
    """Largest difference, relative to the largest number expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def assert_sharded_equals_plain(
    spec: ModelSpec,
    params: Tree,
    ids: np.ndarray,
    shards: int,
    *,
    driver: Driver = "loop",
    tolerance: float = 1e-5,
) -> None:
    """The model on `shards` devices gives the logits that it gives on one, with and without a cache.

    ids: [B, T] with T > FIRST + 1. The plain program is compiled once a spec, the sharded one once a call.
    """
    mesh = parallel.make_mesh(shards)
    dtype = jax.tree.leaves(params["embed"])[-1].dtype
    expected = plain(spec, params, ids, caches.init(spec, *ids.shape, dtype=dtype), Context(), driver)
    run = jax.jit(parallel.shard_mapped(partial(whole_and_pieces, driver=driver), spec, mesh))
    cache = parallel.init_cache(spec, *ids.shape, mesh=mesh, dtype=dtype)
    found = run(parallel.shard(spec, params, mesh), ids, cache)
    for what, got, wanted in zip(("whole", "in pieces"), found, expected, strict=False):
        assert got.shape == wanted.shape, what
        assert distance(got, wanted) < tolerance, f"{what}, {shards} shards: {distance(got, wanted):.2e}"
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found[2].places, expected[2].places))
