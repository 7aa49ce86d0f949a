"""Sharded against plain: one assertion for every test that has a spec, parameters and token ids."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from quick import QUICK

from forge_jax import cache as caches
from forge_jax import parallel
from forge_jax.cache import Cache
from forge_jax.decoder import Driver, forward, inputs
from forge_jax.ops import Context
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec

FIRST = 6  # tokens of the first of two pieces


def two_pieces(
    spec: ModelSpec, params: Tree, tokens_BT: Array, cache: Cache, ctx: Context, driver: Driver = "loop"
) -> tuple[Array, Cache]:
    """Logits of a text whose first tokens see each other only, and the rest what the cache holds; the cache then."""
    pieces = []
    for start, stop in ((0, FIRST), (FIRST, tokens_BT.shape[1])):
        piece, now = inputs(tokens_BT[:, start:stop], start), replace(ctx, fresh=start == 0)
        logits, cache = forward(spec, params, piece, cache, now, driver=driver)
        pieces.append(logits)
    return jnp.concatenate(pieces, 1), cache


plain = jax.jit(two_pieces, static_argnames=("spec", "ctx", "driver"), compiler_options=QUICK)


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
    """The model on `shards` devices gives the logits that it gives on one, without and with a past in the cache.

    ids: [B, T] with T > FIRST. The plain program is compiled once a spec, the sharded one once a call.
    """
    mesh = parallel.make_mesh(shards)
    dtype = params["embed"].dtype
    expected = plain(spec, params, ids, caches.init(spec, *ids.shape, dtype=dtype), Context(), driver)
    run = jax.jit(parallel.shard_mapped(partial(two_pieces, driver=driver), spec, mesh), compiler_options=QUICK)
    cache = parallel.init_cache(spec, *ids.shape, mesh=mesh, dtype=dtype)
    found = run(parallel.shard(spec, params, mesh), ids, cache)
    assert found[0].shape == expected[0].shape
    error = distance(found[0], expected[0])
    assert error < tolerance, f"{shards} shards: {error:.2e}"
    jax.tree.map(np.testing.assert_array_equal, found[1].places, expected[1].places)
