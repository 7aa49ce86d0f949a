"""Time and channel mixing: averages of the past by decaying weights, and feed-forward layers that see one token back.

y[t] = sum of exp(w[s]) v[s] / sum of exp(w[s]) over s <= t; w[s] = k[s] - (t - 1 - s) exp(decay) for s < t,
w[t] = k[t] + bonus. Sums are kept divided by exp(top), their largest weight, so that no exponential overflows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.chunks import over_chunks
from forge_jax.ops.conv import causal_conv
from forge_jax.params import Tree
from forge_jax.spec import ChannelMix, Wkv
from forge_jax.tensor import contract

CHUNK = 64  # tokens whose sums are in memory together
NOTHING = -1e38  # the logarithm of a weight of 0, finite so that no NaN comes of it

Sums = tuple[Array, Array, Array]
"""Numerator, denominator, top."""


def add(first: Sums, then: Sums) -> Sums:
    """Two sums of weights as one."""
    top = jnp.maximum(first[2], then[2])
    a, b = jnp.exp(first[2] - top), jnp.exp(then[2] - top)
    return a * first[0] + b * then[0], a * first[1] + b * then[1], top


def average(decay_C: Array, bonus_C: Array, state: Sums, piece: tuple[Array, Array, Array]) -> tuple[Sums, Array]:
    """The sums after each token of a piece (k, v, 1 where the token is real), in parallel, and the averages."""
    k_BTC, v_BTC, real_BT = piece
    real_BTC = jnp.broadcast_to(real_BT[..., None] > 0, k_BTC.shape)
    rate_BTC = jnp.where(real_BTC, -jnp.exp(decay_C)[None, None], 0.0)

    def join(first: tuple[Array, Sums], then: tuple[Array, Sums]) -> tuple[Array, Sums]:
        num, den, top = first[1]
        return first[0] + then[0], add((num, den, top + then[0]), then[1])

    own = (v_BTC, jnp.ones_like(v_BTC), jnp.where(real_BTC, k_BTC, NOTHING))
    rate, sums = jax.lax.associative_scan(join, (rate_BTC, own), axis=1)
    num, den, top = (part[:, None] for part in state)
    after = add((num, den, top + rate), sums)
    before = tuple(jnp.concatenate([x[:, None], y[:, :-1]], 1) for x, y in zip(state, after, strict=True))
    num, den, _ = add((before[0], before[1], before[2]), (v_BTC, own[1], k_BTC + bonus_C[None, None]))
    return (after[0][:, -1], after[1][:, -1], after[2][:, -1]), num / den


def token_before(x_BTD: Array, state: Tree | None, call: Call) -> tuple[Array, Array]:
    """The token before each, 0 before the first, and the last one of each row."""
    one_back = jnp.broadcast_to(jnp.asarray([[1.0, 0.0]]), (x_BTD.shape[-1], 2))
    return causal_conv(x_BTD, one_back, None, state["before"] if state is not None else None, call.order_BT)


def mixed(params: Tree, name: str, x_BTD: Array, before_BTD: Array) -> Array:
    """One projection of a mix of each token and the one before it."""
    share = params[f"{name}_mix"].astype(x_BTD.dtype)
    return contract("BTD,DC->BTC", x_BTD * share + before_BTD * (1 - share), params[name])


def wkv(op: Wkv, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""
    before_BTD, last = token_before(x_BTD, state, call)
    k, v, r = (mixed(params, name, x_BTD, before_BTD).astype(jnp.float32) for name in ("k", "v", "r"))
    if state is None:
        nothing = ctx.own(jnp.zeros((k.shape[0], k.shape[2]), jnp.float32))
        start = (nothing, nothing, nothing + NOTHING)
    else:  # a new cache is all 0
        start = (state["num"], state["den"], jnp.where(state["den"] > 0, state["top"], NOTHING))
    run = partial(average, *(params[name].astype(jnp.float32) for name in ("decay", "bonus")))
    piece = (k, v, (call.order_BT >= 0).astype(jnp.float32))
    (num, den, top), y_BTC = over_chunks(run, start, piece, CHUNK)
    y_BTC = (jax.nn.sigmoid(r) * y_BTC).astype(x_BTD.dtype)
    out = ctx.psum(contract("BTC,CD->BTD", y_BTC, params["out"]))
    return out, ({"before": last, "num": num, "den": den, "top": top} if state is not None else None)


def channel_mix(op: ChannelMix, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state)."""
    before_BTD, last = token_before(x_BTD, state, call)
    hidden_BTF = jnp.square(jax.nn.relu(mixed(params, "up", x_BTD, before_BTD)))
    y = ctx.psum(contract("BTF,FD->BTD", hidden_BTF, params["down"]))
    y = jax.nn.sigmoid(mixed(params, "r", x_BTD, before_BTD)) * y
    return y, ({"before": last} if state is not None else None)
