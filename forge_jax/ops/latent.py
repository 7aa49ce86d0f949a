"""Multi-head latent attention (arXiv:2405.04434), in two forms that give the same numbers.

A cache holds one entry a token: the normed latent and the shared key. A prompt looks at itself expanded, with keys and
values for every head. What looks back on a cache is absorbed: queries are carried into the space of the entries, which
are then the only key and value of all heads, so that no entry is ever expanded again.
"""

import functools

import jax.numpy as jnp
from jax import Array

from forge_jax.cache import place_key
from forge_jax.ops.attention import Keys, attend, remember, triangle, visible
from forge_jax.ops.call import Call, Context
from forge_jax.ops.gate import gated
from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate
from forge_jax.params import Tree
from forge_jax.spec import Latent
from forge_jax.tensor import contract, dense


def project(params: Tree, name: str, eq: str, x: Array) -> Array:
    """A linear layer, with its bias where there is one."""
    y = contract(eq, x, params[name])
    bias = params.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(y.dtype)[None, None]


def queries(op: Latent, params: Tree, x_BTD: Array) -> Array:
    """[B, T, N, H + P], unrotated."""
    if op.q_rank is not None:
        x_BTD = norm(op.norm, params.get("q_norm", {}), project(params, "q_a", "BTD,DQ->BTQ", x_BTD))
    return contract("BTQ,QNH->BTNH", x_BTD, params["q"])


def entries(op: Latent, params: Tree, x_BTD: Array) -> Array:
    """What each token leaves behind: [B, T, R + P], unrotated."""
    entry = project(params, "kv_a", "BTD,DR->BTR", x_BTD)
    latent = norm(op.norm, params.get("kv_norm", {}), entry[..., : op.rank])
    if op.latent_scale != 1.0:
        latent = latent * op.latent_scale
    return jnp.concatenate([latent, entry[..., op.rank :]], -1)


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
    position_BT = call.coords_BTC[..., 0]
    # where frequencies depend on the length, the angle of an old key changes: keys are kept unrotated
    late = op.rope is not None and op.rope.varies
    length_B = call.order_BT.max(1) + 1 if late else None
    turn = functools.partial(turned, op, length_B=length_B)
    q = turn(queries(op, params, x_BTD), position_BT)
    bare_BT1R = entries(op, params, x_BTD)[:, :, None]
    entry_BT1R = turn(bare_BT1R, position_BT)
    stored_B1TR = (bare_BT1R if late else entry_BT1R).transpose(0, 2, 1, 3)

    look = functools.partial(attend, scale=op.scale)
    seen_BTT = visible(call.order_BT, call.span_BT, call.order_BT, call.span_BT)
    slots = call.slots[place_key(op)] if state is not None else None
    if state is None or slots is None or ctx.fresh:
        keys = Keys(*expanded(op, params, entry_BT1R[:, :, 0]), seen_BTT)
        y = triangle(look, q, keys) if ctx.fresh else look(q, [keys])
    else:
        past, order_BS = state["entry"].astype(q.dtype), slots.past.order_BS
        if late:
            past = turn(past.transpose(0, 2, 1, 3), jnp.maximum(order_BS, 0)).transpose(0, 2, 1, 3)
        seen_BTS = visible(call.order_BT, call.span_BT, order_BS, slots.past.span_BS)
        present = entry_BT1R.transpose(0, 2, 1, 3)
        # the whole entry serves as the value: cutting the shared key off would copy the cache
        parts = [Keys(past, past, seen_BTS), Keys(present, present, seen_BTT)]
        y = look(absorbed(op, params, q), parts)[..., : op.rank]
        y = contract("BTNR,RNH->BTNH", y, dense(params["v"]))

    y = gated(op.gate, params, x_BTD, y)
    out = ctx.psum(contract("BTNH,NHD->BTD", y, params["o"]))
    if op.bias:
        out = out + params["o_bias"].astype(out.dtype)[None, None]
    if state is not None and slots is not None:
        state = remember(state, slots, {"entry": stored_B1TR}, out[:, :, 0], ctx)
    return out, state
