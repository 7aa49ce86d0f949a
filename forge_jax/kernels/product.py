"""x times packed rows in C++: inputs in float32, each weight decoded to float32 in a register, sums in float32; or both
as whole numbers, where a packing rounds, and their products brought together in float32.

The numbers that are multiplied are those of the plain path; only the order in which they are added up is another one.
It depends on neither the batch nor the threads.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.kernels.formats import FORMATS, ROUNDED, Packing
from forge_jax.kernels.library import available, target
from forge_jax.kernels.meshes import varying

MOST_ROWS = 32  # of x; for more, matrices of floats are faster


def fits(packing: Packing, parts: dict[str, Array], outputs: tuple[int, ...], x_RI: Array) -> bool:
    """Whether there is a kernel for this product."""
    if packing.format not in (ROUNDED if packing.rounds else FORMATS) or x_RI.dtype != jnp.float32:
        return False
    rows, inputs = x_RI.shape
    whole = all(parts[name].shape[:-1] == outputs for name in packing.parts)
    sized = 0 < rows <= MOST_ROWS and math.prod(outputs) > 0 and inputs % FORMATS[packing.format] == 0
    return whole and sized and inputs > 0 and available()


def product(packing: Packing, parts: dict[str, Array], outputs: tuple[int, ...], x_RI: Array) -> Array:
    """x_RI times every packed row: [R, *outputs]; only where it `fits`, and only on a CPU."""
    rows = [parts[name].reshape(math.prod(outputs), -1) for name in packing.parts]
    operands = varying(x_RI, *rows)
    name = f"{'rounded' if packing.rounds else 'product'}_{packing.format}"
    # the type of x, which says what it varies over, in another shape of as many axes
    shape = jax.typeof(operands[0]).update(shape=(x_RI.shape[0], math.prod(outputs)))
    y = jax.ffi.ffi_call(target(name), shape, vmap_method="expand_dims")(*operands)
    return y.reshape(x_RI.shape[0], *outputs)
