"""A wall for XLA's fusion on CPUs."""

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.kernels.library import available, target
from forge_jax.kernels.platforms import by_platform


def once(x: Array) -> Array:
    """x itself, computed once.

    XLA computes what is small again wherever it is used: the sines of a rope for every head of every layer. It does not
    look into calls, so one that gives back its argument keeps a number apart from what uses it.
    """
    call = jax.ffi.ffi_call(target("once"), jax.typeof(x), vmap_method="broadcast_all", input_output_aliases={0: 0})
    return by_platform(x, cpu=call if available() else chosen, default=lambda x: x)


def chosen(x: Array) -> Array:
    """The same where there are no kernels: nor does XLA look past a choice that depends on numbers."""
    return jax.lax.cond(jnp.isnan(x).all(), lambda x: x * jnp.nan, lambda x: x, x)
