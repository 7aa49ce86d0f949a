"""Rows computed apart: the same bits alone and in any batch, with a cache and without, loops and stacked layers."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from forge_jax import cache as caches
from forge_jax import stack
from forge_jax.decoder import Inputs, forward
from forge_jax.ops import Context
from forge_jax.params import init
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope, ShortConv
from forge_jax.stacking import stack_cache

NORM = Norm(1e-5)
ATTENTION = Attention(4, 2, 32, 32**-0.5, Rope(32), window=16)
APART = Context(apart=True)


def layer(op: Any) -> Block:
    return Block((Branch("mixer", op, pre=NORM), Branch("mlp", Mlp(352), pre=NORM)))


SPEC = ModelSpec(
    300, 128, (layer(ATTENTION), layer(ShortConv(128, 3)), layer(ATTENTION), layer(ShortConv(128, 3))), 64, NORM
)
run = jax.jit(forward, static_argnames=("spec", "ctx", "driver"))


def two_passes(params: Any, ids: np.ndarray, ctx: Context, stacked: bool) -> tuple[Any, Any]:
    """Logits of a prompt, whose rows end in padding but for the first, and of a token after it."""
    batch, length = ids.shape
    count = length - np.arange(batch) % 4
    order = np.where(np.arange(length) < count[:, None], np.arange(length), -1).astype(np.int32)
    cache = caches.init(SPEC, batch, 64)
    cache = stack_cache(SPEC, cache) if stacked else cache
    first, cache = run(SPEC, params, Inputs(ids, order), cache, ctx)
    second, _ = run(SPEC, params, Inputs(ids[:, :1], count[:, None].astype(np.int32)), cache, ctx)
    return first, second


@pytest.mark.parametrize("stacked", [False, True])
def test_a_row_has_the_same_bits_in_any_company(stacked: bool) -> None:
    params = init(SPEC, jax.random.key(0))
    params = stack(SPEC, params) if stacked else params
    ids = np.random.default_rng(0).integers(0, 300, (7, 12)).astype(np.int32)
    alone = two_passes(params, ids[:1], APART, stacked)
    for batch in (2, 7):
        for found, expected in zip(two_passes(params, ids[:batch], APART, stacked), alone, strict=True):
            np.testing.assert_array_equal(found[0], expected[0])
    together = two_passes(params, ids, Context(), stacked)
    for found, expected in zip(two_passes(params, ids, APART, stacked), together, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_without_a_cache_too() -> None:
    params = init(SPEC, jax.random.key(1))
    ids = np.random.default_rng(1).integers(0, 300, (5, 9)).astype(np.int32)
    order = np.broadcast_to(np.arange(9, dtype=np.int32), ids.shape)
    logits = partial(run, SPEC, params, ctx=APART)
    whole = logits(Inputs(ids, order))[0]
    np.testing.assert_array_equal(whole[3], logits(Inputs(ids[3:4], order[:1]))[0][0])
