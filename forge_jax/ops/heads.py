"""Queries, keys and values from the stream: projections with their biases, norms and clipping, and the rope."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.ops.call import Context
from forge_jax.ops.norm import norm
from forge_jax.ops.rope import rotate
from forge_jax.params import Tree
from forge_jax.spec import Attention, Norm
from forge_jax.tensor import Weight, beside, contract_all, dense


def over_heads(spec: Norm, params: Tree, x_BTNH: Array, heads: tuple[int, ...], ctx: Context) -> Array:
    """Normalise all heads and their features together.

    `heads` says which head is in which slot over all devices: repeated ones count as often as they are there, padding
    does not count.
    """
    real_N = np.asarray(heads) >= 0
    real_N1 = None if real_N.all() else ctx.local(jnp.asarray(real_N[:, None], jnp.float32))
    total = int(real_N.sum()) * x_BTNH.shape[-1]
    return norm(spec, params, x_BTNH, features=2, total=total, real=real_N1, ctx=ctx)


def normed(op: Attention, params: Tree, name: str, x_BTNH: Array, heads: tuple[int, ...], ctx: Context) -> Array:
    """Query or key normalisation, over a head's features or over all heads together."""
    if op.qk_norm is None:
        return x_BTNH
    weights = params.get(f"{name}_norm", {})
    if op.qk_norm_over == "all":
        return over_heads(op.qk_norm, weights, x_BTNH, heads, ctx)
    return norm(op.qk_norm, weights, x_BTNH)


def project(op: Attention, params: Tree, name: str, x_BTD: Array, heads: tuple[int, ...], ctx: Context) -> Array:
    """One of q, k, v before the rope: [B, T, heads, H]."""
    return finished(op, params, name, linear(op, params, name, x_BTD)[name], heads, ctx)


def linear(op: Attention, params: Tree, names: str, x_BTD: Array) -> dict[str, Array]:
    """Some of q, k, v before their norms, made of the same x: each [B, T, heads, H]."""
    sources = {name: "k" if name == "v" and op.values == "keys" else name for name in names}
    each = list(dict.fromkeys(sources.values()))
    made = dict(zip(each, contract_all("BTD,DNH->BTNH", x_BTD, [params[name] for name in each]), strict=True))
    if op.qkv_bias:
        made = {name: y + beside(params[f"{name}_bias"], y.ndim, y.dtype) for name, y in made.items()}
    return {name: made[source] for name, source in sources.items()}


def finished(op: Attention, params: Tree, name: str, y: Array, heads: tuple[int, ...], ctx: Context) -> Array:
    """What `linear` gave, with its norm and cut."""
    if name != "v" and op.longest is not None:
        y = shortened(y, params["q_scale"] if name == "q" else None, op.longest)
    if name == "v":
        y = y if op.v_norm is None else norm(op.v_norm, params.get("v_norm", {}), y)
    elif not op.qk_norm_late:
        y = normed(op, params, name, y, heads, ctx)
    return y if op.clip is None else jnp.clip(y, -op.clip, op.clip)


def shortened(x: Array, scale: Weight | None, longest: float) -> Array:
    """Vectors times learned numbers, those that are longer then brought down to it. Computed in float32."""
    y = x.astype(jnp.float32)
    y = y if scale is None else y * dense(scale).astype(jnp.float32)[None, None]
    length = jnp.sqrt((y * y).sum(-1, keepdims=True))
    return (y * jnp.minimum(longest / (length + 1e-6), 1.0)).astype(x.dtype)


def turned(
    op: Attention,
    params: Tree,
    name: str,
    x_BTNH: Array,
    position_BT: Array,
    length_B: Array | None,
    heads: tuple[int, ...],
    ctx: Context,
) -> Array:
    """Queries or keys after the rope, and after their norm where that comes late."""
    y = x_BTNH if op.rope is None else rotate(op.rope, x_BTNH, position_BT, length_B)
    return normed(op, params, name, y, heads, ctx) if op.qk_norm_late else y
