"""Softmax attention with grouped heads. What a token sees is a function of positions alone.

Head counts are read from the weights, never from the spec: under shard_map they are local.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.cache import place_key, put
from forge_jax.ops.call import Call, Context
from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate
from forge_jax.params import Tree
from forge_jax.spec import Alibi, Attention
from forge_jax.tensor import contract

HIDDEN = -1e30  # a score that softmax turns into 0, finite so that a row which sees nothing has no NaN


def visible(order_BT: Array, span_BT: Array, key_order_BS: Array, key_span_BS: Array, window: int | None) -> Array:
    """[B, T, S]: which stored tokens each new token sees: itself and what came before, within the window, or its span."""
    q, k = order_BT[:, :, None], key_order_BS[:, None, :]
    seen = k <= q
    if window is not None:
        seen &= k > q - window
    seen |= (span_BT[:, :, None] > 0) & (span_BT[:, :, None] == key_span_BS[:, None, :])
    return seen & (k >= 0)


def alibi_bias(alibi: Alibi, key_order_BS: Array, heads: int, ctx: Context) -> Array:
    """[B, N, 1, S]: slope times key position, added to the scores."""
    slopes = ctx.local(jnp.asarray(np.asarray(alibi.slopes, np.float32)), heads)
    if alibi.rounded:
        slopes = slopes.astype(jnp.bfloat16)
    bias = slopes[None, :, None, None] * key_order_BS[:, None, None, :].astype(slopes.dtype)
    return bias.astype(jnp.float32) * alibi.scale


def attend(
    q_BTNH: Array,
    k_BKSH: Array,
    v_BKSH: Array,
    seen_BTS: Array,
    *,
    scale: float,
    softcap: float | None = None,
    bias_BN1S: Array | None = None,
    sinks_N: Array | None = None,
) -> Array:
    """softmax(scale * q k^T + bias) v for grouped heads, softmax in float32. Returns [B, T, N, H]."""
    b, t, n, h = q_BTNH.shape
    heads, s = k_BKSH.shape[1], k_BKSH.shape[2]
    group = n // heads
    # one matrix product a kv head: rows are (group, token), so that decoding has G rows and not 1
    q = q_BTNH.reshape(b, t, heads, group, h).transpose(0, 2, 3, 1, 4).reshape(b, heads, group * t, h)
    scores = jnp.einsum("BKQH,BKSH->BKQS", q, k_BKSH, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(b, heads, group, t, s)
    if bias_BN1S is not None:
        scores = scores + bias_BN1S.reshape(b, heads, group, 1, s)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(seen_BTS[:, None, None], scores, HIDDEN)
    top = scores.max(-1, keepdims=True)
    sink = None
    if sinks_N is not None:
        sink = sinks_N.astype(jnp.float32).reshape(1, heads, group, 1, 1)
        top = jnp.maximum(top, sink)
    weight = jnp.exp(scores - top)
    total = weight.sum(-1, keepdims=True)
    if sink is not None:
        total = total + jnp.exp(sink - top)
    # divide the [.., H] product instead of the [.., S] weights
    y = jnp.einsum("BKQS,BKSH->BKQH", weight.reshape(b, heads, group * t, s).astype(v_BKSH.dtype), v_BKSH)
    y = y.reshape(b, heads, group, t, v_BKSH.shape[-1]) / total.astype(y.dtype)
    return y.transpose(0, 3, 1, 2, 4).reshape(b, t, n, v_BKSH.shape[-1])


def normed(op: Attention, params: Tree, x_BTNH: Array, heads: int, ctx: Context) -> Array:
    """Query or key normalisation, over a head's features or over all heads together."""
    if op.qk_norm is None:
        return x_BTNH
    if op.qk_norm_over != "all":
        return norm(op.qk_norm, params, x_BTNH)
    if ctx.axis is None:
        return norm(op.qk_norm, params, x_BTNH, features=2)
    # heads repeated for the mesh count as often as they are there; heads of padding are zero and do not
    there = min(x_BTNH.shape[2] * ctx.shards(), max(op.heads, heads))
    return norm(op.qk_norm, params, x_BTNH, features=2, total=there * op.head_dim, ctx=ctx)


def project(op: Attention, params: Tree, name: str, x_BTD: Array) -> Array:
    """One of q, k, v with its bias: [B, T, heads, H]."""
    y = contract("BTD,DNH->BTNH", x_BTD, params[name])
    return y + params[f"{name}_bias"].astype(y.dtype)[None, None] if op.qkv_bias else y


def attention(op: Attention, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state with the new keys and values)."""
    position_BT = call.coords_BTC[..., 0]
    q = normed(op, params.get("q_norm", {}), project(op, params, "q", x_BTD), op.heads, ctx)
    k = normed(op, params.get("k_norm", {}), project(op, params, "k", x_BTD), op.kv_heads, ctx)
    v = project(op, params, "v", x_BTD)

    rope, length_B = op.rope, None
    if rope is not None:
        length_B = call.order_BT.max(1) + 1 if rope.varies else None
        q = rotate(rope, q, position_BT, length_B)
        if not rope.varies:
            k = rotate(rope, k, position_BT)
    if op.query_scaling is not None:
        turns = jnp.floor(position_BT.astype(jnp.float32) / op.query_scaling.original_len)
        q = q * (1 + op.query_scaling.beta * jnp.log1p(turns)).astype(q.dtype)[:, :, None, None]

    slots = call.slots[place_key(op)] if state is not None else None
    if state is not None and slots is not None:
        state = {"k": put(state["k"], slots.slot_BT, k), "v": put(state["v"], slots.slot_BT, v)}
    if state is None or slots is None or ctx.fresh:
        keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        key_order_BS, key_span_BS = call.order_BT, call.span_BT
        if state is not None:  # see what a later call would read back
            keys, values = (x.astype(state["k"].dtype).astype(q.dtype) for x in (keys, values))
    else:
        keys, values = state["k"].astype(q.dtype), state["v"].astype(q.dtype)
        key_order_BS, key_span_BS = slots.places.order_BS, slots.places.span_BS
    if rope is not None and rope.varies:
        # stored unrotated, because the angle of an old key changes when the sequence grows
        stored_BSKH = rotate(rope, keys.transpose(0, 2, 1, 3), jnp.maximum(key_order_BS, 0), length_B)
        keys = stored_BSKH.transpose(0, 2, 1, 3)

    y = attend(
        q,
        keys,
        values,
        visible(call.order_BT, call.span_BT, key_order_BS, key_span_BS, op.window),
        scale=op.scale,
        softcap=op.softcap,
        bias_BN1S=alibi_bias(op.alibi, key_order_BS, q.shape[2], ctx) if op.alibi else None,
        sinks_N=params["sinks"] if op.sinks else None,
    )
    out = ctx.psum(contract("BTNH,NHD->BTD", y, params["o"]))
    return (out + params["o_bias"].astype(out.dtype)[None, None] if op.o_bias else out), state
