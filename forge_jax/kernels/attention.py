"""Attention of new tokens in C++: it reads the slots that some of them see, and of the cache no others.

The plain path opens what a cache keeps, computes scores for all slots and hides most of them. Softmax is float32 in
both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.kernels.library import available, target
from forge_jax.kernels.meshes import varying

LANES = 16  # that divide the features of a head, and those that share a scale, on the widest machine
FLOATS = ("float32", "bfloat16", "float16")
CODES = ("int8", "float8_e4m3fn", "uint8")  # that have scales


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slab:
    """What slots hold of one kind, keys or values: [B, K, S, *], or pages [P, K, page, *].

    scale: of codes, bfloat16, one for each group of features. share: how many codes are in a byte, of which those of
    the first features have the lowest bits. A feature is scale * code, or scale * (code - middle) of those that share.
    """

    numbers: Array
    scale: Array | None = None
    share: int = field(metadata={"static": True}, default=1)

    @property
    def size(self) -> int:
        """Features of a head."""
        return self.numbers.shape[-1] * self.share


class Seen(NamedTuple):
    """Keys and values, what each query sees of them [B, T, S], and the pages [B, Q] that have the slots of each row."""

    k: Slab
    v: Slab
    seen_BTS: Array
    table_BQ: Array | None = None


def readable(slab: Slab) -> bool:
    """Whether the kernel can open it."""
    numbers, scale, share = slab.numbers, slab.scale, slab.share
    if not numbers.size or numbers.shape[-1] % LANES or (numbers.dtype == jnp.uint8) != (share in (2, 4)):
        return False
    if scale is None:
        return numbers.dtype.name in FLOATS
    groups = scale.shape[-1]
    each = slab.size // groups
    even = each * groups == slab.size and not each % LANES and not each & (each - 1)
    return (even if share > 1 else groups == 1) and numbers.dtype.name in CODES and scale.dtype == jnp.bfloat16


def looks(q_BTNH: Array, parts: Sequence[Seen | None]) -> bool:
    """Whether there is a kernel for these queries and all that they meet."""
    if q_BTNH.dtype != jnp.float32 or not isinstance(q_BTNH.shape[1], int):
        return False
    for part in parts:
        if part is None or not readable(part.k) or not readable(part.v) or part.seen_BTS.ndim != 3:
            return False
    return available()


def look(q_BTNH: Array, parts: Sequence[Seen], sinks_N: Array | None, scale: float, softcap: float | None) -> Array:
    """softmax(scale * q k^T) v over what is seen of all parts together: [B, T, N, *]; only where it `looks`."""
    b, t, n, _ = q_BTNH.shape
    sinks_N = jnp.zeros((0,), jnp.float32) if sinks_N is None else sinks_N.astype(jnp.float32)
    none, nowhere, arguments = jnp.zeros((0,), jnp.bfloat16), jnp.zeros((b, 0), jnp.int32), []
    for k, v, seen_BTS, table_BQ in parts:
        for slab in (k, v):
            arguments += [slab.numbers, none if slab.scale is None else slab.scale]
        arguments += [
            jnp.broadcast_to(seen_BTS, (b, t, seen_BTS.shape[2])),
            nowhere if table_BQ is None else table_BQ,
        ]
    q_BTNH, *others = varying(q_BTNH, sinks_N, *arguments)
    shape = jax.typeof(q_BTNH).update(shape=(b, t, n, parts[0].v.size))
    call = jax.ffi.ffi_call(target("attention"), shape, vmap_method="sequential")
    return call(q_BTNH, *others, scale=np.float32(scale), softcap=np.float32(softcap or 0))
