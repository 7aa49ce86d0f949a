"""Ops for models that work on more than one stream."""

import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.params import Tree
from forge_jax.spec import Constant, Exchange
from forge_jax.tensor import dense


def constant(op: Constant, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """The same vector for every token."""
    value_D = dense(params["value"]).astype(x_BTD.dtype)
    return jnp.broadcast_to(value_D[None, None], x_BTD.shape), state


def exchange(op: Exchange, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """Leave what a later layer takes, and take what this or an earlier one left."""
    if op.leave is not None:
        call.bus[op.leave] = x_BTD
    return call.bus[op.fetch], state
