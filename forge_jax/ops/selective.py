"""Attention in which each token says how much it matters as a key (arXiv:2508.02124)."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Places, place_key, view
from forge_jax.ops.attention import kept, remember, triangle, visible
from forge_jax.ops.call import Call, Context
from forge_jax.ops.found import HIDDEN, Keys, attend
from forge_jax.ops.heads import project, turned
from forge_jax.ops.indexer import put_last
from forge_jax.params import Tree
from forge_jax.spec import Selective
from forge_jax.tensor import contract, dense


def merits(op: Selective, params: Tree, v_BTKH: Array) -> Array:
    """How much each token matters to each kv head, float32: [B, T, K, 1]."""
    z_BTJ = contract("BTKH,KHJ->BTJ", v_BTKH, params["merit"]).astype(jnp.float32)
    if op.bias:
        z_BTJ = z_BTJ + dense(params["merit_bias"]).astype(jnp.float32)[None, None]
    rate_J = dense(params["rate"]).astype(jnp.float32)
    return jnp.exp(rate_J[None, None] * jax.nn.softplus(z_BTJ))[..., None]


def selected(parts: Sequence[Keys], keep: int) -> Sequence[Keys]:
    """The parts, with all but the `keep` best keys that a query sees out of its reach."""
    if sum(part.k_BKSH.shape[2] for part in parts) <= keep:
        return parts
    # the bias of every part is its merit
    merit = [jnp.where(part.seen_BTS[:, None], m, HIDDEN) for part in parts if (m := part.bias_BN1S) is not None]
    every = jnp.concatenate(merit, -1)
    # exactly `keep` of them, the earliest of equals: repeated tokens are equals in the first layer
    _, best = jax.lax.top_k(every, keep)
    kept = put_last(jnp.full_like(every, HIDDEN), best, jnp.take_along_axis(every, best, -1))
    cuts = list(itertools.accumulate(m.shape[-1] for m in merit))[:-1]
    return [replace(part, bias_BN1S=m) for part, m in zip(parts, jnp.split(kept, cuts, -1), strict=True)]


def selective(op: Selective, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state with the new keys, values and merits)."""
    base, position_BT, whole = op.attention, call.coords_BTC[..., 0], replace(ctx, axis=None)
    heads = whole.heads(base)
    q, k, v_BTKH = (
        project(base, params, name, x_BTD, heads.queries if name == "q" else heads.kvs, whole) for name in "qkv"
    )
    q = turned(base, params, "q", q, position_BT, None, heads.queries, whole)
    k = turned(base, params, "k", k, position_BT, None, heads.kvs, whole)
    brought = {"k": k, "v": v_BTKH, "merit": merits(op, params, v_BTKH)}
    new = {name: kept(state, name, x) for name, x in brought.items()}

    def keys(held: Tree, places: Places) -> Keys:
        seen = visible(call.order_BT, call.span_BT, places.order_BS, places.span_BS, base.window)
        k_BKSH, v_BKSH = (view(held[name], q.dtype, places.table_BQ, after=q) for name in "kv")
        merit_BKS1 = view(held["merit"], jnp.float32, places.table_BQ)
        merit_BN1S = jnp.repeat(merit_BKS1, base.heads // base.kv_heads, axis=1).swapaxes(2, 3)
        return Keys(k_BKSH, v_BKSH, seen, merit_BN1S)

    present = keys(new, call.places)
    parts = [present]
    slots = call.slots[place_key(op)] if state is not None else None
    if state is not None and slots is not None and not ctx.fresh:
        parts = [keys(state, slots.past), present]

    def look(q_BTNH: Array, parts: Sequence[Keys]) -> Array:
        y_BTNH = attend(new["k"].codec.turn(q_BTNH), selected(parts, op.keep), scale=base.scale)
        return new["v"].codec.turn(y_BTNH)

    y = triangle(look, q, present, base.window) if ctx.fresh else look(q, parts)
    if state is not None and slots is not None:
        state = remember(state, slots, new, y[:, :, 0, 0], ctx)
    out = contract("BTNH,NHD->BTD", y, params["o"])
    return (out + params["o_bias"].astype(out.dtype)[None, None] if base.o_bias else out), state
