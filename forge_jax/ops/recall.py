"""Attention over depth: streams that earlier layers have kept, instead of a sum of all."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.found import HIDDEN
from forge_jax.ops.norm import norm
from forge_jax.spec import Norm, Recall
from forge_jax.tensor import Weight, dense


def recall(op: Recall, query: Weight | None, x_BTD: Array, bus: dict[str, Any]) -> Array:
    """The mix of what is on the bus and of x, which joins it if the op says so: [B, T, D], or [B, T, Q, D].

    The bus holds as many places as the model will need, so that all layers find the same shape, and how many are used.
    """
    batch, length, dim = x_BTD.shape
    empty = (jnp.zeros((batch, length, op.count, dim), x_BTD.dtype), jnp.zeros((), jnp.int32))
    kept_BTSD, used = bus.get("kept", empty)
    if op.keep:
        bus["kept"] = (kept_BTSD.at[:, :, used].set(x_BTD, mode="drop"), used + 1)
    if query is None:
        return x_BTD
    states_BTSD = jnp.concatenate([kept_BTSD, x_BTD[:, :, None]], 2)
    query_QD = dense(query).reshape(-1, dim)
    there_S = (jnp.arange(op.count + 1) < used) | (jnp.arange(op.count + 1) == op.count)
    mix_BTQD = mix(query_QD, states_BTSD, op.eps, there_S).astype(x_BTD.dtype)
    return mix_BTQD if query_QD.shape[0] > 1 else mix_BTQD[:, :, 0]


def mix(query_QD: Array, states_BTSD: Array, eps: float, there_S: Array | None = None) -> Array:
    """For each query the mix of normalised states by their softmaxed products with it, float32 [B, T, Q, D].

    `there_S`: which states are; None: all of them.
    """
    states_BTSD = norm(Norm(eps, scale=False), {}, states_BTSD.astype(jnp.float32))
    score_BTQS = jnp.einsum("BTSD,QD->BTQS", states_BTSD, query_QD.astype(jnp.float32)) * states_BTSD.shape[-1] ** -0.5
    if there_S is not None:
        score_BTQS = jnp.where(there_S[None, None, None], score_BTQS, HIDDEN)
    return jnp.einsum("BTQS,BTSD->BTQD", jax.nn.softmax(score_BTQS), states_BTSD)
