"""Feed-forward layers, gated and plain."""

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.params import Tree
from forge_jax.spec import Activation, Mlp
from forge_jax.tensor import contract


def activate(name: Activation, x: Array) -> Array:
    """Apply an activation by its name."""
    match name:
        case "silu":
            return jax.nn.silu(x)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "relu":
            return jax.nn.relu(x)
        case "relu2":
            return jnp.square(jax.nn.relu(x))
        case "tanh":
            return jnp.tanh(x)
        case "sigmoid":
            return jax.nn.sigmoid(x)
        case "softplus":
            return jax.nn.softplus(x)
        case "identity":
            return x


def feed_forward(op: Mlp, params: Tree, x_BTD: Array, ctx: Context) -> Array:
    """Apply the op: [B, T, D] to [B, T, D]."""

    def linear(name: str) -> Array:
        y = contract("BTD,DF->BTF", x_BTD, params[name])
        return y + params[f"{name}_bias"].astype(y.dtype)[None, None] if op.bias else y

    hidden = activate(op.act, linear("gate")) * linear("up") if op.gated else activate(op.act, linear("up"))
    out = ctx.psum(contract("BTF,FD->BTD", hidden, params["down"]))
    return out + params["down_bias"].astype(out.dtype)[None, None] if op.bias else out


def mlp(op: Mlp, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """The op as a branch: it remembers nothing."""
    return feed_forward(op, params, x_BTD, ctx), state
