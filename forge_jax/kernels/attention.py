"""Attention of one new token a row in C++: it reads the slots that are seen, and of the cache no others.

The plain path computes scores for all slots and hides most of them. Softmax is float32 in both.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.kernels.library import available, target
from forge_jax.kernels.meshes import varying

LANES = 16  # that divide the features of a head, on the widest machine

Seen = tuple[Array, Array, Array]
"""Keys and values [B, K, S, *], and what each query sees of them [B, T, S]."""


def looks(q_BTNH: Array, parts: Sequence[Seen]) -> bool:
    """Whether there is a kernel for these queries."""
    arrays = [q_BTNH, *(array for k, v, _ in parts for array in (k, v))]
    plain = all(x.dtype == jnp.float32 and x.size and x.shape[-1] % LANES == 0 for x in arrays)
    return plain and q_BTNH.shape[1] == 1 and all(seen.ndim == 3 for _, _, seen in parts) and available()


def look(q_BTNH: Array, parts: Sequence[Seen], scale: float, softcap: float | None, sinks_N: Array | None) -> Array:
    """softmax(scale * q k^T) v over what is seen of all parts together: [B, 1, N, *]; only where it `looks`."""
    b, _, n, _ = q_BTNH.shape
    sinks_N = jnp.zeros((0,), jnp.float32) if sinks_N is None else sinks_N.astype(jnp.float32)
    shown = [array for k, v, seen in parts for array in (k, v, jnp.broadcast_to(seen[:, 0], (b, seen.shape[2])))]
    q_BNH, *others = varying(q_BTNH[:, 0], sinks_N, *shown)
    shape = jax.typeof(q_BNH).update(shape=(b, n, parts[0][1].shape[-1]))
    call = jax.ffi.ffi_call(target("attention"), shape, vmap_method="sequential")
    return call(q_BNH, *others, scale=np.float32(scale), softcap=np.float32(softcap or 0))[:, None]
