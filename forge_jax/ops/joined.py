"""Attention to two streams side by side, and the linear map that leads back to one."""

import jax.numpy as jnp
from jax import Array

from forge_jax.ops.attention import attention
from forge_jax.ops.call import Call, Context
from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import Joined, Project
from forge_jax.tensor import contract


def joined(op: Joined, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state with the new keys and values)."""
    both = jnp.concatenate([x_BTD, call.bus[op.fetch].astype(x_BTD.dtype)], -1)
    return attention(op.attention, params, norm(op.norm, params.get("norm", {}), both), state, call, ctx)


def project(op: Project, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state); it remembers nothing."""
    return contract("BTD,DE->BTE", x_BTD, params["weight"]), state
