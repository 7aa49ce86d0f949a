"""Several streams, of which each branch of a layer sees a mixture, and to each of which it adds what it gives.

Everything about the mixture is computed in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import GatedStreams, Hyper
from forge_jax.tensor import contract, dense

Join = Callable[[Array], Array]


def mixed(op: GatedStreams | Hyper, params: Tree, x_BTSD: Array) -> tuple[Array, Join]:
    """What a branch sees [B, T, D], and the function from what it gives [B, T, D] to the streams after it."""
    wide_BTSD = x_BTSD.astype(jnp.float32)
    if isinstance(op, GatedStreams):
        read_BTD, reach_BTS = gated(op, params, wide_BTSD)
        kept_BTSD = wide_BTSD
    else:
        read_BTD, reach_BTS, kept_BTSD = hyper(op, params, wide_BTSD)

    def join(y_BTD: Array) -> Array:
        return (kept_BTSD + reach_BTS[..., None] * y_BTD.astype(jnp.float32)[:, :, None]).astype(x_BTSD.dtype)

    return read_BTD.astype(x_BTSD.dtype), join


def gated(op: GatedStreams, params: Tree, x_BTSD: Array) -> tuple[Array, Array]:
    """What a branch sees, and how much each stream gets [B, T, S]; the head of a model gives nothing."""
    normed_BTSD = norm(op.norm, params.get("norm", {}), x_BTSD)
    hidden_BTR = jax.nn.silu(contract("BTSD,SDR->BTR", normed_BTSD, params["down"]) / op.count)
    gate_BTSD = jax.nn.sigmoid(contract("BTR,RSD->BTSD", hidden_BTR, params["up"]))
    read_BTD = (gate_BTSD * normed_BTSD).mean(2)
    if "inject" not in params:
        return read_BTD, jnp.zeros(x_BTSD.shape[:3])
    return read_BTD, 2 * jax.nn.sigmoid(contract("BTSD,SDR->BTR", normed_BTSD, params["inject"]) / op.count)


def hyper(op: Hyper, params: Tree, x_BTSD: Array) -> tuple[Array, Array, Array]:
    """What a branch sees, how much each stream gets [B, T, S], and the streams that get it."""
    normed_BTSD = norm(op.norm, {}, x_BTSD, features=2)
    z_BTW = contract("BTSD,SDW->BTW", normed_BTSD, params["z"])
    base_W, scale_K = (dense(params[name]).astype(jnp.float32) for name in ("base", "scale"))

    def affine(kind: int, first: int, size: int) -> Array:
        here = slice(first, first + size)
        return z_BTW[..., here] * scale_K[kind] + base_W[None, None, here]

    count = op.count
    read_BTD = ((jax.nn.sigmoid(affine(0, 0, count)) + op.eps)[..., None] * x_BTSD).sum(2)
    if len(base_W) == count:  # the head of a model gives nothing
        return read_BTD, jnp.zeros(x_BTSD.shape[:3]), x_BTSD
    reach_BTS = op.reach * jax.nn.sigmoid(affine(1, count, count)) + op.reach_eps
    if not op.sinkhorn:
        return read_BTD, reach_BTS, x_BTSD
    z_BTSR = affine(2, 2 * count, count**2).reshape(*x_BTSD.shape[:2], count, count)
    return read_BTD, reach_BTS, jnp.einsum("BTSR,BTSD->BTRD", doubly_stochastic(op, z_BTSR), x_BTSD)


def doubly_stochastic(op: Hyper, z_BTSR: Array) -> Array:
    """Matrices of positive numbers whose columns, then rows, are made to sum to 1, again and again, columns last."""
    mix = jax.nn.softmax(z_BTSR) + op.eps
    over = lambda mix, axis: mix / (mix.sum(axis, keepdims=True) + op.eps)  # noqa: E731
    mix = over(mix, -2)
    for _ in range(op.sinkhorn - 1):
        mix = over(over(mix, -1), -2)
    return mix
