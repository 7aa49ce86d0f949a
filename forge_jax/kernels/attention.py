"""Attention of one new token a row in C++: it reads the slots that are seen, and of the cache no others.

The plain path opens what a cache keeps, computes scores for all slots and hides most of them. Softmax is float32 in
both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.kernels.library import available, target
from forge_jax.kernels.meshes import varying

LANES = 16  # that divide the features of a head, and those that share a scale, on the widest machine
SHARES = {"float32": 1, "bfloat16": 1, "float16": 1, "int8": 1, "uint8": 2}
"""What numbers may be, and how many features one has: codes of bytes and of half bytes have scales."""


class Slab(NamedTuple):
    """What slots hold of one kind, keys or values: [B, K, S, *], or pages [P, K, page, *].

    scale: of codes, bfloat16, one for each group of features; a feature is scale * code, or scale * (code - 7.5) of
    those of 4 bits, two of which share a byte, that of the first half of the features in its low bits.
    """

    numbers: Array
    scale: Array | None = None

    @property
    def size(self) -> int:
        """Features of a head."""
        return self.numbers.shape[-1] * SHARES[self.numbers.dtype.name]


class Seen(NamedTuple):
    """Keys and values, what each query sees of them [B, T, S], and the pages [B, Q] that have the slots of each row."""

    k: Slab
    v: Slab
    seen_BTS: Array
    table_BQ: Array | None = None


def readable(slab: Slab) -> bool:
    """Whether the kernel can open it."""
    numbers, scale = slab
    if numbers.dtype.name not in SHARES or not numbers.size or slab.size % LANES:
        return False
    if scale is None:
        return jnp.issubdtype(numbers.dtype, jnp.floating)
    halves = numbers.dtype == jnp.uint8
    groups = scale.shape[-1] if halves else 1
    even = not slab.size % groups and not slab.size // groups % LANES and not (halves and slab.size // 2 % LANES)
    return even and scale.shape[-1] == groups and scale.dtype == jnp.bfloat16


def looks(q_BTNH: Array, parts: Sequence[Seen | None]) -> bool:
    """Whether there is a kernel for these queries and all that they meet."""
    if q_BTNH.dtype != jnp.float32 or q_BTNH.shape[1] != 1:
        return False
    readily = all(
        part is not None and readable(part.k) and readable(part.v) and part.seen_BTS.ndim == 3 for part in parts
    )
    return readily and available()


def look(q_BTNH: Array, parts: Sequence[Seen], sinks_N: Array | None, scale: float, softcap: float | None) -> Array:
    """softmax(scale * q k^T) v over what is seen of all parts together: [B, 1, N, *]; only where it `looks`."""
    b, _, n, _ = q_BTNH.shape
    sinks_N = jnp.zeros((0,), jnp.float32) if sinks_N is None else sinks_N.astype(jnp.float32)
    none, nowhere, arguments = jnp.zeros((0,), jnp.bfloat16), jnp.zeros((b, 0), jnp.int32), []
    for k, v, seen_BTS, table_BQ in parts:
        for numbers, scales in (k, v):
            arguments += [numbers, none if scales is None else scales]
        arguments += [
            jnp.broadcast_to(seen_BTS[:, 0], (b, seen_BTS.shape[2])),
            nowhere if table_BQ is None else table_BQ,
        ]
    q_BNH, *others = varying(q_BTNH[:, 0], sinks_N, *arguments)
    shape = jax.typeof(q_BNH).update(shape=(b, n, parts[0].v.size))
    call = jax.ffi.ffi_call(target("attention"), shape, vmap_method="sequential")
    return call(q_BNH, *others, scale=np.float32(scale), softcap=np.float32(softcap or 0))[:, None]
