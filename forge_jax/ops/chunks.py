"""A recurrence over a long text, some tokens at a time.

Where a length is left open (a symbolic dimension of `jax.export`), no code can choose by it: see `pieces`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

EXACT = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)  # a state keeps what it is told for a long time


def linear_scan(decay: Array, drive: Array, start: Array) -> Array:
    """h[t] = decay[t] * h[t - 1] + drive[t], each number for itself, in parallel: [B, T, ...] from h[-1] [B, ...]."""

    def join(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * then[0], then[0] * first[1] + then[1]

    decay, drive = jax.lax.associative_scan(join, (decay, drive), axis=1)  # of one token: the token
    return decay * start[:, None] + drive


def pieces(length: int, size: int) -> list[slice]:
    """Slices of `size` that cover a length; a single one of all where the length is left open."""
    if export.is_symbolic_dim(length):
        return [slice(None)]
    return [slice(start, start + size) for start in range(0, length, size)]


def over_chunks(step: Callable[[Any, Any], tuple[Any, Array]], state: Any, inputs: Any, size: int) -> tuple[Any, Array]:
    """Run `step(state, piece) -> (state, y)` over pieces of `size` tokens; leaves of `inputs` and y are [B, T, ...].

    The last piece is filled up with zeros, which must leave the state alone. Memory does not grow with T beyond that
    of inputs and outputs. Where T is left open, a piece is one token: one that decodes is not to pay for `size`.
    """
    batch, length = jax.tree.leaves(inputs)[0].shape[:2]
    size = 1 if export.is_symbolic_dim(length) else size
    if length <= size:
        return step(state, inputs)
    count = -(-length // size)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    state, y = jax.lax.scan(step, state, jax.tree.map(cut, inputs))
    y = jnp.moveaxis(y, 0, 1)
    return state, y.reshape(batch, count * size, *y.shape[3:])[:, :length]
