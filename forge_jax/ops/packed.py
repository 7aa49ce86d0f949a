"""What a cache keeps, as kernels for few queries a row read it: those for CPUs every codec, those for accelerators
(`kernels.pallas`, where they are asked for) integers of 8, 4 or 2 bits.

The latter are for one query and take whole blocks of slots; what is left of a slab, the new token and sinks are looked
at plainly beside it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from forge_jax import kernels
from forge_jax.cache import Stored
from forge_jax.cache.codecs import Float, Rotated, Scaled
from forge_jax.cache.stored import laid
from forge_jax.kernels import pallas
from forge_jax.kernels.pallas import Form, Packed

HIDDEN = -1e30  # a score that softmax turns into 0, finite so that a row which sees nothing has no NaN


Plain = tuple[Array, Array, Array]
"""Keys and values [B, K, S, *], and what each query sees of them [B, T, S]."""


class Held(NamedTuple):
    """Keys and values as a cache keeps them, and the pages of each row where they are paged."""

    k: Stored
    v: Stored
    table_BQ: Array | None


def for_cpus(plain: Plain, held: Held | None) -> kernels.Seen | None:
    """Some tokens as the kernel for CPUs reads them; None where it cannot."""
    k, v, seen_BTS = plain
    if held is None:
        return kernels.Seen(kernels.Slab(k), kernels.Slab(v), seen_BTS)
    slabs = [slab_of(held.k), slab_of(held.v)]
    if slabs[0] is None or slabs[1] is None:
        return None
    return kernels.Seen(slabs[0], slabs[1], seen_BTS, held.table_BQ if held.k.paged else None)


def slab_of(stored: Stored) -> kernels.Slab | None:
    """Numbers and scales; None of codecs that the kernel for CPUs does not know."""
    match stored.codec:
        case Float():
            return kernels.Slab(stored.parts["values"])
        case Scaled():
            return kernels.Slab(stored.parts["codes"], stored.parts["scale"])
        case Rotated(share=share):
            return kernels.Slab(stored.parts["codes"], stored.parts["scale"], share)
    return None


def packed(held: Held | None) -> tuple[Packed, Packed] | None:
    """Keys and values as the kernel for accelerators reads them; None where nobody asks for it, or it cannot."""
    if held is None or pallas.target() is None:
        return None
    k, v = (packed_slab(slab, held.table_BQ) for slab in (held.k, held.v))
    return None if k is None or v is None else (k, v)


def packed_slab(slab: Stored, table_BQ: Array | None) -> Packed | None:
    """One of them."""
    match slab.codec:
        case Scaled(dtype="int8"):
            bits, middle, group = 8, 0.0, 0
        case Rotated(bits=bits, group=group) as codec:
            middle = codec.middle
        case _:
            return None
    parts = laid(slab, table_BQ)
    size = parts["codes"].shape[-1] * 8 // bits
    return Packed(parts["codes"], parts["scale"], Form(bits, middle, size, math.gcd(size, group)))


def look_packed(
    q_BTNH: Array,
    parts: Sequence[tuple[Plain, tuple[Packed, Packed] | None]],
    sinks_N: Array | None,
    scale: float,
    softcap: float | None,
) -> Array:
    """softmax(scale * q k^T) v over all parts together: [B, 1, N, *]. What is packed is opened by a kernel."""
    from forge_jax.kernels.pallas.attention import Found, joined  # imports Pallas, which only few need
    from forge_jax.kernels.pallas.attention import look as by_kernel

    b, _, n, _ = q_BTNH.shape
    q_BNH, found = q_BTNH[:, 0], []
    for (k, v, seen_BTS), pair in parts:
        seen_BS = jnp.broadcast_to(seen_BTS[:, 0], (b, seen_BTS.shape[2]))
        done = 0 if pair is None or not pallas.even(*pair) else pallas.whole(pair[0])
        if pair is not None and done:
            found.append(by_kernel(q_BNH, *pair, seen_BS, scale, softcap))
        if done < seen_BS.shape[1]:
            rest = (k[:, :, done:], v[:, :, done:], seen_BS[:, done:])
            found.append(Found(*plainly(q_BNH, *rest, scale, softcap)))
    if sinks_N is not None:
        sink = jnp.broadcast_to(sinks_N.astype(jnp.float32)[None, :, None], (b, n, 1))
        found.append(Found(jnp.zeros((b, n, parts[0][0][1].shape[-1]), jnp.float32), jnp.ones_like(sink), sink))
    y, total, _ = joined(Found(*(jnp.stack(part) for part in zip(*found, strict=True))), 0)
    return (y / jnp.where(total > 0, total, 1)).astype(q_BTNH.dtype)[:, None]


def plainly(
    q_BNH: Array, k_BKSH: Array, v_BKSH: Array, seen_BS: Array, scale: float, softcap: float | None
) -> tuple[Array, Array, Array]:
    """Weighted values and weights [B, N, *] of a few slots summed up, and the score that weights are relative to."""
    b, n, h = q_BNH.shape
    q_BKGH = q_BNH.reshape(b, k_BKSH.shape[1], -1, h)
    z = jnp.einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH, preferred_element_type=jnp.float32) * scale
    z = z if softcap is None else softcap * jnp.tanh(z / softcap)
    seen = seen_BS[:, None, None]
    z = jnp.where(seen, z, HIDDEN)
    top = z.max(-1, keepdims=True)
    weight = jnp.where(seen, jnp.exp(z - top), 0)
    y = jnp.einsum("BKGS,BKSH->BKGH", weight.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32)
    return y.reshape(b, n, -1), weight.sum(-1).reshape(b, n, 1), top.reshape(b, n, 1)
