"""Another pass through layers, and messages to it from the one before."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.norm import norm
from forge_jax.ops.recall import mix
from forge_jax.params import Tree
from forge_jax.spec import Again, Message
from forge_jax.tensor import contract, dense


def again(op: Again, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """The stream with which the pass began; messages are left, and what was kept since is forgotten."""
    kept_BTSD, used = call.bus["kept"]
    since_BTSD = kept_BTSD[:, :, op.first + 1 : op.first + op.count]
    call.bus["messages"] = jnp.concatenate([since_BTSD, x_BTD[:, :, None]], 2)
    call.bus["kept"] = (kept_BTSD, jnp.full_like(used, op.first))
    return kept_BTSD[:, :, op.first], state


def informed(op: Message, params: Tree, x: Array, bus: dict[str, Any]) -> Array:
    """x [B, T, D] or [B, T, S, D] mixed with messages: as many streams as the op has, [B, T, D] of a single one."""
    query_SD = jnp.stack([dense(params[name]["query"]) for name in op.streams])
    message_BTSD = mix(query_SD, bus["messages"], op.eps)
    x_BTSD = jnp.broadcast_to(x if x.ndim == 4 else x[:, :, None], message_BTSD.shape)
    told = [
        gated(op, params[name], x_BTSD[:, :, i], message_BTSD[:, :, i]).astype(x.dtype)
        for i, name in enumerate(op.streams)
    ]
    return jnp.stack(told, 2) if len(told) > 1 else told[0]


def gated(op: Message, params: Tree, x_BTD: Array, message_BTD: Array) -> Array:
    """(1 - tanh(f)) x + tanh(g) m, float32."""
    both_BTSD = jnp.stack([x_BTD.astype(jnp.float32), message_BTD], 2)
    seen_BTSD = norm(op.norm, {}, both_BTSD).astype(x_BTD.dtype)
    low_BTR = contract("BTSD,SDR->BTR", seen_BTSD, params["down"]).astype(jnp.float32)
    forget_BTD, gain_BTD = (jnp.tanh(contract("BTR,RD->BTD", low_BTR, params[name])) for name in ("forget", "gain"))
    return (1 - forget_BTD) * both_BTSD[:, :, 0] + gain_BTD * both_BTSD[:, :, 1]
