"""Several streams instead of one, of which a layer computes only one: alternating updates (arXiv:2301.13310).

Where each branch sees a mixture of them instead, see `ops.hyper`; the ends of both are here.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from forge_jax.ops.hyper import mixed
from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import AltUp, Streams
from forge_jax.tensor import contract, dense

Update = Callable[[Array], Array]


def modalities(op: AltUp, params: Tree, x_BTD: Array) -> Array:
    """S numbers in (-1, 1) that say how to mix."""
    y_BTD = norm(op.norm, params.get("norm", {}), x_BTD) / x_BTD.shape[-1]
    routed_BTS = contract("BTD,DS->BTS", y_BTD, params["router"])
    return jnp.tanh(routed_BTS.astype(jnp.float32)).astype(x_BTD.dtype)


def alternate(op: AltUp, params: Tree, x_BTSD: Array, layer: Update, side: Update) -> Array:
    """Predict every stream from all, run `layer` on the active one, correct every stream by how far it was off.

    What `side` makes of the corrected active stream is added to all but the first.
    """
    mix_BTPS = contract("BTM,MPS->BTPS", modalities(op, params, x_BTSD[:, :, op.active]), params["predict"])
    predicted_BTSD = x_BTSD + jnp.einsum("BTPS,BTSD->BTPD", mix_BTPS, x_BTSD)
    active_BTD = predicted_BTSD[:, :, op.active]
    y_BTD = layer(active_BTD)
    gain_BTS = 1 + contract("BTM,MS->BTS", modalities(op, params, y_BTD), params["correct"])
    x_BTSD = predicted_BTSD + gain_BTS[..., None] * (y_BTD - active_BTD)[:, :, None]
    scaled_BTD = x_BTSD[:, :, op.active] * dense(params["scale"]).astype(x_BTSD.dtype)[None, None]
    return x_BTSD.at[:, :, 1:].add(side(scaled_BTD)[:, :, None])


def magnitude(x: Array) -> Array:
    """The root of the mean square over the last axis, float32."""
    return jnp.sqrt(jnp.maximum(jnp.square(x.astype(jnp.float32)).mean(-1, keepdims=True), 1e-5))


def resized(x_BTSD: Array, like_BTD: Array) -> Array:
    """The streams, each as large as another is."""
    return x_BTSD * (magnitude(like_BTD)[:, :, None] / magnitude(x_BTSD)).astype(x_BTSD.dtype)


def enter(op: Streams, params: Tree, x_BTD: Array) -> Array:
    """The streams of an embedding: itself, or itself and projections of it, as large as it is: [B, T, S, D]."""
    if not isinstance(op, AltUp):
        return jnp.repeat(x_BTD[:, :, None], op.count, 2)
    others_BTSD = contract("BTD,DSE->BTSE", x_BTD, params["enter"])
    return jnp.concatenate([x_BTD[:, :, None], resized(others_BTSD, x_BTD)], 2)


def leave(op: Streams, params: Tree, x_BTSD: Array) -> Array:
    """One stream of several: a mixture; or the mean of the first and of projections of the others, as large as it."""
    if not isinstance(op, AltUp):
        return mixed(op, params, x_BTSD)[0]
    first_BTD = x_BTSD[:, :, 0]
    others_BTSD = resized(contract("BTSD,SDE->BTSE", x_BTSD[:, :, 1:], params["leave"]), first_BTD)
    return jnp.concatenate([first_BTD[:, :, None], others_BTSD], 2).mean(2)
