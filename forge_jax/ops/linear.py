"""Linear attention: a state that maps keys to values takes the place of what was seen, and fades with each token.

S[t] = exp(-rate) S[t - 1] + k[t] v[t]        y[t] = q[t] S[t]

This is the recurrence of state space duality with a step of 1, values for x, keys for B and queries for C. Letters: N
heads, H features of a head. Head counts are read from the weights: under shard_map they are local.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.chunks import over_chunks
from forge_jax.ops.gate import gated
from forge_jax.ops.heads import over_heads
from forge_jax.ops.mamba2 import CHUNK, recur, step
from forge_jax.ops.mlp import activate
from forge_jax.params import Tree
from forge_jax.spec import LinearAttention
from forge_jax.tensor import contract


def linear_attention(op: LinearAttention, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""
    q, k, v = (activate(op.act, contract("BTD,DNH->BTNH", x_BTD, params[name])).astype(jnp.float32) for name in "qkv")
    batch, length, local, size = v.shape
    slots = np.arange(local * ctx.shards())
    rate_N = ctx.local(jnp.asarray(op.rate * op.ratio**slots, jnp.float32))
    # padding leaves the state alone
    step_BTN = jnp.broadcast_to((call.order_BT >= 0).astype(jnp.float32)[..., None], (batch, length, local))
    start = ctx.own(jnp.zeros((batch, local, size, size), jnp.float32)) if state is None else state["state"]
    run = partial(step if length == 1 else recur, -rate_N)
    s_BNHH, y_BTNH = over_chunks(run, start, (step_BTN, v, k, q), CHUNK)
    heads = tuple(np.where(slots < op.heads, slots, -1).tolist())  # padded heads come last, and are 0
    y_BTNH = over_heads(op.norm, params.get("norm", {}), y_BTNH.astype(x_BTD.dtype), heads, ctx)
    y_BTNH = gated(op.gate, params, x_BTD, y_BTNH)
    out = ctx.psum(contract("BTNH,NHD->BTD", y_BTNH, params["o"]))
    return out, {"state": s_BNHH} if state is not None else None
