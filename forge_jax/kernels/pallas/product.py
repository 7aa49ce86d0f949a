"""x times rows of whole numbers: codes are opened in registers, and are all that is read of a weight besides scales.

A code becomes what the plain path makes of it, in the dtype of x; sums are float32. Codes of one byte meet numbers of x
side by side, so x is laid out to have first those that meet the lowest bits of a byte, and so on.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from forge_jax.kernels.formats import Packing, Steps
from forge_jax.kernels.pallas.call import EXACT, field, launched
from forge_jax.kernels.pallas.call import steps as stepped
from forge_jax.kernels.pallas.rows import LEAST, Plan, plan
from forge_jax.kernels.pallas.switch import Target, target


def product(
    packing: Packing,
    parts: dict[str, Array],
    outputs: tuple[int, ...],
    x_RI: Array,
    plainly: Callable[[dict[str, Array]], Array],
) -> Array:
    """x_RI times every packed row: [R, *outputs]; only where it `fits`.

    plainly: x_RI times some rows, parts [O, n], for those beyond the last whole block: [R, O].
    """
    steps, aim = packing.steps, target()
    chosen = None if steps is None or aim is None else plan(steps, parts, outputs, x_RI.shape[1], aim)
    if steps is None or aim is None or chosen is None:
        raise ValueError(f"no kernel in Pallas for {packing} times {x_RI.shape}; ask `fits` first")
    matrices = {name: parts[name].reshape(math.prod(outputs), -1) for name in packing.parts}
    done = math.prod(outputs) // chosen.rows * chosen.rows
    y_RO = of_blocks(steps, chosen, aim, list(matrices.values()), x_RI)
    if done < math.prod(outputs):
        y_RO = jnp.concatenate([y_RO, plainly({name: part[done:] for name, part in matrices.items()})], 1)
    return y_RO.reshape(-1, *outputs)


def of_blocks(steps: Steps, plan: Plan, aim: Target, matrices: list[Array], x_RI: Array) -> Array:
    """x_RI times the rows of whole blocks."""
    r, blocks = x_RI.shape[0], matrices[0].shape[0] // plan.rows
    rows = r if r == 1 else LEAST
    x_PRC = jnp.pad(x_RI, ((0, rows - r), (0, 0))).reshape(rows, -1, 8 // steps.bits).transpose(2, 0, 1)
    y_OR = launched(
        functools.partial(multiply, steps=steps, plan=plan, aim=aim),
        [x_PRC, *matrices],
        [
            pl.BlockSpec(x_PRC.shape, lambda i: (0, 0, 0)),
            *(pl.BlockSpec((plan.rows, matrix.shape[1]), lambda i: (i, 0)) for matrix in matrices),
        ],
        [((blocks * plan.rows, rows), x_RI.dtype, pl.BlockSpec((plan.rows, rows), lambda i: (i, 0)))],
        (blocks,),
        aim,
        "forge_jax_product",
    )[0]
    return y_OR[:, :r].T


def multiply(x_PRC: Any, codes_OC: Any, scale_OG: Any, *others: Any, steps: Steps, plan: Plan, aim: Target) -> None:
    """The kernel: some rows times all of x. Of `others` the last is the result, and one before it the zeros."""
    share, chunk, y = 8 // steps.bits, plan.chunk, others[-1]

    def part(ref: Any, i: Any) -> Array:
        return spread(ref[:, near(steps, chunk, i)].astype(jnp.float32), chunk)

    def step(i: Any, y_OR: Array) -> Array:
        at = pl.ds(i * chunk, chunk)
        packed = codes_OC[:, at]
        zero = part(others[0], i) if len(others) > 1 else jnp.float32(steps.middle)
        for p in range(share):
            w_OC = field(packed, p, steps.bits).astype(jnp.float32) - zero
            if steps.group:
                w_OC = w_OC * part(scale_OG, i)
                w_OC = w_OC if steps.over == 1 else w_OC / jnp.float32(steps.over)
            y_OR = y_OR + times(w_OC, x_PRC[p, :, at])
        return y_OR

    single = x_PRC.shape[1] == 1
    start = jnp.zeros((plan.rows, chunk if single else x_PRC.shape[1]), jnp.float32)
    y_OR = stepped(codes_OC.shape[1] // chunk, step, start, aim)
    y_OR = y_OR.sum(-1, keepdims=True) if single else y_OR
    if not steps.group:
        y_OR = y_OR * (scale_OG[:, :].astype(jnp.float32) / jnp.float32(steps.over))
    y[:, :] = y_OR.astype(y.dtype)


def near(steps: Steps, chunk: int, i: Any) -> Any:
    """The groups of the codes of a chunk."""
    if not steps.group:
        return pl.ds(0, 1)
    size = steps.group * steps.bits // 8
    if chunk >= size:
        return pl.ds(i * (chunk // size), chunk // size)
    return pl.ds(i // (size // chunk) if isinstance(i, int) else jax.lax.div(i, size // chunk), 1)


def spread(values_OG: Array, size: int) -> Array:
    """One number for each group as one for each of `size` elements, or one for all of them."""
    rows, groups = values_OG.shape
    if groups == 1:
        return values_OG
    return jnp.broadcast_to(values_OG[:, :, None], (rows, groups, size // groups)).reshape(rows, size)


def times(w_OC: Array, x_RC: Array) -> Array:
    """w x^T in float32: [O, R]; for one row, of which a product of matrices would make sixteen, the products [O, C]
    that are yet to be summed: across threads, which costs more than they do, once is enough."""
    if x_RC.shape[0] == 1:
        return w_OC * x_RC.astype(jnp.float32)
    along = (((1,), (1,)), ((), ()))
    exact = EXACT if x_RC.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        w_OC.astype(x_RC.dtype), x_RC, along, precision=exact, preferred_element_type=jnp.float32
    )
