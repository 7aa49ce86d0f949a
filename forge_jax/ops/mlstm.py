"""Matrix memory with exponential gates. All weights are kept relative to the largest, whose logarithm is m.

m[t] = max(f[t] + m[t - 1], i[t]),    f the logarithm of the forget gate, i the input gate, which is a logarithm
S[t] = exp(f[t] + m[t - 1] - m[t]) S[t - 1] + exp(i[t] - m[t]) k[t] (v[t], 1)
y[t] = q[t] S[t] of the values / (max(|q[t] S[t] of the 1|, exp(-m[t])) + eps)

Letters: N heads, H features of queries and keys, V of values, U tokens that T looks back on.
Head counts are read from the weights: under shard_map they are local.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.chunks import EXACT, over_chunks
from forge_jax.ops.gate import gated
from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import Mlstm
from forge_jax.tensor import beside, contract

CHUNK = 64  # tokens that look at each other in one product

Piece = tuple[Array, Array, Array, Array, Array, Array]


def step(eps: float, state: Tree, piece: Piece) -> tuple[Tree, Array]:
    """The recurrence for one token (q, k, v, i, f, whether it is real). Returns the state and y."""
    q_BNH, k_BNH, v_BNV, i_BN, f_BN, real_B1 = (part[:, 0] for part in piece)
    i_BN = jnp.where(real_B1, i_BN, -jnp.inf)
    top_BN = jnp.maximum(f_BN + state["top"], i_BN)
    old_BN, new_BN = jnp.exp(f_BN + state["top"] - top_BN), jnp.exp(i_BN - top_BN)
    write_BNH = new_BN[..., None] * k_BNH
    values_BNHV = old_BN[..., None, None] * state["values"] + write_BNH[..., None] * v_BNV[:, :, None]
    keys_BNH = old_BN[..., None] * state["keys"] + write_BNH
    read_BNV, size_BN = EXACT("BNH,BNHV->BNV", q_BNH, values_BNHV), EXACT("BNH,BNH->BN", q_BNH, keys_BNH)
    y_BNV = read_BNV / (jnp.maximum(jnp.abs(size_BN), jnp.exp(-top_BN)) + eps)[..., None]
    return {"values": values_BNHV, "keys": keys_BNH, "top": top_BN}, y_BNV[:, None]


def recur(eps: float, state: Tree, piece: Piece) -> tuple[Tree, Array]:
    """The recurrence over the tokens of a piece, as attention whose scores have signs, and what the state adds."""
    q_BTNH, k_BTNH, v_BTNV, i_BTN, f_BTN, real_BT1 = piece
    i_BNT = jnp.where(real_BT1, i_BTN, -jnp.inf).transpose(0, 2, 1)
    f_BNT = f_BTN.transpose(0, 2, 1)
    length = f_BNT.shape[-1]
    # [t, u]: the sum of f after u up to t; differences of one running sum would cancel
    after_TU, upto_TU = (np.tril(np.ones((length, length), bool), k)[None, None] for k in (-1, 0))
    sums_BNTU = jnp.cumsum(jnp.where(after_TU, f_BNT[..., None], 0.0), axis=2)
    weight_BNTU = jnp.where(upto_TU, sums_BNTU + i_BNT[:, :, None], -jnp.inf)
    past_BNT = jnp.cumsum(f_BNT, axis=2) + state["top"][..., None]
    top_BNT = jnp.maximum(past_BNT, weight_BNTU.max(-1))
    weight_BNTU, past_BNT = jnp.exp(weight_BNTU - top_BNT[..., None]), jnp.exp(past_BNT - top_BNT)

    scores_BNTU = EXACT("BTNH,BUNH->BNTU", q_BTNH, k_BTNH) * weight_BNTU
    read_BNTV = EXACT("BNTU,BUNV->BNTV", scores_BNTU, v_BTNV)
    read_BNTV = read_BNTV + EXACT("BTNH,BNHV->BNTV", q_BTNH, state["values"]) * past_BNT[..., None]
    size_BNT = scores_BNTU.sum(-1) + EXACT("BTNH,BNH->BNT", q_BTNH, state["keys"]) * past_BNT
    y_BNTV = read_BNTV / (jnp.maximum(jnp.abs(size_BNT), jnp.exp(-top_BNT)) + eps)[..., None]

    left_BN, write_BTNH = past_BNT[..., -1], k_BTNH * weight_BNTU[:, :, -1].transpose(0, 2, 1)[..., None]
    values_BNHV = left_BN[..., None, None] * state["values"] + EXACT("BTNH,BTNV->BNHV", write_BTNH, v_BTNV)
    keys_BNH = left_BN[..., None] * state["keys"] + write_BTNH.sum(1)
    return {"values": values_BNHV, "keys": keys_BNH, "top": top_BNT[..., -1]}, y_BNTV.transpose(0, 2, 1, 3)


def mlstm(op: Mlstm, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""

    def project(name: str, bias: bool = op.bias) -> Array:
        letters = "NH"[: params[name].ndim - 1]
        y = contract(f"BTD,D{letters}->BT{letters}", x_BTD, params[name])
        return (y + beside(params[f"{name}_bias"], y.ndim, y.dtype) if bias else y).astype(jnp.float32)

    def capped(name: str) -> Array:
        z_BTN = project(name, bias=True)
        return z_BTN if op.cap is None else op.cap * jnp.tanh(z_BTN / op.cap)

    q_BTNH, k_BTNH, v_BTNV = (project(name) for name in "qkv")
    real_BT1 = (call.order_BT >= 0)[..., None]  # padding leaves the state alone
    forget_BTN = jnp.where(real_BT1, jax.nn.log_sigmoid(capped("forget")), 0.0)
    piece = (q_BTNH * op.key_dim**-0.5, k_BTNH, v_BTNV, capped("input"), forget_BTN, real_BT1)
    if state is None:
        batch, length, heads, features = k_BTNH.shape
        shapes = {"values": (features, v_BTNV.shape[-1]), "keys": (features,), "top": ()}
        start = {name: ctx.own(jnp.zeros((batch, heads, *shape))) for name, shape in shapes.items()}
    else:
        start, length = state, x_BTD.shape[1]
    after, y_BTNV = over_chunks(partial(step if length == 1 else recur, op.eps), start, piece, CHUNK)
    y_BTNV = norm(op.norm, params["norm"], y_BTNV)
    y_BTNV = gated(op.gate, params, x_BTD, y_BTNV)
    out = ctx.psum(contract("BTNV,NVD->BTD", y_BTNV.astype(x_BTD.dtype), params["o"]))
    out = out + beside(params["o_bias"], out.ndim, out.dtype) if op.bias else out
    return out, after if state is not None else None
