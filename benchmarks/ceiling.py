"""The bare matrix products of a model: what a forward pass cannot be faster than on this machine."""

from typing import Any

import jax
import jax.numpy as jnp

from forge_jax.params import Tree, abstract, flatten
from forge_jax.spec import ModelSpec


def products(spec: ModelSpec, params: Tree, rows: int, steps: jax.Array) -> jax.Array:
    """Multiply `rows` vectors by every matrix of the model, one after another, `steps` times; the head by one vector.

    Each product waits for the one before it, as in a model. Nothing else is computed.
    """
    leaves = dict(flatten(params))
    matrices: list[tuple[Any, int, bool]] = []
    for path, param in flatten(abstract(spec)):
        if param.fill is None and path not in ("embed", "positions"):
            matrices.append((leaves[path], param.fan_in, False))
    if spec.tied:
        matrices.append((leaves["embed"], spec.dim, True))

    def once(_: int, carry: jax.Array) -> jax.Array:
        for i, (w, inputs, tied) in enumerate(matrices):
            last = i == len(matrices) - 1
            x = jnp.full((1 if last else rows, inputs), carry)
            y = jnp.einsum("ik,jk->ij", x, w) if tied else x @ w.reshape(inputs, -1)
            carry = y[0, 0] * 1e-6 + y[-1, -1] * 1e-6
        return carry

    return jax.lax.fori_loop(0, steps, once, jnp.float32(1.0))
