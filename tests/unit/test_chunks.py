"""Attention in chunks: each chunk of the tokens is a text of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax import cache as caches
from forge_jax import decoder, params
from forge_jax.ops import Context
from forge_jax.spec import Attention, Block, Branch, ModelSpec, Norm

pytestmark = pytest.mark.usefixtures("quick_compiles")

CHUNK = 100
BLOCK = Block((Branch("attention", Attention(4, 2, 16, 0.25, chunk=CHUNK), Norm()),))
SPEC = ModelSpec(160, 48, (BLOCK,), 1024, Norm())
run = jax.jit(decoder.forward, static_argnums=(0, 4))
LENGTH = 330  # more than the blocks of 128 in which a prompt is looked at


@pytest.mark.parametrize("fresh", [True, False])
def test_chunks_do_not_see_each_other(fresh: bool) -> None:
    tree = params.init(SPEC, jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 160, (2, LENGTH))
    alone = [run(SPEC, tree, decoder.inputs(ids[:, i : i + CHUNK]))[0] for i in range(0, LENGTH, CHUNK)]
    cache = caches.init(SPEC, 2, LENGTH)
    assert cache.layers[0]["attention"]["k"].shape[2] == CHUNK
    start = LENGTH - 30
    first, cache = run(SPEC, tree, decoder.inputs(ids[:, :start]), cache, Context(fresh=fresh))
    rest, _ = run(SPEC, tree, decoder.inputs(ids[:, start:], start), cache)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), jnp.concatenate(alone, 1), atol=1e-5)
