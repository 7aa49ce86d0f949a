"""The real-gated linear recurrent unit: every channel fades at a rate of its own, which the input sets.

h[t] = a[t] h[t - 1] + sqrt(1 - a[t]^2) take[t] u[t],    log a[t] = -8 softplus(speed) forget[t]

u is the convolved input, take and forget are sigmoids. Nothing comes before the first token of a text, so that it
enters whole.
"""

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.chunks import over_chunks
from forge_jax.ops.conv import convolved
from forge_jax.ops.mlp import activate
from forge_jax.params import Tree
from forge_jax.spec import Lru
from forge_jax.tensor import contract

CHUNK = 256  # tokens whose states are made at once
RATE = 8.0  # of the paper

Piece = tuple[Array, Array]


def step(h_BNH: Array, piece: Piece) -> tuple[Array, Array]:
    """The recurrence for one token (log decay, input). Returns the state, twice."""
    rate_BNH, drive_BNH = (part[:, 0] for part in piece)
    h_BNH = jnp.exp(rate_BNH) * h_BNH + drive_BNH
    return h_BNH, h_BNH[:, None]


def recur(h_BNH: Array, piece: Piece) -> tuple[Array, Array]:
    """The recurrence over the tokens of a piece, as a scan of a tree."""

    def join(early: Piece, late: Piece) -> Piece:
        return early[0] + late[0], jnp.exp(late[0]) * early[1] + late[1]

    rates_BTNH, h_BTNH = jax.lax.associative_scan(join, piece, axis=1)
    h_BTNH = h_BTNH + jnp.exp(rates_BTNH) * h_BNH[:, None]
    return h_BTNH[:, -1], h_BTNH


def lru(op: Lru, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""

    def linear(name: str, eq: str, x: Array) -> Array:
        y = contract(eq, x, params[name])
        return y + params[f"{name}_bias"].astype(y.dtype)[None, None]

    u_BTNH = linear("x", "BTD,DNH->BTNH", x_BTD)
    tail = state["tail"] if state is not None else None
    u_BTNH, tail = convolved(u_BTNH, params["conv"], params["conv_bias"], tail, call.order_BT)
    forget, take = (linear(name, "BTNH,NHK->BTNK", u_BTNH).astype(jnp.float32) for name in ("forget", "take"))
    speed_NH = jax.nn.softplus(params["speed"].astype(jnp.float32))
    rate_BTNH = -RATE * speed_NH[None, None] * jax.nn.sigmoid(forget)
    size_BTNH = jnp.sqrt(-jnp.expm1(2 * rate_BTNH))
    order = call.order_BT[..., None, None]
    drive_BTNH = jnp.where(order == 0, 1.0, size_BTNH) * jax.nn.sigmoid(take) * u_BTNH.astype(jnp.float32)
    # padding leaves the state alone
    piece = (jnp.where(order >= 0, rate_BTNH, 0.0), jnp.where(order >= 0, drive_BTNH, 0.0))
    batch, length, *heads = rate_BTNH.shape
    start = ctx.own(jnp.zeros((batch, *heads), jnp.float32)) if state is None else state["state"]
    last, h_BTNH = over_chunks(step if length == 1 else recur, start, piece, CHUNK)
    y_BTNH = activate(op.act, linear("y", "BTD,DNH->BTNH", x_BTD)) * h_BTNH.astype(x_BTD.dtype)
    out = ctx.psum(contract("BTNH,NHD->BTD", y_BTNH, params["out"]))
    out = out + params["out_bias"].astype(out.dtype)[None, None]
    return out, {"tail": tail, "state": last} if state is not None else None
