"""x times packed rows in C++: inputs in float32, each weight decoded to float32 as it is read, sums in float32; or
both as whole numbers, where a packing rounds, and their products brought together in float32.

The numbers that are multiplied are those of the plain path; only the order in which they are added up is another one.
It depends on how many rows there are, and not on the threads.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.kernels.formats import FORMATS, ROUNDED, TOGETHER, Packing
from forge_jax.kernels.library import available, target
from forge_jax.kernels.meshes import varying

WIDENED = ("float32", "bfloat16", "float16")


def known(packing: Packing, parts: dict[str, Array], outputs: tuple[int, ...], inputs: int) -> bool:
    """Whether rows of this packing can be read: each with its own parts, of a whole number of blocks."""
    block = (ROUNDED if packing.rounds else FORMATS).get(named(packing, parts))
    if block is None or not inputs or inputs % block or not math.prod(outputs):
        return False
    if packing.steps is not None:
        group = packing.steps.group or inputs
        return not group % block and not inputs % group and available()
    return all(parts[name].shape[:-1] == outputs for name in packing.parts) and available()


def named(packing: Packing, parts: dict[str, Array]) -> str:
    """What the library calls the format of these rows."""
    if packing.steps is None:
        return packing.format
    eight = "Signed8" if parts["codes"].dtype == jnp.int8 else "Unsigned8"
    return {4: "Stream4", 8: eight}.get(packing.steps.bits, packing.format)


def fits(
    packing: Packing, parts: dict[str, Array], outputs: tuple[int, ...], x_RI: Array | jax.ShapeDtypeStruct
) -> bool:
    """Whether there is a kernel for this product. Inputs of 16 bits are made float32, and the product 16 bits again."""
    apt = outputs[-1] % TOGETHER == 0 or not packing.rounds
    return apt and x_RI.dtype in WIDENED and x_RI.size > 0 and known(packing, parts, outputs, x_RI.shape[1])


def products(
    packing: Packing, weights: Sequence[dict[str, Array]], outputs: Sequence[tuple[int, ...]], x_RI: Array
) -> list[Array]:
    """x_RI times every packed row of several weights in one call: [R, *outputs] of each; only where all of them `fit`
    and are called alike, and only on a CPU.

    With one, threads meet once and x is rounded once, however small the weights are.
    """
    (name,) = {named(packing, parts) for parts in weights}
    rows = [part for parts, shape in zip(weights, outputs, strict=True) for part in matrices(packing, parts, shape)]
    operands = varying(x_RI.astype(jnp.float32), *rows)
    # the type of x, which says what it varies over, in other shapes of as many axes
    shapes = [jax.typeof(operands[0]).update(shape=(x_RI.shape[0], math.prod(shape))) for shape in outputs]
    call = jax.ffi.ffi_call(
        target(f"{'rounded' if packing.rounds else 'product'}_{name}"), shapes, vmap_method="expand_dims"
    )
    ys = zip(call(*operands), outputs, strict=True)
    return [y.reshape(x_RI.shape[0], *shape).astype(x_RI.dtype) for y, shape in ys]


def fits_chosen(
    packing: Packing, parts: dict[str, Array], outputs: tuple[int, ...], x_CMI: Array | jax.ShapeDtypeStruct
) -> bool:
    """Whether there is a kernel for products of blocks of rows with those of a stack of weights [E, O] that are chosen.

    Whole numbers that are in no tiles are not among them: their scales are made ready in every call (`matrices`).
    """
    size = x_CMI.shape[1]
    block = jax.ShapeDtypeStruct((size, x_CMI.shape[2]), x_CMI.dtype)
    apt = len(outputs) == 2 and packing.steps is None and not size & (size - 1)
    return apt and fits(packing, parts, outputs, block)


def products_chosen(
    packing: Packing,
    stacks: Sequence[dict[str, Array]],
    outputs: Sequence[tuple[int, ...]],
    x_CMI: Array,
    expert_C: Array,
    used_C: Array,
) -> list[Array]:
    """Each block of rows times the weight of its expert, of several stacks of weights: [C, M, O] of each, zero where a
    block is not used; only where all of them `fits_chosen`, and only on a CPU. Weights are read where they lie.
    """
    rows = [parts[name] for parts in stacks for name in packing.parts]
    operands = varying(x_CMI.astype(jnp.float32), expert_C.astype(jnp.int32), used_C, *rows)
    shapes = [jax.typeof(operands[0]).update(shape=(*x_CMI.shape[:2], shape[1])) for shape in outputs]
    name = f"{'rounded' if packing.rounds else 'product'}_chosen_{packing.format}"
    ys = jax.ffi.ffi_call(target(name), shapes, vmap_method="sequential")(*operands)
    return [y.astype(x_CMI.dtype) for y in ys]


def matrices(packing: Packing, parts: dict[str, Array], outputs: tuple[int, ...]) -> list[Array]:
    """The parts that a kernel takes, a row of them for each output."""
    if packing.steps is None:
        return [parts[name].reshape(math.prod(outputs), -1) for name in packing.parts]
    # few beside the codes; a scale that is to be divided first may differ in its last bit
    scale = parts["scale"].astype(jnp.float32) / packing.steps.over
    zero = parts["zero"].astype(jnp.float32) if "zero" in parts else jnp.full_like(scale, packing.steps.middle)
    every = (jnp.broadcast_to(part, (*outputs, part.shape[-1])) for part in (scale, zero, parts["codes"]))
    return [part.reshape(math.prod(outputs), -1) for part in every]
