"""Attention to the last tokens as they are, and to all of them in compressed form."""

import functools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.cache import Places, Stored, keep, place_key, put, view
from forge_jax.ops.attention import earliest, kept, remember, visible
from forge_jax.ops.call import Call, Context
from forge_jax.ops.compression import Entries, compress
from forge_jax.ops.found import BLOCK, Keys, attend
from forge_jax.ops.indexer import pick
from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate_last
from forge_jax.params import Tree
from forge_jax.spec import Compressed
from forge_jax.tensor import contract


def compressed(op: Compressed, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state with the new tokens and entries)."""
    position_BT = call.coords_BTC[..., 0]
    latent_BTQ = norm(op.norm, params.get("q_norm", {}), contract("BTD,DQ->BTQ", x_BTD, params["q_a"]))
    q_BTNH = norm(replace(op.norm, scale=False), {}, contract("BTQ,QNH->BTNH", latent_BTQ, params["q"]))
    q_BTNH = rotate_last(op.rope, q_BTNH, position_BT)
    kv_BTH = norm(op.norm, params.get("kv_norm", {}), contract("BTD,DH->BTH", x_BTD, params["kv"]))
    kv = kept(state, "kv", rotate_last(op.rope, kv_BTH[:, :, None], position_BT))

    def keys(kv: Stored, places: Places) -> Keys:
        seen_BTS = visible(call.order_BT, call.span_BT, places.order_BS, places.span_BS, op.window)
        kv_B1SH = kv.codec.turn(view(kv, x_BTD.dtype, places.table_BQ, after=x_BTD))
        return Keys(kv_B1SH, kv_B1SH, seen_BTS)

    near = [keys(kv, call.places)]
    slots = call.slots[place_key(op)] if state is not None else None
    if state is not None and slots is not None and not ctx.fresh:
        near.insert(0, keys(state["kv"], slots.past))
    far, new = entries(op, params, x_BTD, latent_BTQ, state, call, ctx)

    look = functools.partial(attend, scale=op.scale, sinks_N=params["sinks"])
    y_BTNH = prompt(op, look, q_BTNH, near[0], far) if ctx.fresh else look(q_BTNH, [*near, *far])
    y_BTNH = rotate_last(op.rope, y_BTNH, -position_BT)
    y_BTNR = contract("BTNH,NHR->BTNR", y_BTNH, params["o_a"])
    y_BTGR = jnp.einsum("BTNR,NG->BTGR", y_BTNR, membership(op, ctx, y_BTNR.shape[2]).astype(x_BTD.dtype))
    out_BTD = ctx.psum(contract("BTGR,GRD->BTD", y_BTGR, params["o_b"]))
    if state is not None and slots is not None:
        state = remember(state, slots, {"kv": kv}, out_BTD[:, :, 0], ctx) | new
    return out_BTD, state


def membership(op: Compressed, ctx: Context, held: int) -> Array:
    """[N, G]: the group of each head on this device; padding is in none."""
    group_N = np.arange(held * ctx.shards()) // (op.heads // op.groups)
    return ctx.local(jnp.asarray(group_N[:, None] == np.arange(op.groups)[None], jnp.float32))


def entries(
    op: Compressed, params: Tree, x_BTD: Array, latent_BTQ: Array, state: Tree | None, call: Call, ctx: Context
) -> tuple[list[Keys], Tree]:
    """The entries that each query looks at, and what the cache remembers of them."""
    if op.compression is None:
        return [], {}
    new: Tree = {}
    ring = lambda name: None if state is None or ctx.fresh else state[f"{name}_ring"]  # noqa: E731

    def all_of(name: str, made: Entries) -> tuple[Array, Array]:
        """All entries [B, 1, S, H] and which each is [B, S]."""
        entry_B1WH = made.entry_BWH[:, None]
        if state is None:
            return entry_B1WH, made.which_BW
        slab, entry = state[name], keep(entry_B1WH, state[name].codec)
        size = slab.shape[2]
        new[name] = slab = put(slab, jnp.where(made.which_BW < 0, size, made.which_BW), entry)
        new[f"{name}_ring"] = made.ring_BRC
        seen, which_BS = slab, jnp.broadcast_to(jnp.arange(size)[None], (x_BTD.shape[0], size))
        if ctx.fresh:
            seen, which_BS = entry, made.which_BW
        return slab.codec.turn(view(seen, x_BTD.dtype, after=x_BTD)), which_BS

    made = compress(op.compression, op.norm, op.rope, params["compression"], x_BTD, ring("entry"), call)
    entry_B1SH, which_BS = all_of("entry", made)
    # an entry is whole when its last token is there
    seen_BTS = which_BS[:, None] < ((call.order_BT + 1) // op.compression.every)[..., None]
    seen_BTS &= which_BS[:, None] >= 0
    if (indexer := op.compression.indexer) is not None:
        p = params["index"]
        made = compress(op.compression, indexer.norm, indexer.rope, p, x_BTD, ring("index"), call)
        q_BTNH = rotate_last(indexer.rope, contract("BTQ,QNH->BTNH", latent_BTQ, p["q"]), call.coords_BTC[..., 0])
        (seen_BTS,) = pick(indexer, p, q_BTNH, x_BTD, [all_of("index", made)[0]], [seen_BTS])
    return [Keys(entry_B1SH, entry_B1SH, seen_BTS)], new


def prompt(op: Compressed, look: functools.partial, q_BTNH: Array, near: Keys, far: list[Keys]) -> Array:
    """A prompt from its beginning, block by block of queries: keys that no query of a block sees cost nothing."""
    length = q_BTNH.shape[1]

    def block(start: int) -> Array:
        rows = slice(start, min(start + BLOCK, length))
        parts = [near.cut(rows, slice(earliest(start, op.window, None), rows.stop))]
        if op.compression is not None and (whole := rows.stop // op.compression.every):
            parts += [part.cut(rows, slice(whole)) for part in far]
        return look(q_BTNH[:, rows], parts)

    return jnp.concatenate([block(start) for start in range(0, length, BLOCK)], axis=1)
