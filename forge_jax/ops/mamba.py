"""Selective state space: a state [H, S] a head that decays and is written to as the token says.

h[t] = exp(dt[t] A) h[t - 1] + dt[t] x[t] B[t]        y[t] = C[t] h[t] + skip x[t]

Letters: N heads, H channels of a head, S features of the state, R rank of the step size.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.chunks import linear_scan, over_chunks
from forge_jax.ops.conv import causal_conv
from forge_jax.ops.mlp import activate
from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import Mamba
from forge_jax.tensor import beside, contract, dense

CHUNK = 64  # tokens whose states are in memory together


def recur(a_NHS: Array, h_BNHS: Array, piece: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
    """The recurrence over the tokens of a piece (dt, x, B, C), in parallel. Returns the last state and C h."""
    dt_BTNH, x_BTNH, b_BTNS, c_BTNS = piece
    decay = jnp.exp(dt_BTNH[..., None] * a_NHS[None, None])
    drive = (dt_BTNH * x_BTNH)[..., None] * b_BTNS[:, :, :, None]
    h_BTNHS = linear_scan(decay, drive, h_BNHS)
    return h_BTNHS[:, -1], (h_BTNHS * c_BTNS[:, :, :, None]).sum(-1)


def mamba(op: Mamba, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""
    batch, length, _ = x_BTD.shape

    def project(name: str) -> Array:
        y = contract("BTD,DNH->BTNH", x_BTD, params[name])
        return y + beside(params[f"{name}_bias"], y.ndim, y.dtype) if op.bias else y

    x_BTNH = project("x")
    shape = x_BTNH.shape[2:]
    y_BTC, tail_BCS = causal_conv(
        x_BTNH.reshape(batch, length, -1),
        dense(params["conv"]).reshape(-1, op.conv),
        params["conv_bias"].reshape(-1) if op.conv_bias else None,
        state["tail"].reshape(batch, -1, op.conv - 1) if state is not None else None,
        call.order_BT,
    )
    x_BTNH = activate(op.act, y_BTC).reshape(x_BTNH.shape)

    def low(name: str) -> Array:
        y = ctx.psum(contract("BTNH,NHR->BTNR", x_BTNH, params[name]))
        return norm(op.norm, params.get(f"{name}_norm", {}), y) if op.norm else y

    dt_BTNH = contract("BTNR,NRH->BTNH", low("dt_in"), params["dt"]).astype(jnp.float32)
    dt_BTNH = jax.nn.softplus(dt_BTNH + params["dt_bias"].astype(jnp.float32)[None, None])
    dt_BTNH = jnp.where((call.order_BT >= 0)[..., None, None], dt_BTNH, 0.0)  # padding leaves the state alone
    x, b, c = (part.astype(jnp.float32) for part in (x_BTNH, low("b"), low("c")))
    start = ctx.own(jnp.zeros((batch, *shape, op.state), jnp.float32)) if state is None else state["state"]
    a_NHS = -jnp.exp(dense(params["a_log"]).astype(jnp.float32))
    h_BNHS, y_BTNH = over_chunks(partial(recur, a_NHS), start, (dt_BTNH, x, b, c), CHUNK)

    y_BTNH = y_BTNH + x * params["skip"].astype(jnp.float32)[None, None]
    y_BTNH = (y_BTNH * jax.nn.silu(project("z").astype(jnp.float32))).astype(x_BTD.dtype)
    out = ctx.psum(contract("BTNH,NHD->BTD", y_BTNH, params["out"]))
    out = out + beside(params["out_bias"], out.ndim, out.dtype) if op.bias else out
    if state is not None:
        state = {"tail": tail_BCS.reshape(state["tail"].shape), "state": h_BNHS}
    return out, state
