"""Feed-forward layers, gated and plain."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.call import Call, Context
from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import Activation, Clamp, Mlp, SoftClamp
from forge_jax.tensor import beside, contract, contract_all, dense


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


def xielu(params: Tree, x: Array) -> Array:
    """A parabola above zero, an exponential below, with learned slopes (arXiv:2411.13010). Computed in float32."""
    p, y = {name: dense(leaf).astype(jnp.float32) for name, leaf in params.items()}, x.astype(jnp.float32)
    alpha_p, alpha_n = (jax.nn.softplus(p[name].reshape((1,) * x.ndim)) for name in ("alpha_p", "alpha_n"))
    above = alpha_p * y * y
    below = (p["beta"] + alpha_n) * (jnp.expm1(jnp.minimum(y, p["eps"])) - y)
    return (jnp.where(y > 0, above, below) + p["beta"] * y).astype(x.dtype)


def excess(op: Mlp, x_BTF: Array, ctx: Context) -> Array:
    """By how much each feature exceeds the quantile `op.sparsity` of a normal distribution like theirs."""
    x = x_BTF.astype(jnp.float32)
    mean = ctx.psum(x.sum(-1, keepdims=True)) / op.dim
    padding = x.shape[-1] * ctx.shards() - op.dim  # features that are 0 on some device
    variance = (ctx.psum(jnp.square(x - mean).sum(-1, keepdims=True)) - padding * jnp.square(mean)) / op.dim
    cut = mean + NormalDist().inv_cdf(op.sparsity) * jnp.sqrt(variance)
    return jax.nn.relu(x - cut).astype(x_BTF.dtype)


def clamped(clamp: Clamp | SoftClamp, gate: Array, up: Array) -> Array:
    """A gated unit whose inputs are cut."""
    if isinstance(clamp, SoftClamp):
        bound = lambda x, limit: limit * jnp.tanh(x / limit)  # noqa: E731
        return bound(gate, clamp.gate) * jax.nn.sigmoid(gate) * bound(up, clamp.up)
    gate, up = jnp.minimum(gate, clamp.limit), jnp.clip(up, -clamp.limit, clamp.limit)
    return gate * jax.nn.sigmoid(clamp.alpha * gate) * (up + clamp.offset)


def feed_forward(op: Mlp, params: Tree, x_BTD: Array, ctx: Context, gain_BTX: Array | None = None) -> Array:
    """Apply the op: [B, T, D] to [B, T, D]. `gain_BTX` weighs X equal parts of its features."""

    names = ("gate", "up") if op.gated else ("up",)
    made = dict[str, Array](
        zip(names, contract_all("BTD,DF->BTF", x_BTD, [params[name] for name in names]), strict=True)
    )

    def linear(name: str) -> Array:
        y = made[name]
        y = y + beside(params[f"{name}_bias"], y.ndim, y.dtype) if op.bias else y
        return y if op.gain is None else y * (op.gain * dense(params[f"{name}_gain"]).astype(y.dtype))[None, None]

    first = linear("gate" if op.gated else "up")
    first = first if op.gate_scale == 1.0 else first * op.gate_scale
    first = excess(op, first, ctx) if op.sparsity else first
    if op.clamp is not None:
        hidden = clamped(op.clamp, first, linear("up"))
    else:
        hidden = xielu(params["act"], first) if op.act == "xielu" else activate(op.act, first)
        hidden = hidden * linear("up") if op.gated else hidden
    if op.norm is not None:
        real = ctx.real(op.dim, hidden.shape[-1])
        hidden = norm(op.norm, params.get("norm", {}), hidden, total=op.dim, real=real, ctx=ctx)
    if gain_BTX is not None:
        part_F = jnp.arange(hidden.shape[-1] * ctx.shards()) * gain_BTX.shape[-1] // op.dim
        hidden = hidden * jnp.take(gain_BTX, ctx.local(part_F), axis=-1, mode="clip").astype(hidden.dtype)
    out = ctx.psum(contract("BTF,FD->BTD", hidden, params["down"]))
    out = out * dense(params["scalar"]).astype(out.dtype).reshape(1, 1, 1) if op.scalar else out
    return out + beside(params["down_bias"], out.ndim, out.dtype) if op.bias else out


def mlp(op: Mlp, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """The op as a branch: it remembers nothing."""
    return feed_forward(op, params, x_BTD, ctx), state
