"""State space duality: one decay a head, so that the tokens of a chunk meet in products of matrices.

h[t] = exp(dt[t] A) h[t - 1] + dt[t] x[t] B[t]        y[t] = C[t] h[t] + skip x[t]

Letters: N heads, H features of a head, G groups of heads, S features of the state, U tokens that T looks back on.
Head counts are read from the weights: under shard_map they are local.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.chunks import EXACT, over_chunks
from forge_jax.ops.conv import convolved
from forge_jax.ops.mlp import activate
from forge_jax.params import Tree
from forge_jax.spec import Mamba2, Norm
from forge_jax.tensor import beside, contract, dense

CHUNK = 64  # tokens that look at each other in one product

Piece = tuple[Array, Array, Array, Array]


def step(a_N: Array, h_BNHS: Array, piece: Piece) -> tuple[Array, Array]:
    """The recurrence for one token (dt, x, B, C). Returns the state and C h."""
    dt_BN, x_BNH, b_BNS, c_BNS = (part[:, 0] for part in piece)
    decay_BN = jnp.exp(dt_BN * a_N[None])
    h_BNHS = decay_BN[..., None, None] * h_BNHS + (dt_BN[..., None] * x_BNH)[..., None] * b_BNS[:, :, None]
    return h_BNHS, (h_BNHS * c_BNS[:, :, None]).sum(-1)[:, None]


def recur(a_N: Array, h_BNHS: Array, piece: Piece) -> tuple[Array, Array]:
    """The recurrence over the tokens of a piece, as attention with decays, and what the state adds."""
    dt_BTN, x_BTNH, b_BTNS, c_BTNS = piece
    rate_BNT = (dt_BTN * a_N[None, None]).transpose(0, 2, 1)
    drive_BTNH = dt_BTN[..., None] * x_BTNH
    length = rate_BNT.shape[-1]
    # [t, u]: the sum of the rates after u up to t; differences of one running sum would cancel
    after_TU = np.tril(np.ones((length, length), bool), -1)
    sums_BNTU = jnp.cumsum(jnp.where(after_TU[None, None], rate_BNT[..., None], 0.0), axis=2)
    decay_BNTU = jnp.where(np.tril(np.ones((length, length), bool))[None, None], jnp.exp(sums_BNTU), 0.0)
    scores_BNTU = EXACT("BTNS,BUNS->BNTU", c_BTNS, b_BTNS) * decay_BNTU
    from_start_BTN = jnp.exp(jnp.cumsum(rate_BNT, axis=2)).transpose(0, 2, 1)
    to_end_BTN = decay_BNTU[:, :, -1].transpose(0, 2, 1)
    y_BTNH = EXACT("BNTU,BUNH->BTNH", scores_BNTU, drive_BTNH)
    y_BTNH = y_BTNH + EXACT("BTNS,BNHS->BTNH", c_BTNS * from_start_BTN[..., None], h_BNHS)
    h_BNHS = from_start_BTN[:, -1, :, None, None] * h_BNHS
    return h_BNHS + EXACT("BTNS,BTNH->BNHS", b_BTNS * to_end_BTN[..., None], drive_BTNH), y_BTNH


def grouped_norm(spec: Norm, scale_NH: Array, x_BTNH: Array, groups_N: Array, op: Mamba2, ctx: Context) -> Array:
    """Normalise over all heads of a group, float32. Padded heads are 0 and add nothing."""
    member_NG = jax.nn.one_hot(groups_N, op.groups, dtype=jnp.float32)
    total_BTG = ctx.psum(EXACT("BTN,NG->BTG", (x_BTNH * x_BTNH).sum(-1), member_NG))
    mean_BTG = total_BTG / (op.heads // op.groups * op.head_dim)
    inverse_BTN = jnp.take(jax.lax.rsqrt(mean_BTG + spec.eps), groups_N, axis=2)
    return x_BTNH * inverse_BTN[..., None] * scale_NH.astype(jnp.float32)[None, None]


def mamba2(op: Mamba2, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""
    scales: dict[str, float] = dict(zip(("z", "x", "b", "c", "dt_in"), op.scales, strict=True))

    def project(name: str, letters: str) -> Array:
        y = contract(f"BTD,D{letters}->BT{letters}", x_BTD, params[name])
        y = y + beside(params[f"{name}_bias"], y.ndim, y.dtype) if op.in_bias else y
        return y if scales[name] == 1.0 else y * scales[name]

    tails: Tree = {}
    parts: dict[str, Array] = {}
    for name, letters in (("x", "NH"), ("b", "GS"), ("c", "GS")):
        bias = params[f"{name}_conv_bias"] if op.conv_bias else None
        tail = state[f"{name}_tail"] if state is not None else None
        part, tails[f"{name}_tail"] = convolved(
            project(name, letters), params[f"{name}_conv"], bias, tail, call.order_BT
        )
        parts[name] = activate(op.act, part).astype(jnp.float32)
    heads, local = np.arange(params["x"].shape[1] * ctx.shards()), parts["x"].shape
    # padded heads come last and are 0; it does not matter whose B and C they take
    groups_N = ctx.local(jnp.asarray(np.minimum(heads // (op.heads // op.groups), op.groups - 1)))
    b_BTNS, c_BTNS = (jnp.take(parts[name], groups_N, axis=2) for name in ("b", "c"))

    dt_BTN = project("dt_in", "N").astype(jnp.float32) + params["dt_bias"].astype(jnp.float32)[None, None]
    dt_BTN = jnp.clip(jax.nn.softplus(dt_BTN), *op.dt_limit)
    dt_BTN = jnp.where((call.order_BT >= 0)[..., None], dt_BTN, 0.0)  # padding leaves the state alone
    a_N = -jnp.exp(dense(params["a_log"]).astype(jnp.float32))
    zeros = jnp.zeros((local[0], *local[2:], op.state), jnp.float32)
    start = ctx.own(zeros) if state is None else state["state"]
    piece = (dt_BTN, parts["x"], b_BTNS, c_BTNS)
    run = partial(step if local[1] == 1 else recur, a_N)
    h_BNHS, y_BTNH = over_chunks(run, start, piece, CHUNK)
    y_BTNH = y_BTNH + parts["x"] * params["skip"].astype(jnp.float32)[None, None, :, None]

    gate_BTNH = jax.nn.silu(project("z", "NH").astype(jnp.float32))
    y_BTNH = y_BTNH if op.norm_first else y_BTNH * gate_BTNH
    if op.norm is not None:
        y_BTNH = grouped_norm(op.norm, params["norm"]["scale"], y_BTNH, groups_N, op, ctx)
    y_BTNH = y_BTNH * gate_BTNH if op.norm_first else y_BTNH
    out = ctx.psum(contract("BTNH,NHD->BTD", y_BTNH.astype(x_BTD.dtype), params["out"]))
    out = out + beside(params["out_bias"], out.ndim, out.dtype) if op.out_bias else out
    return out, (tails | {"state": h_BNHS} if state is not None else None)
