"""Root-mean-square normalisation in C++: one call, where XLA makes three loops that every start reads again."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.kernels.library import available, target
from forge_jax.kernels.meshes import varying


def normalises(x: Array, scale: Array) -> bool:
    """Whether there is a kernel for rows of the last axis of x, of one scale for each of its numbers."""
    return x.dtype == jnp.float32 and x.size > 0 and x.ndim > 1 and scale.shape == x.shape[-1:] and available()


def normalised(x: Array, scale: Array, eps: float, offset: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * (offset + scale) over the last axis; only where it `normalises`, on a CPU."""
    # in the shape that x has: XLA would copy what is given another one before and after a call
    x, scale = varying(x, scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + scale.shape))
    call = jax.ffi.ffi_call(target("norm"), jax.typeof(x), vmap_method="expand_dims")
    return call(x, scale, eps=np.float32(eps), offset=np.float32(offset))
