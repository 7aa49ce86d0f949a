"""What a cache keeps when tokens are taken back. Slots forget by position; running states must be as they were."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Cache, memories, recurrent, rewind
from forge_jax.decoder import Inputs
from forge_jax.generation.loop import read
from forge_jax.generation.speculation.protocol import Target
from forge_jax.spec import ModelSpec, segments


def running(spec: ModelSpec) -> dict[int, set[tuple[str, str]]]:
    """By layer: (branch, name) of every running state."""
    out: dict[int, set[tuple[str, str]]] = {i: set() for i in range(len(spec.layers))}
    for i, branch, _, slabs in memories(spec):
        out[i] |= {(branch, name) for name, slab in slabs.items() if not slab.slots}
    return out


def with_states(spec: ModelSpec, cache: Cache, pick: Callable[[Array, Array], Array], other: Cache) -> Cache:
    """The cache with pick(its own, that of `other`) in the place of every running state; slabs with slots stay."""
    states = running(spec)

    def layer(i: int, own: Any, others: Any) -> Any:
        def leaf(branch: str, name: str, array: Array) -> Array:
            return pick(array, others[branch][name]) if (branch, name) in states[i] else array

        return {branch: {name: leaf(branch, name, x) for name, x in held.items()} for branch, held in own.items()}

    if not cache.stacked:
        pairs = zip(cache.layers, other.layers, strict=True)
        return replace(cache, layers=tuple(layer(i, *pair) for i, pair in enumerate(pairs)))
    stacks = zip(segments(spec.layers), cache.layers, other.layers, strict=True)
    layers = [
        tuple(layer(run.start + j, *pair) for j, pair in enumerate(zip(own, others, strict=True)))
        for run, own, others in stacks
    ]
    return replace(cache, layers=tuple(layers))


def restored(spec: ModelSpec, before: Cache, after: Cache) -> Cache:
    """The cache as it was before some tokens; only what lies in slots beyond its own tokens may differ.

    Taking the slabs from `after` lets XLA write them in place.
    """
    return replace(with_states(spec, after, lambda new, old: old, before), places=before.places)


def emptied(spec: ModelSpec, cache: Cache, row_B: Array) -> Cache:
    """The cache without any token of some rows."""
    axis = int(cache.stacked)

    def clear(state: Array, _: Array) -> Array:
        here = row_B.reshape((1,) * axis + (-1,) + (1,) * (state.ndim - axis - 1))
        return jnp.where(here, jnp.zeros_like(state), state)

    kept = jnp.where(row_B, 0, jnp.iinfo(jnp.int32).max)
    return rewind(with_states(spec, cache, clear, cache), kept)


def committed(target: Target, before: Cache, after: Cache, fed: Inputs, length_B: Array) -> Cache:
    """The cache that a pass over `fed` made of `before`, with tokens whose order is below `length_B` and no others.

    Running states cannot take a token back: where one is to be, those that are kept are read again.
    """
    if not recurrent(target.spec):
        return rewind(after, length_B)
    kept_BT = jnp.where(fed.order_BT < length_B[:, None], fed.order_BT, -1)
    again = restored(target.spec, before, after)

    def reread() -> Cache:
        return read(target.spec, target.params, replace(fed, order_BT=kept_BT), again, target.ctx)[1]

    return jax.lax.cond((fed.order_BT == kept_BT).all(), lambda: after, reread)
