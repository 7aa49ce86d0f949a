"""Embeddings of n-grams: the last few tokens, hashed, are the row of a table.

Hashes are of 64 bits, which is two words here: arrays are of 32.
"""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.conv import causal_conv, convolved
from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import NgramInput
from forge_jax.tensor import contract, take

Words = tuple[Array, Array]
"""The upper and the lower 32 bits of a number."""


def product(token: Array, number: int) -> Words:
    """token * number modulo 2^64."""
    word = lambda value: jnp.asarray(value & 0xFFFFFFFF, jnp.uint32)  # noqa: E731
    half = lambda value: (value >> 16, value & 0xFFFF)  # noqa: E731
    token = token.astype(jnp.uint32)
    (t1, t0), (n1, n0) = half(token), half(word(number))
    low = t0 * n0
    middle = t1 * n0 + (low >> 16)  # of two halves: neither this sum nor the next overflows
    second = t0 * n1 + (middle & 0xFFFF)
    upper = t1 * n1 + (middle >> 16) + (second >> 16) + token * word(number >> 32)
    return upper, (second << 16) | (low & 0xFFFF)


def remainder(value: Words, sizes: tuple[int, ...]) -> Array:
    """What division by each of the sizes leaves, along a new last axis: so many bits at a time as there is room for."""
    bits = 32 - max(sizes).bit_length()
    size_H = jnp.asarray(sizes, jnp.uint32).reshape((1,) * value[0].ndim + (-1,))
    left = jnp.zeros((*value[0].shape, len(sizes)), jnp.uint32)
    for word in value:
        for top in range(32, 0, -bits):
            take_bits = min(bits, top)
            chunk = (word >> (top - take_bits)) & ((1 << take_bits) - 1)
            left = ((left << take_bits) | chunk[..., None]) % size_H
    return left.astype(jnp.int32)


def rows(op: NgramInput, before_BTn: Array) -> Array:
    """The row of each head [B, T, H], from the token itself and those before it."""
    products = [product(before_BTn[..., i], number) for i, number in enumerate(op.multipliers)]
    orders, hashed = len(products) - 1, []
    heads = len(op.sizes) // orders
    for i in range(orders):
        joined = reduce(lambda a, b: (a[0] ^ b[0], a[1] ^ b[1]), products[: i + 2])
        hashed.append(remainder(joined, op.sizes[i * heads : (i + 1) * heads]))
    first_H = np.cumsum([0, *op.sizes[:-1]])
    return jnp.concatenate(hashed, -1) + jnp.asarray(first_H, jnp.int32)[None, None]


def recent(op: NgramInput, tokens_BT: Array, tail: Array | None, order_BT: Array) -> tuple[Array, Array]:
    """Each token and those before it in its text [B, T, n], and what the next call needs of them."""
    count = len(op.multipliers)
    # tokens are exact in float32; 0 is none, and what the tail of a new text is full of
    shift_nK = jnp.eye(count)[:, ::-1]
    x_BTn = jnp.broadcast_to((tokens_BT + 1).astype(jnp.float32)[..., None], (*tokens_BT.shape, count))
    shifted, tail = causal_conv(x_BTn, shift_nK, None, tail, order_BT)
    shifted = shifted.astype(jnp.int32) - 1
    out = [shifted[..., 0]]
    for i in range(1, count):
        ended = (shifted[..., i] < 0) | ((out[-1] == op.end) if i > 1 else False)
        out.append(jnp.where(ended, op.end, shifted[..., i]))
    return jnp.stack(out, -1), tail


def ngram_input(op: NgramInput, params: Tree, x_BTSD: Array, state: Tree | None, call: Call, ctx: Context):
    """What is added to every stream [B, T, S, D], and the last tokens and inputs of the convolution.

    Raises:
        ValueError: there are no tokens.
    """
    if call.tokens_BT is None:
        raise ValueError("forward: this model looks n-grams up; pass tokens_BT beside embeds_BTD")
    before_BTn, tokens = recent(op, call.tokens_BT, state["before"] if state else None, call.order_BT)
    table = params["table"]
    found = take(table.reshape(-1, table.shape[-1]), rows(op, before_BTn))
    e_BTE = found.reshape(*found.shape[:2], -1).astype(x_BTSD.dtype)
    key_BTSD = norm(op.norm, params.get("key_norm", {}), contract("BTE,ESD->BTSD", e_BTE, params["key"]))
    z_BTS = (key_BTSD * norm(op.norm, params.get("query_norm", {}), x_BTSD)).sum(-1) / x_BTSD.shape[-1] ** 0.5
    gate_BTS = jax.nn.sigmoid(jnp.sqrt(jnp.maximum(jnp.abs(z_BTS), 1e-6)) * jnp.sign(z_BTS))
    y_BTSD = gate_BTS[..., None] * contract("BTE,ED->BTD", e_BTE, params["value"])[:, :, None]
    normed_BTSD = norm(op.norm, params.get("conv_norm", {}), y_BTSD)
    tail = state["tail"] if state else None
    near_BTSD, tail = convolved(normed_BTSD, params["conv"], None, tail, call.order_BT, every=len(op.multipliers))
    return y_BTSD + jax.nn.silu(near_BTSD), {"before": tokens, "tail": tail} if state else None
