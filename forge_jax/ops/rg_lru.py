"""The real-gated linear recurrent unit: every channel forgets by a gate, and takes in as much as it has forgotten.

a[t] = exp(-8 softplus(rate) sigmoid(forget[t]))        h[t] = a[t] h[t - 1] + sqrt(1 - a[t]^2) sigmoid(enter[t]) x[t]

The first token of a sequence enters whole. Letters: N heads, H and I channels of a head. Head counts are read from the
weights: under shard_map they are local.
"""

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.chunks import linear_scan, over_chunks
from forge_jax.ops.conv import convolved
from forge_jax.ops.mlp import activate
from forge_jax.params import Tree
from forge_jax.spec import RgLru
from forge_jax.tensor import contract, dense

CHUNK = 256  # tokens whose states are in memory together
SPEED = 8.0  # the paper's c
LEAST = 1e-12  # under the root, whose slope at 0 is infinite


def recur(h_BNH: Array, piece: tuple[Array, Array]) -> tuple[Array, Array]:
    """The recurrence over the tokens of a piece (log decay, what is added). Returns the last state, and all of them."""
    log_a_BTNH, added_BTNH = piece
    h_BTNH = linear_scan(jnp.exp(log_a_BTNH), added_BTNH, h_BNH)
    return h_BTNH[:, -1], h_BTNH


def gated(params: Tree, x_BTNH: Array, order_BT: Array) -> tuple[Array, Array]:
    """The log of what each token leaves of the state, and what it adds, float32 [B, T, N, H]; 0 and 0 for padding."""

    def gate(name: str) -> Array:
        y_BTNI = contract("BTNH,NHI->BTNI", x_BTNH, params[name]).astype(jnp.float32)
        return jax.nn.sigmoid(y_BTNI + params[f"{name}_bias"].astype(jnp.float32)[None, None])

    rate_NH = jax.nn.softplus(dense(params["rate"]).astype(jnp.float32))
    log_a_BTNH = -SPEED * gate("forget") * rate_NH[None, None]
    # 1 - a^2, without the cancellation near a = 1
    part_BTNH = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a_BTNH), LEAST))
    first, real = (mark_BT[..., None, None] for mark_BT in (order_BT == 0, order_BT >= 0))
    added_BTNH = jnp.where(first, 1.0, part_BTNH) * gate("enter") * x_BTNH.astype(jnp.float32)
    log_a_BTNH = jnp.where(first, -jnp.inf, log_a_BTNH)
    return jnp.where(real, log_a_BTNH, 0.0), jnp.where(real, added_BTNH, 0.0)


def rg_lru(op: RgLru, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""

    def project(name: str) -> Array:
        y = contract("BTD,DNH->BTNH", x_BTD, params[name])
        return y + params[f"{name}_bias"].astype(y.dtype)[None, None]

    tail = state["tail"] if state is not None else None
    x_BTNH, tail = convolved(project("x"), params["conv"], params["conv_bias"], tail, call.order_BT)
    batch, _, heads, size = x_BTNH.shape
    start = ctx.own(jnp.zeros((batch, heads, size), jnp.float32)) if state is None else state["state"]
    h_BNH, y_BTNH = over_chunks(recur, start, gated(params, x_BTNH, call.order_BT), CHUNK)
    y_BTNH = y_BTNH.astype(x_BTD.dtype) * activate(op.act, project("z"))
    out = ctx.psum(contract("BTNH,NHD->BTD", y_BTNH, params["out"]))
    out = out + params["out_bias"].astype(out.dtype)[None, None]
    return out, {"tail": tail, "state": h_BNH} if state is not None else None
