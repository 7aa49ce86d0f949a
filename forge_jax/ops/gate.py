"""The gate on an op's heads: one number a head or a feature, from what the op sees."""

import jax.numpy as jnp
from jax import Array

from forge_jax.ops.mlp import activate
from forge_jax.params import Tree
from forge_jax.spec import Gate
from forge_jax.tensor import contract


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
    return y_BTNH * activate(gate.act, z_BTNH.astype(jnp.float32)).astype(y_BTNH.dtype)
