"""Equal layers as one: the execution transform that a scan over layers needs. Never a format of checkpoints.

A stacked tree has "stacked" in the place of "layers": for each segment of the spec and each layer of its period the
leaves of all its repeats, along a new first axis. What layers share stays as it is. The states of a cache are stacked
in the same way. A program over stacked layers is as long as one period, however deep the model, so it compiles in the
time of one; but each layer's weights and states are copied out of the stack when they are used.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Cache
from forge_jax.lora.level import alike
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec, segments

Stacks = tuple[tuple[Any, ...], ...]
"""By segment and by layer of its period: a tree whose leaves have the repeats as their first axis."""


def gather(spec: ModelSpec, item: Callable[[int], Any]) -> Stacks:
    """Stack `item(layer)` over the repeats of every layer of every period."""

    def stack(first: int, width: int, repeats: int) -> Any:
        same = alike([item(layer) for layer in range(first, first + width * repeats, width)])
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *same)

    return tuple(
        tuple(stack(run.start + j, len(run.period), run.repeats) for j in range(len(run.period)))
        for run in segments(spec.layers)
    )


def scatter(spec: ModelSpec, stacks: Stacks) -> list[Any]:
    """The item of every layer again."""
    out: list[Any] = [None] * len(spec.layers)
    for run, stack in zip(segments(spec.layers), stacks, strict=True):
        for j, same in enumerate(stack):
            for k in range(run.repeats):
                at = run.start + j + k * len(run.period)
                out[at] = jax.tree.map(lambda leaf, k=k: leaf[k], same)
    return out


def stacked(params: Tree) -> bool:
    """Whether a tree of parameters is stacked."""
    return "stacked" in params


def weights(spec: ModelSpec, params: Tree) -> Stacks:
    """The layers' parameters, stacked now if they are not yet."""
    if not stacked(params):
        return gather(spec, lambda layer: params["layers"].get(str(layer), {}))
    return tuple(tuple(stack[str(j)] for j in range(len(stack))) for stack in in_order(params["stacked"]))


def in_order(entries: Tree) -> list[Any]:
    """The values of a dict whose keys are 0, 1, 2, ..."""
    return [entries[str(i)] for i in range(len(entries))]


def stack(spec: ModelSpec, params: Tree) -> Tree:
    """The same parameters with equal layers stacked, for `generate`, `Session` and `forward` of very deep models.

    Compiling then takes the time of one layer; every step costs a copy of each layer's weights and states.
    """
    stacks = gather(spec, lambda layer: params["layers"].get(str(layer), {}))
    rest = {key: value for key, value in params.items() if key != "layers"}
    return rest | {"stacked": {str(s): {str(j): tree for j, tree in enumerate(run)} for s, run in enumerate(stacks)}}


def unstack(spec: ModelSpec, params: Tree) -> Tree:
    """The parameters with one entry a layer again."""
    layers = scatter(spec, weights(spec, params))
    rest = {key: value for key, value in params.items() if key != "stacked"}
    return rest | {"layers": {str(i): layer for i, layer in enumerate(layers) if layer}}


def stack_cache(spec: ModelSpec, cache: Cache) -> Cache:
    """A cache for stacked parameters.

    Raises:
        ValueError: layers that would be stacked keep what they remember in different ways.
    """
    for run in segments(spec.layers):
        for j in range(len(run.period)):
            width = len(run.period)
            same = cache.layers[run.start + j : run.start + width * run.repeats : width]
            if len({jax.tree.structure(layer) for layer in same}) > 1:
                raise ValueError(
                    f"cache: layers {run.start + j}, {run.start + j + width}, ... are equal and stacked, so they keep "
                    "keys and values alike; give a codec for all of them, or unstack the parameters"
                )
    return replace(cache, layers=gather(spec, lambda layer: cache.layers[layer]))


def unstack_cache(spec: ModelSpec, cache: Cache) -> Cache:
    """The cache with one entry a layer again."""
    return replace(cache, layers=tuple(scatter(spec, cache.layers)))


def pick(stack: Any, index: Array) -> Any:
    """One repeat of a stacked tree."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), stack)


def put(stack: Any, item: Any, index: Array) -> Any:
    """The stacked tree with one repeat replaced."""
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new.astype(leaf.dtype), index, 0), stack, item
    )
