"""A wall for XLA's fusion on CPUs."""

import jax
from jax import Array

from forge_jax.kernels.library import available, target


def once(x: Array) -> Array:
    """x itself, computed once.

    XLA computes what is small again wherever it is used: the sines of a rope for every head of every layer. It does not
    look into calls, so one that gives back its argument keeps a number apart from what uses it.
    """
    if not available():
        return x
    call = jax.ffi.ffi_call(target("once"), jax.typeof(x), vmap_method="broadcast_all", input_output_aliases={0: 0})
    return jax.lax.platform_dependent(x, cpu=call, default=lambda x: x)
