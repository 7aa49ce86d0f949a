"""Multi-head latent attention (arXiv:2405.04434), in two forms that give the same numbers.

A cache holds one entry a token: the normed latent and the shared key. A prompt looks at itself expanded, with keys and
values for every head. What looks back on a cache is absorbed: queries are carried into the space of the entries, which
are then the only key and value of all heads, so that no entry is ever expanded again.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Stored, place_key, view
from forge_jax.ops.attention import kept, remember, triangle, visible
from forge_jax.ops.call import Call, Context
from forge_jax.ops.found import Keys, attend
from forge_jax.ops.gate import gated
from forge_jax.ops.indexer import index_keys, pick, turn_of
from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate
from forge_jax.params import Tree
from forge_jax.spec import Indexer, Latent
from forge_jax.tensor import beside, contract, dense


def project(params: Tree, name: str, eq: str, x: Array) -> Array:
    """A linear layer, with its bias where there is one."""
    y = contract(eq, x, params[name])
    bias = params.get(f"{name}_bias")
    return y if bias is None else y + beside(bias, y.ndim, y.dtype)


def query_source(op: Latent, params: Tree, x_BTD: Array) -> tuple[Array, Array]:
    """What an indexer's queries are read out of, and what the op's are: their latent, or the stream."""
    if op.q_rank is None:
        return x_BTD, x_BTD
    bare = project(params, "q_a", "BTD,DQ->BTQ", x_BTD)
    normed = norm(op.norm, params.get("q_norm", {}), bare)
    return normed, jnp.concatenate([normed, bare], -1) if op.q_raw else normed


def entries(op: Latent, params: Tree, x_BTD: Array) -> Array:
    """What each token leaves behind: [B, T, R + P], unrotated."""
    entry = project(params, "kv_a", "BTD,DR->BTR", x_BTD)
    latent = norm(op.norm, params.get("kv_norm", {}), entry[..., : op.rank])
    if op.latent_scale != 1.0:
        latent = latent * op.latent_scale
    shared = entry[..., op.rank :]
    if op.shared_norm is not None:
        shared = norm(op.shared_norm, params.get("shared_norm", {}), shared)
    return jnp.concatenate([latent, shared], -1)


def turned(op: Latent, x_BTNH: Array, position_BT: Array, length_B: Array | None) -> Array:
    """The last `rope_dim` features of queries or entries rotated."""
    if op.rope is None:
        return x_BTNH
    still = x_BTNH.shape[-1] - op.rope_dim
    rotated = rotate(op.rope, x_BTNH[..., still:], position_BT, length_B)
    return jnp.concatenate([x_BTNH[..., :still], rotated], -1)


def expanded(op: Latent, params: Tree, entry_BTR: Array) -> tuple[Array, Array]:
    """The keys and values of every head: [B, N, T, H + P] and [B, N, T, V]."""
    latent, shared = entry_BTR[..., : op.rank], entry_BTR[:, :, None, op.rank :]
    k, v = (contract("BTR,RNH->BTNH", latent, params[name]) for name in ("k", "v"))
    k = jnp.concatenate([k, jnp.broadcast_to(shared, (*k.shape[:3], op.rope_dim))], -1)
    return k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def absorbed(op: Latent, params: Tree, q_BTNH: Array) -> Array:
    """Queries that meet entries where they would have met keys: [B, T, N, R + P]."""
    still = contract("BTNH,RNH->BTNR", q_BTNH[..., : op.nope_dim], dense(params["k"]))
    return jnp.concatenate([still, q_BTNH[..., op.nope_dim :]], -1)


def latent_attention(op: Latent, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state with the new entries)."""
    # where frequencies depend on the length, the angle of an old key changes: keys are kept unrotated
    late = op.rope is not None and op.rope.varies
    length_B = call.order_BT.max(1) + 1 if late else None
    slots = call.slots[place_key(op)] if state is not None else None
    past = slots.past if slots is not None and not ctx.fresh else None

    def parts(name: str, bare_BT1R: Array, turn: Callable[..., Array]) -> tuple[list[Array], Stored]:
        """[B, 1, S, R] of the past, if there is one, and of the present, both rotated; and the present to be kept.

        They are in the basis of the slab's codec, except where keys turn late.
        """
        position_BT = call.coords_BTC[..., 0]
        new = kept(state, name, bare_BT1R if late else turn(bare_BT1R, position_BT, length_B))
        held = [(view(new, bare_BT1R.dtype), position_BT)]
        if past is not None and state is not None:
            old = view(state[name], bare_BT1R.dtype, past.table_BQ, after=bare_BT1R)
            held.insert(0, (old, jnp.maximum(past.order_BS, 0)))
        if not late:
            return [entry for entry, _ in held], new
        plain = [(new.codec.turn(entry).transpose(0, 2, 1, 3), position_BS) for entry, position_BS in held]
        return [turn(entry, position_BS, length_B).transpose(0, 2, 1, 3) for entry, position_BS in plain], new

    index_source, source = query_source(op, params, x_BTD)
    q = turned(op, contract("BTQ,QNH->BTNH", source, params["q"]), call.coords_BTC[..., 0], length_B)
    entry, new_entry = parts("entry", entries(op, params, x_BTD)[:, :, None], functools.partial(turned, op))
    new = {"entry": new_entry}
    into_basis = (lambda x: x) if late else new_entry.codec.turn
    seen = [visible(call.order_BT, call.span_BT, call.order_BT, call.span_BT, op.window)]
    if past is not None:
        seen.insert(0, visible(call.order_BT, call.span_BT, past.order_BS, past.span_BS, op.window))
    if isinstance(op.indexer, Indexer):
        p, turn = params["index"], functools.partial(turn_of(op.indexer), op.indexer.rope)
        keys, new["index"] = parts("index", index_keys(op.indexer, p, x_BTD), turn)
        q_BTNH = turn(contract("BTQ,QNH->BTNH", index_source, p["q"]), call.coords_BTC[..., 0], length_B)
        call.bus["picked"] = seen = pick(op.indexer, p, q_BTNH, x_BTD, keys, seen)
    elif op.indexer == "shared":
        seen = call.bus["picked"]

    look = functools.partial(attend, scale=op.scale, sinks_N=params["sinks"] if op.sinks else None)
    if past is None:
        expansion = Keys(*expanded(op, params, into_basis(entry[0][:, 0])), seen[0])
        y = triangle(look, q, expansion, op.window) if ctx.fresh else look(q, [expansion])
    else:
        # the whole entry serves as the value: cutting the shared key off would copy the cache
        views = [Keys(part, part, mask) for part, mask in zip(entry, seen, strict=True)]
        y = into_basis(look(into_basis(absorbed(op, params, q)), views))[..., : op.rank]
        y = contract("BTNR,RNH->BTNH", y, dense(params["v"]))

    y = gated(op.gate, params, source if op.q_raw else x_BTD, y)
    out = ctx.psum(contract("BTNH,NHD->BTD", y, params["o"]))
    if op.bias:
        out = out + beside(params["o_bias"], out.ndim, out.dtype)
    if state is not None and slots is not None:
        state = remember(state, slots, new, out[:, :, 0], ctx)
    return out, state
