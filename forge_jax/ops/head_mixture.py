"""A mixture of attention heads: queries and the way out are those of the experts that a token chose.

Letters: X experts that a token chose, R = B T X of those choices, C blocks of M rows of one expert. The queries of all
chosen experts stand beside each other, for each kv head, as a group has them. Head counts are local, as in `attention`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, export

from forge_jax import kernels
from forge_jax.ops.attention import attended, new_tokens, projections, query_length
from forge_jax.ops.call import Call, Context
from forge_jax.ops.heads import turned
from forge_jax.ops.moe import blocks
from forge_jax.ops.router import route
from forge_jax.params import Tree
from forge_jax.spec import HeadMixture
from forge_jax.tensor import Weight, beside, contract, dense, pick


def grouped(x_RI: Array, w_EIO: Weight, ids_R: Array, split: str) -> Array:
    """Each row through its expert, a block of rows at a time."""
    size, place_R, expert_C, _ = blocks(ids_R, w_EIO.shape[0])
    count = expert_C.shape[0]
    x_CMI = jnp.zeros((count * size, *x_RI.shape[1:]), x_RI.dtype).at[place_R].set(x_RI)
    x_CMI = x_CMI.reshape(count, size, *x_RI.shape[1:])
    y_CMO = jax.lax.map(lambda block: contract(split, block[0], pick(w_EIO, block[1])), (x_CMI, expert_C))
    return y_CMO.reshape(count * size, *y_CMO.shape[2:])[place_R]


def ragged(x_RI: Array, w_EIO: Weight, ids_R: Array) -> Array:
    """The same as one product of all rows, sorted by expert, with all experts: what accelerators have a kernel for."""
    order_R, inputs = jnp.argsort(ids_R, stable=True), x_RI.ndim - 1
    w = dense(w_EIO).astype(x_RI.dtype)
    x = x_RI[order_R].reshape(len(ids_R), -1)
    y = jax.lax.ragged_dot(x, w.reshape(w.shape[0], x.shape[1], -1), jnp.bincount(ids_R, length=w.shape[0]))
    return jnp.zeros_like(y).at[order_R].set(y).reshape(-1, *w.shape[1 + inputs :])


def through(x_RI: Array, w_EIO: Weight, ids_R: Array, split: str) -> Array:
    """Each row through the linear map of the expert it chose; `split` is the equation of one."""

    by_blocks = partial(grouped, split=split)
    if export.is_symbolic_dim(ids_R.shape[0]):
        return by_blocks(x_RI, w_EIO, ids_R)
    return kernels.by_platform(x_RI, w_EIO, ids_R, cpu=by_blocks, default=ragged)


def head_mixture(op: HeadMixture, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state with the new keys and values)."""
    base, chosen = op.attention, op.router.top_k
    b, t, d = x_BTD.shape
    ids_BTX, weight_BTX = route(op.router, params, x_BTD)
    ids_R = ids_BTX.reshape(-1)
    q_RKH = through(jnp.repeat(x_BTD.reshape(-1, d), chosen, axis=0), params["q"], ids_R, "MD,DKH->MKH")
    _, k, h = q_RKH.shape
    q_BTNH = q_RKH.reshape(b, t, chosen, k, h).swapaxes(2, 3).reshape(b, t, k * chosen, h)
    position_BT, length_B = call.coords_BTC[..., 0], query_length(base, call)
    q_BTNH = turned(base, params, "q", q_BTNH, position_BT, length_B, ctx.heads(base).queries, ctx)
    made = projections(base, params, "kv", x_BTD)
    new, _ = new_tokens(base, params, x_BTD, made, state, call, ctx)
    y_BTNH, state = attended(base, params, x_BTD, q_BTNH, new, state, call, ctx)
    y_RKH = y_BTNH.reshape(b, t, k, chosen, h).swapaxes(2, 3).reshape(-1, k, h)
    y_RD = through(y_RKH, params["o"], ids_R, "MKH,KHD->MD") * weight_BTX.reshape(-1, 1).astype(x_BTD.dtype)
    out = ctx.psum(y_RD.reshape(b, t, chosen, d).sum(2))
    return (out + beside(params["o_bias"], out.ndim, out.dtype) if base.o_bias else out), state
