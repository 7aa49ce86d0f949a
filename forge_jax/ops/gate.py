"""The gate on an op's heads: one number a head or a feature, from what the op sees."""

import jax.numpy as jnp
from jax import Array

from forge_jax.ops.mlp import activate
from forge_jax.params import Tree
from forge_jax.spec import Gate
from forge_jax.tensor import Weight, contract, dense


def squared(learned_NH: Weight, gain: float) -> Array:
    """[1, 1, N, H]: the squares of learned numbers times a fixed one, float32."""
    return jnp.square(gain * dense(learned_NH).astype(jnp.float32))[None, None]


def gated(gate: Gate | None, params: Tree, x_BTD: Array, y_BTNH: Array) -> Array:
    """The heads' outputs times their gate, whose weights stand beside the op's own."""
    if gate is None:
        return y_BTNH
    if gate.over == "feature":
        z_BTNH = contract("BTD,DNH->BTNH", x_BTD, params["gate"])
    else:
        z_BTNH = contract("BTD,DN->BTN", x_BTD, params["gate"])[..., None]
    if gate.bias is not None:
        bias_NH = params["gate_bias"].astype(z_BTNH.dtype)
        z_BTNH = z_BTNH + (bias_NH if bias_NH.ndim == 2 else bias_NH[:, None])[None, None]
    if gate.gain is not None:
        z_BTNH = z_BTNH * squared(params["gate_gain"], gate.gain).astype(z_BTNH.dtype)
    return y_BTNH * activate(gate.act, z_BTNH.astype(jnp.float32)).astype(y_BTNH.dtype)
