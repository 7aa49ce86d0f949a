"""Hadamard's turn of many heads in C++: the same sums of two as on the plain path, hence the same bits, in one call."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.kernels.library import available, target


def turns(x: Array) -> bool:
    """Whether there is a kernel for numbers of this type."""
    return x.dtype == jnp.float32 and x.size > 0 and available()


def turn(x: Array, size: int) -> Array:
    """Runs of `size`, a power of two, of the last axis times Sylvester's matrix over sqrt(size).

    Only where it `turns`, and only on a CPU.
    """
    call = jax.ffi.ffi_call(target("hadamard"), jax.typeof(x), vmap_method="broadcast_all")
    return call(x, size=np.int64(size), scale=np.float32(size**-0.5))
