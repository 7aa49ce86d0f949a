"""Compressed convolutional attention (arXiv:2510.04476).

Head counts are read from the weights: under shard_map they are local.
"""

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.attention import Tokens, attended, kept, left
from forge_jax.ops.call import Call, Context
from forge_jax.ops.conv import history
from forge_jax.ops.heads import turned
from forge_jax.params import Tree
from forge_jax.spec import ConvAttention
from forge_jax.tensor import contract, dense

TINY = 2.0**-23  # the least that a vector's length counts as


def mixed(op: ConvAttention, params: Tree, name: str, x_BTNH: Array, tail: Array | None, order_BT: Array):
    """Queries or keys through both convolutions, float32, and the tail. Before the first token there is nothing."""
    batch, count, heads, dim = x_BTNH.shape
    weights = {end: dense(params[f"{name}_{end}"]).astype(jnp.float32) for end in ("conv", "mix")}
    biases = {end: params[f"{name}_{end}_bias"].astype(jnp.float32)[None, None] for end in weights}
    flat = x_BTNH.reshape(batch, count, heads * dim)
    tail = None if tail is None else tail.reshape(batch, heads * dim, -1)
    seen_BSC, tail_BCS = history(flat, sum(op.taps) - 2, tail, order_BT)
    seen_BSNH = seen_BSC.reshape(batch, -1, heads, dim)
    length = count + op.taps[1] - 1
    y_BSNH = biases["conv"] + sum(
        seen_BSNH[:, k : k + length] * weights["conv"][None, None, ..., k] for k in range(op.taps[0])
    )
    z_BTNH = biases["mix"] + sum(
        jnp.einsum("BTNI,NHI->BTNH", y_BSNH[:, k : k + count], weights["mix"][..., k]) for k in range(op.taps[1])
    )
    return z_BTNH, tail_BCS.reshape(batch, heads, dim, -1)


def here(op: ConvAttention, x_BTKH: Array, ctx: Context) -> Array:
    """Of something of every kv head, that of those on this device."""
    kvs = ctx.heads(op.attention).kvs
    if kvs == tuple(range(op.attention.kv_heads)) and ctx.axis is None:
        return x_BTKH
    slots = jnp.asarray([kv if kv >= 0 else op.attention.kv_heads for kv in kvs])
    return jnp.take(x_BTKH, ctx.local(slots), axis=2, mode="fill", fill_value=0)


def mean_queries(op: ConvAttention, q_BTNH: Array, ctx: Context) -> Array:
    """The mean of the queries of each kv head of this device; those of one may lie on several devices."""
    heads, kvs = op.attention.heads, op.attention.kv_heads
    group_N = jnp.asarray([kvs if head < 0 else head // (heads // kvs) for head in ctx.heads(op.attention).queries])
    member_NK = jax.nn.one_hot(ctx.local(group_N), kvs, dtype=jnp.float32)
    return here(op, ctx.psum(jnp.einsum("BTNH,NK->BTKH", q_BTNH, member_NK)) / (heads // kvs), ctx)


def values(op: ConvAttention, params: Tree, x_BTD: Array, tail: Array | None, call: Call, ctx: Context):
    """The values of the kv heads of this device [B, T, K, H], and what the next token reads of the last."""
    parts = {name: contract("BTD,DC->BTC", x_BTD, params[name]) for name in ("v", "v_before")}
    seen_BSC, tail = history(parts["v_before"], 1, tail, call.order_BT)
    parts["v_before"] = seen_BSC[:, :-1].astype(x_BTD.dtype)
    if op.attention.qkv_bias:
        parts = {name: y + params[f"{name}_bias"].astype(y.dtype)[None, None] for name, y in parts.items()}
    v = jnp.concatenate([parts["v"], parts["v_before"]], -1)
    return here(op, v.reshape(*v.shape[:2], op.attention.kv_heads, op.attention.head_dim), ctx), tail


def sized(x_BTNH: Array) -> Array:
    """Vectors of length sqrt(H), float32."""
    square = jnp.maximum((x_BTNH * x_BTNH).sum(-1, keepdims=True), TINY**2)
    return x_BTNH * jax.lax.rsqrt(square / x_BTNH.shape[-1])


def conv_attention(op: ConvAttention, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""
    base, memory, tails = op.attention, state or {}, {}
    plain, past = {}, {}
    for name in "qk":
        y = contract("BTD,DNH->BTNH", x_BTD, params[name])
        y = y + params[f"{name}_bias"].astype(y.dtype)[None, None] if base.qkv_bias else y
        plain[name] = y.astype(jnp.float32)
        tail = memory.get(f"{name}_tail")
        past[name], tails[f"{name}_tail"] = mixed(op, params, name, y, tail, call.order_BT)
    v_BTKH, tails["v_tail"] = values(op, params, x_BTD, memory.get("v_tail"), call, ctx)
    share = plain["q"].shape[2] // plain["k"].shape[2]
    q_BTNH = past["q"] + (plain["q"] + jnp.repeat(plain["k"], share, axis=2)) / 2
    k_BTKH = past["k"] + (mean_queries(op, plain["q"], ctx) + plain["k"]) / 2
    k_BTKH = sized(k_BTKH) * dense(params["length"]).astype(jnp.float32)[None, None, :, None]
    heads, position_BT = ctx.heads(base), call.coords_BTC[..., 0]
    q, k = (
        turned(base, params, name, y.astype(x_BTD.dtype), position_BT, None, slots, ctx)
        for name, y, slots in (("q", sized(q_BTNH), heads.queries), ("k", k_BTKH, heads.kvs))
    )
    new = Tokens(kept(state, "k", k), kept(state, "v", v_BTKH), call.places)
    y_BTNH, state = attended(base, params, x_BTD, q, (new,), state, call, ctx)
    return left(base, params, x_BTD, y_BTNH, ctx), None if state is None else state | tails
