"""The gated delta rule: before a token is added to the state, what the state says of its key is taken out of it.

S[t] = D[t] S[t - 1] + beta[t] k[t] (v[t] - k[t] D[t] S[t - 1])        y[t] = q[t] S[t],    D[t] a decay of key features

Letters: K key heads, N value heads, H key features, V value features, U tokens that T looks back on, G is H or 1 (one
decay for all features). Head counts are read from the weights: under shard_map they are local.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.chunks import EXACT, over_chunks
from forge_jax.ops.conv import convolved
from forge_jax.ops.mlp import activate
from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import Decay, DeltaNet
from forge_jax.tensor import contract, dense

CHUNK = {"head": 64, "feature": 16}  # tokens that look at each other at once; decays of features make T U H numbers
EPS = 1e-6  # under the root of a query's or key's squared length

Piece = tuple[Array, Array, Array, Array, Array]


def step(s_BNHV: Array, piece: Piece) -> tuple[Array, Array]:
    """The recurrence for one token (q, k, v, log decay, beta). Returns the state and y."""
    q_BNH, k_BNH, v_BNV, rate_BNG, beta_BN = (part[:, 0] for part in piece)
    s_BNHV = s_BNHV * jnp.exp(rate_BNG)[..., None]
    wrong_BNV = v_BNV - EXACT("BNH,BNHV->BNV", k_BNH, s_BNHV)
    s_BNHV = s_BNHV + k_BNH[..., None] * (beta_BN[..., None] * wrong_BNV)[:, :, None]
    return s_BNHV, EXACT("BNH,BNHV->BNV", q_BNH, s_BNHV)[:, None]


def decayed(a_BTNH: Array, b_BTNH: Array, decay_BNTUG: Array) -> Array:
    """[B, N, T, U]: the product of a at t with b at u, each feature times its decay from u to t."""
    if decay_BNTUG.shape[-1] == 1:
        return EXACT("BTNH,BUNH->BNTU", a_BTNH, b_BTNH) * decay_BNTUG[..., 0]
    return EXACT("BTNH,BUNH,BNTUH->BNTU", a_BTNH, b_BTNH, decay_BNTUG)


def recur(s_BNHV: Array, piece: Piece) -> tuple[Array, Array]:
    """The recurrence over the tokens of a piece: their corrections solve one triangular system."""
    q_BTNH, k_BTNH, v_BTNV, rate_BTNG, beta_BTN = piece
    rate_BNTG, beta_BNT = rate_BTNG.transpose(0, 2, 1, 3), beta_BTN.transpose(0, 2, 1)
    length = rate_BNTG.shape[2]
    # [t, u]: the sum of the rates after u up to t; differences of one running sum would cancel
    after_TU, upto_TU = (np.tril(np.ones((length, length), bool), k)[None, None, ..., None] for k in (-1, 0))
    sums_BNTUG = jnp.cumsum(jnp.where(after_TU, rate_BNTG[:, :, :, None], 0.0), axis=2)
    decay_BNTUG = jnp.where(upto_TU, jnp.exp(sums_BNTUG), 0.0)
    since_BTNG = jnp.exp(jnp.cumsum(rate_BTNG, axis=1))  # what is left of the state
    until_BTNG = decay_BNTUG[:, :, -1].transpose(0, 2, 1, 3)  # what will be left of a token

    wrong_BNTV = (v_BTNV - EXACT("BTNH,BNHV->BTNV", k_BTNH * since_BTNG, s_BNHV)).transpose(0, 2, 1, 3)
    system_BNTU = beta_BNT[..., None] * decayed(k_BTNH, k_BTNH, decay_BNTUG)
    fix_BNTV = jax.lax.linalg.triangular_solve(
        system_BNTU, beta_BNT[..., None] * wrong_BNTV, left_side=True, lower=True, unit_diagonal=True
    )
    y_BTNV = EXACT("BNTU,BNUV->BTNV", decayed(q_BTNH, k_BTNH, decay_BNTUG), fix_BNTV)
    y_BTNV = y_BTNV + EXACT("BTNH,BNHV->BTNV", q_BTNH * since_BTNG, s_BNHV)
    s_BNHV = since_BTNG[:, -1, :, :, None] * s_BNHV
    return s_BNHV + EXACT("BTNH,BNTV->BNHV", k_BTNH * until_BTNG, fix_BNTV), y_BTNV


def unit(x: Array) -> Array:
    """Vectors of length 1, but for one of almost none."""
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + EPS)


def mapped(params: Tree, name: str, rank: int | None, x_BTD: Array) -> Array:
    """A linear map of x to heads or their features, of low rank or not."""
    if rank is not None:
        x_BTD = contract("BTD,DR->BTR", x_BTD, params[f"{name}_in"])
    letters = "NH"[: params[name].ndim - 1]
    return contract(f"BTD,D{letters}->BT{letters}", x_BTD, params[name])


def log_decay(decay: Decay, params: Tree, x_BTD: Array) -> Array:
    """The logarithm of what each token leaves of the state, float32 [B, T, N, H or 1]."""
    z = mapped(params, "decay", decay.rank, x_BTD).astype(jnp.float32)
    z = z + params["dt_bias"].astype(jnp.float32)[None, None]
    z_BTNG = z if decay.over == "feature" else z[..., None]
    speed_N = jnp.exp(dense(params["a_log"]).astype(jnp.float32))[None, None, :, None]
    return -speed_N * jax.nn.softplus(z_BTNG) if decay.floor is None else decay.floor * jax.nn.sigmoid(speed_N * z_BTNG)


def delta_net(op: DeltaNet, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""
    memory: Tree = {}
    parts: dict[str, Array] = {}
    for name in "qkv":
        tail = state[f"{name}_tail"] if state is not None else None
        part = mapped(params, name, None, x_BTD)
        y, memory[f"{name}_tail"] = convolved(part, params[f"{name}_conv"], None, tail, call.order_BT)
        parts[name] = activate(op.act, y).astype(jnp.float32)
    v_BTNV, group = parts["v"], parts["v"].shape[2] // parts["k"].shape[2]
    q_BTNH, k_BTNH = (jnp.repeat(unit(parts[name]), group, axis=2) for name in "qk")
    beta_BTN = op.beta_scale * jax.nn.sigmoid(mapped(params, "beta", None, x_BTD).astype(jnp.float32))
    real_BT1 = (call.order_BT >= 0)[..., None]  # padding leaves the state alone
    piece = (
        q_BTNH * op.key_dim**-0.5,
        k_BTNH,
        v_BTNV,
        jnp.where(real_BT1[..., None], log_decay(op.decay, params, x_BTD), 0.0),
        jnp.where(real_BT1, beta_BTN, 0.0),
    )
    batch, length, heads, features = k_BTNH.shape
    zeros = jnp.zeros((batch, heads, features, v_BTNV.shape[-1]), jnp.float32)
    start = ctx.own(zeros) if state is None else state["state"]
    memory["state"], y_BTNV = over_chunks(step if length == 1 else recur, start, piece, CHUNK[op.decay.over])
    gate_BTNV = mapped(params, "gate", op.gate_rank, x_BTD).astype(jnp.float32)
    y_BTNV = norm(op.norm, params.get("norm", {}), y_BTNV) * activate(op.gate, gate_BTNV)
    out = ctx.psum(contract("BTNV,NVD->BTD", y_BTNV.astype(x_BTD.dtype), params["o"]))
    return out, memory if state is not None else None
