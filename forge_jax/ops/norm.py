"""Root-mean-square and layer normalisation, in float32 whatever comes in."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax import kernels
from forge_jax.ops.call import Context
from forge_jax.params import Tree
from forge_jax.spec import Norm
from forge_jax.tensor import beside, contract

WHOLE = Context()


def norm(
    spec: Norm,
    params: Tree,
    x: Array,
    *,
    features: int = 1,
    total: int = 0,
    real: Array | None = None,
    ctx: Context = WHOLE,
) -> Array:
    """Normalise `x` over its last `features` axes.

    `total` is the true number of features where the axes are split over the mesh: the moments are then summed over
    the devices. `real` is 0 for padding, which stays out of them. The weights have the shape of the axes normalised,
    or of any trailing ones.
    """
    whole, scale = features == 1 and not total and real is None, params.get("scale")
    usual = whole and (spec.kind, spec.scale, spec.bias) == ("rms", True, False)
    # a weight that differs from row to row is no array
    if usual and isinstance(scale, Array) and kernels.normalises(x, scale):
        y = in_one_call(spec, x, scale)
    else:
        y = normalise(spec, params, x, features, total, real, ctx)
    return y if spec.gate is None else y * gate(params, y)


def in_one_call(spec: Norm, x: Array, scale: Array) -> Array:
    """By the kernel, on a CPU."""

    def fast(x: Array, scale: Array) -> Array:
        return kernels.normalised(x, scale, spec.eps, spec.offset)

    def plain(x: Array, scale: Array) -> Array:
        return normalise(spec, {"scale": scale}, x)

    return kernels.as_plain(lambda *at: kernels.by_platform(*at, cpu=fast, default=plain), plain)(x, scale)


def normalise(
    spec: Norm,
    params: Tree,
    x: Array,
    features: int = 1,
    total: int = 0,
    real: Array | None = None,
    ctx: Context = WHOLE,
) -> Array:
    """What a norm is but for its gate; arguments as those of `norm`."""
    axes = tuple(range(x.ndim - features, x.ndim))
    size = total or math.prod(x.shape[axis] for axis in axes)

    def mean(values: Array) -> Array:
        whole = (values if real is None else values * beside(real, x.ndim, jnp.float32)).sum(axes, keepdims=True)
        return (ctx.psum(whole) if total else whole) / size

    y = x.astype(jnp.float32)
    if spec.kind == "affine":
        y = y + beside(params["bias"], x.ndim, jnp.float32) if spec.bias else y
        return (y * (spec.offset + beside(params["scale"], x.ndim, jnp.float32)) if spec.scale else y).astype(x.dtype)
    if spec.kind == "layer":
        y = y - mean(y)
    power = mean(y * y) * (size if spec.kind == "unit" else 1)
    y = y * jax.lax.rsqrt(power + spec.eps)
    if spec.scale:
        y = y * (spec.offset + beside(params["scale"], x.ndim, jnp.float32))
    if spec.bias:
        y = y + beside(params["bias"], x.ndim, jnp.float32)
    return y.astype(x.dtype)


def gate(params: Tree, x: Array) -> Array:
    """What a gated norm is multiplied by, from what it would be without."""
    hidden_NR = jax.nn.silu(contract("ND,DR->NR", x.reshape(-1, x.shape[-1]), params["down"]))
    z_ND = contract("NR,RD->ND", hidden_NR, params["up"])
    return jax.nn.sigmoid(z_ND.astype(jnp.float32)).astype(x.dtype).reshape(x.shape)
