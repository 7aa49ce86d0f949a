"""Runs of tokens summed up in one entry each, whatever calls they come in.

Entry w stands for the tokens of order w * every and so on. What a later call needs of tokens whose entry is not whole
yet, or which take part in the next one too, is remembered in a ring: token p in place p % places.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call
from forge_jax.ops.found import HIDDEN
from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate_last
from forge_jax.params import Tree
from forge_jax.spec import Compression, Norm, Rope
from forge_jax.tensor import contract, dense

LATER = 1 << 30  # than any token, and far from what an int32 holds


class Entries(NamedTuple):
    """The entries whose last token may be in a call, which each of them is, -1 if it is not whole, and the ring."""

    entry_BWH: Array
    which_BW: Array
    ring_BRC: Array


def compress(
    op: Compression, norm_spec: Norm, rope: Rope, params: Tree, x_BTD: Array, ring_BRC: Array | None, call: Call
) -> Entries:
    """The entries of one call. A call of T tokens completes at most ceil(T / every) of them."""
    order_BT, every = call.order_BT, op.every
    batch, length = order_BT.shape
    rows = jnp.arange(batch)[:, None]
    new_BTC = jnp.concatenate([contract("BTD,DC->BTC", x_BTD, params[name]) for name in ("kv", "gate")], -1)
    new_BTC = new_BTC.astype(jnp.float32)
    places = every * (2 if op.overlap else 1)
    ring_BRC = jnp.zeros((batch, places, new_BTC.shape[-1])) if ring_BRC is None else ring_BRC

    # the tokens by their order, from the first of the entry before that of the first new one
    first_B1 = jnp.where(order_BT < 0, LATER, order_BT).min(1, keepdims=True)
    base_B1, count = first_B1 // every - 1, -(-length // every)
    size = (count + 1) * every
    old_BR = first_B1 - 1 - (first_B1 - 1 - jnp.arange(places)[None]) % places  # who sits in each place of the ring

    def at(order: Array) -> Array:
        place = order - base_B1 * every
        return jnp.where((order < 0) | (place < 0), size, place)

    laid_BSC = jnp.zeros((batch, size, new_BTC.shape[-1])).at[rows, at(old_BR)].set(ring_BRC, mode="drop")
    laid_BSC = laid_BSC.at[rows, at(order_BT)].set(new_BTC, mode="drop")
    kv, gate = jnp.split(laid_BSC.reshape(batch, count + 1, every, -1), 2, -1)
    gate = gate + dense(params["bias"]).astype(jnp.float32)[None, None]

    which_BW = base_B1 + 1 + jnp.arange(count)[None]
    if op.overlap:
        features = kv.shape[-1] // 2
        before = jnp.where((which_BW > 0)[..., None, None], gate[:, :-1, :, :features], HIDDEN)
        gate = jnp.concatenate([before, gate[:, 1:, :, features:]], 2)
        kv = jnp.concatenate([kv[:, :-1, :, :features], kv[:, 1:, :, features:]], 2)
    else:
        kv, gate = kv[:, 1:], gate[:, 1:]
    entry_BWH = (kv * jax.nn.softmax(gate, axis=2)).sum(2).astype(x_BTD.dtype)
    entry_BWH = norm(norm_spec, params.get("norm", {}), entry_BWH)
    entry_BWH = rotate_last(rope, entry_BWH[:, :, None], which_BW * every)[:, :, 0]

    last_B1 = order_BT.max(1, keepdims=True)
    lasting = (order_BT >= 0) & (order_BT > last_B1 - places)
    ring_BRC = ring_BRC.at[rows, jnp.where(lasting, order_BT % places, places)].set(new_BTC, mode="drop")
    whole = (which_BW + 1) * every <= last_B1 + 1
    return Entries(entry_BWH, jnp.where(whole, which_BW, -1), ring_BRC)
