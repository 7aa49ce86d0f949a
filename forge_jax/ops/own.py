"""Inputs that every layer has of its own: made once where the model embeds, taken in by each layer."""

import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.mlp import activate
from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import OwnInput, OwnInputs
from forge_jax.tensor import contract


def own_inputs(spec: OwnInputs, params: Tree, x_BTD: Array, rows_BTLP: Array) -> Array:
    """What each layer gets, [L, B, T, P], from the embedding and the rows of the tokens in the table."""
    y_BTLP = contract("BTD,DLP->BTLP", x_BTD, params["project"]) * jnp.asarray(spec.project_scale, x_BTD.dtype)
    y_BTLP = norm(spec.norm, params.get("norm", {}), y_BTLP)
    rows_BTLP = rows_BTLP.astype(y_BTLP.dtype) * jnp.asarray(spec.embed_scale, y_BTLP.dtype)
    return ((y_BTLP + rows_BTLP) * jnp.asarray(0.5**0.5, y_BTLP.dtype)).transpose(2, 0, 1, 3)


def own_input(op: OwnInput, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state); it remembers nothing."""
    gate_BTP = activate(op.act, contract("BTD,DP->BTP", x_BTD, params["gate"]))
    return contract("BTP,PD->BTD", gate_BTP * call.own, params["out"]), state
