"""The rows of a batch one after another, by one program: the same bits for a row in any company.

Products and sums of several rows at once are put together in an order that depends on how many there are. A loop over
rows runs the program of a single one, whatever the batch, at the cost of reading the weights for every row.

That holds for logits. What a sampler makes of them, it makes of all rows at once: on a GPU the sum in a log-probability
may still differ in its last bits.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Cache

S = TypeVar("S")  # the package runs on Python 3.11, which has no def f[S]


def row_by_row(function: Callable[[Any, S], tuple[Array, S]], inputs: Any, state: S, axis: int = 0) -> tuple[Array, S]:
    """function(inputs, state) of each row by itself: its array [B, ...], and the state, changed in its place.

    Args:
        function: of inputs and a state for a batch of one, which gives an array [1, ...] and the same kind of state.
        inputs: leaves [B, ...].
        state: leaves whose axis `axis` is the batch.
    """

    def row(tree: Any, i: Array | int, axis: int) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i, 1, axis), tree)

    def put(tree: Any, new: Any, i: Array, axis: int) -> Any:
        return jax.tree.map(
            lambda leaf, one: jax.lax.dynamic_update_slice_in_dim(leaf, one.astype(leaf.dtype), i, axis), tree, new
        )

    def body(i: Array, carry: tuple[Array, S]) -> tuple[Array, S]:
        out, state = carry
        made, new = function(row(inputs, i, 0), row(state, i, axis))
        return put(out, made, i, 0), put(state, new, i, axis)

    batch = jax.tree.leaves(inputs)[0].shape[0]
    if batch == 1:  # taking one row of one is nothing to a compiler, and it would put the rest together otherwise
        inputs, state = twice(inputs, 0), twice(state, axis)
    like, _ = jax.eval_shape(lambda: function(row(inputs, 0, 0), row(state, 0, axis)))
    start = jnp.zeros((max(batch, 2), *like.shape[1:]), like.dtype)
    # nor may it know how often the loop runs, or it would take one of a single turn apart
    out, state = jax.lax.fori_loop(0, jax.lax.optimization_barrier(jnp.int32(batch)), body, (start, state))
    return (out, state) if batch > 1 else (out[:1], row(state, 0, axis))


def twice(tree: Any, axis: int) -> Any:
    """Every leaf after itself along an axis."""
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis), tree)


def with_cache(
    function: Callable[[Any, Cache | None], tuple[Array, Cache | None]], inputs: Any, cache: Cache | None
) -> tuple[Array, Cache | None]:
    """`row_by_row` of a pass through the model. Stacked layers have their rows second, and so has everything then."""
    if cache is None or not cache.stacked:
        return row_by_row(function, inputs, cache)

    def turned(cache: Cache) -> Cache:
        return replace(cache, places=jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), cache.places))

    def beside(inputs: Any, cache: Cache) -> tuple[Array, Cache]:
        out, new = function(inputs, turned(cache))
        return out, turned(turned(cache) if new is None else new)

    out, new = row_by_row(beside, inputs, turned(cache), axis=1)
    return out, turned(new)
