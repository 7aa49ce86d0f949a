"""Differential attention: two softmaxes over the same values, one subtracted from the other (arXiv:2410.05258).

Letters: P is 2, the halves of a pair; a value has W = P * H features. Head counts are local, as in `attention`.
"""

import functools

import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Places, Stored, place_key, view
from forge_jax.ops.attention import kept, remember, triangle, visible
from forge_jax.ops.call import Call, Context
from forge_jax.ops.found import Keys, attend
from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate
from forge_jax.params import Tree
from forge_jax.spec import Differential
from forge_jax.tensor import beside, contract, dense


def project(op: Differential, params: Tree, name: str, x_BTD: Array) -> Array:
    """One of q, k, v with its bias: [B, T, pairs, P, H]."""
    y = contract("BTD,DNPH->BTNPH", x_BTD, params[name])
    return y + beside(params[f"{name}_bias"], y.ndim, y.dtype) if op.attention.qkv_bias else y


def turned(op: Differential, x_BTNPH: Array, call: Call) -> Array:
    """Queries or keys at their positions."""
    if op.attention.rope is None:
        return x_BTNPH
    flat = x_BTNPH.reshape(*x_BTNPH.shape[:2], -1, x_BTNPH.shape[-1])
    return rotate(op.attention.rope, flat, call.coords_BTC[..., 0]).reshape(x_BTNPH.shape)


def subtracted(op: Differential, params: Tree, first: Array, second: Array) -> Array:
    """What comes out of a pair of heads, normalised."""
    lambdas = {name: dense(params[f"lambda_{name}"]).astype(jnp.float32) for name in ("q1", "k1", "q2", "k2")}
    learned = jnp.exp((lambdas["q1"] * lambdas["k1"]).sum()) - jnp.exp((lambdas["q2"] * lambdas["k2"]).sum())
    return norm(op.norm, {}, first - (learned + op.init).astype(first.dtype) * second) * (1 - op.init)


def differential(op: Differential, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state with the new keys and values); a pair's two keys lie side by side."""
    q_BTNPH = turned(op, project(op, params, "q", x_BTD), call)
    k_BTKPH = turned(op, project(op, params, "k", x_BTD), call)
    b, t, n, _, h = q_BTNPH.shape
    kv = k_BTKPH.shape[2]
    # queries in the order of the keys that they meet: (K, P), then the queries of each
    q = q_BTNPH.reshape(b, t, kv, n // kv, 2, h).swapaxes(3, 4).reshape(b, t, 2 * n, h)
    k = kept(state, "k", k_BTKPH.reshape(b, t, 2 * kv, h))
    v = kept(state, "v", project(op, params, "v", x_BTD).reshape(b, t, kv, 2 * h))

    def keys(k: Stored, v: Stored, places: Places) -> Keys:
        seen = visible(call.order_BT, call.span_BT, places.order_BS, places.span_BS, op.attention.window)
        k_BKSH, v_BKSW = (view(slab, q.dtype, places.table_BQ, after=q) for slab in (k, v))
        return Keys(k_BKSH, jnp.repeat(v_BKSW, 2, axis=1), seen)

    present = keys(k, v, call.places)
    parts = [present]
    slots = call.slots[place_key(op)] if state is not None else None
    if state is not None and slots is not None and not ctx.fresh:
        parts = [keys(state["k"], state["v"], slots.past), present]
    q, look = k.codec.turn(q), functools.partial(attend, scale=op.attention.scale)
    y = triangle(look, q, present, op.attention.window) if ctx.fresh else look(q, parts)

    if state is not None and slots is not None:
        state = remember(state, slots, {"k": k, "v": v}, y[:, :, 0, 0], ctx)
    y = v.codec.turn(y).reshape(b, t, kv, 2, n // kv, 2 * h)
    y = subtracted(op, params, y[:, :, :, 0], y[:, :, :, 1]).reshape(b, t, n, 2, h)
    out = ctx.psum(contract("BTNPH,NPHD->BTD", y, params["o"]))
    return (out + beside(params["o_bias"], out.ndim, out.dtype) if op.attention.o_bias else out), state
