"""What a call of a kernel in Pallas needs on each device."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from forge_jax.kernels.meshes import varying
from forge_jax.kernels.pallas.switch import Target

EXACT = jax.lax.Precision.HIGHEST  # float32 stays so


def launched(
    kernel: Callable[..., None],
    operands: Sequence[Array],
    specs: Sequence[pl.BlockSpec],
    results: Sequence[tuple[tuple[int, ...], DTypeLike, pl.BlockSpec]],
    grid: tuple[int, ...],
    target: Target,
    name: str,
) -> list[Array]:
    """The results of a kernel, each described by its shape, dtype and blocks."""
    shown = varying(*operands)
    own = jax.typeof(shown[0])  # its type says what all of them vary over on a mesh
    call = pl.pallas_call(
        kernel,
        out_shape=[own.update(shape=shape, dtype=jnp.dtype(dtype)) for shape, dtype, _ in results],
        grid=grid,
        in_specs=list(specs),
        out_specs=[spec for _, _, spec in results],
        interpret=target.interpret,
        compiler_params=parameters(target),
        name=name,
    )
    return list(call(*shown))


def parameters(target: Target) -> Any:
    """What picks the backend: for GPUs Triton, since the other one, Mosaic, does not take `pallas_call` for long."""
    if target.interpret or target.kind == "tpu":
        return None
    from jax.experimental.pallas import triton  # not every jax has it

    return triton.CompilerParams()


def steps(count: int, body: Callable[[Any, Any], Any], start: Any, target: Target) -> Any:
    """`fori_loop` from 0; for TPUs one step after the other, since they cut arrays at places that are known before."""
    if target.kind != "tpu":
        return jax.lax.fori_loop(0, count, body, start)
    for i in range(count):
        start = body(i, start)
    return start


def numbers(shape: tuple[int, ...], target: Target) -> pl.BlockSpec:
    """A few numbers that every program reads one by one, which TPUs have a memory of their own for."""
    if target.kind != "tpu" or target.interpret:
        return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))
    from jax.experimental.pallas import tpu

    return pl.BlockSpec(memory_space=tpu.SMEM)


def field(packed: Array, which: int, bits: int) -> Array:
    """One of the codes that share a byte, the first one in the lowest bits."""
    if bits == 8:
        return packed
    return (packed.astype(jnp.int32) >> (which * bits)) & (2**bits - 1)
