"""The products that `tensor.contract` is made of: matrices, packed rows, packed rows with rounded inputs.

Knows arrays and how a scheme decodes them; what kind of leaf they came from is `tensor`'s business.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax import kernels
from forge_jax.kernels import pallas

RUN = 32  # numbers that are rounded together
TILE = 1 << 20  # numbers that a CPU decodes before it multiplies by them: 4 MB, which stay in its cache


class Factored(Protocol):
    """What a product asks of a scheme, see `tensor.Scheme`."""

    def apart(self, parts: Mapping[str, Any]) -> "tuple[Factored, dict[str, Any]]":
        """The same rows, each by itself."""
        ...

    def factors(self, parts: Mapping[str, Any]) -> tuple[Any, Any | None]:
        """The rows as values [..., size], and one factor a row [...] if that is not in them."""
        ...

    def packing(self, parts: Mapping[str, Any]) -> kernels.Packing | None:
        """What kernels call rows of these parts."""
        ...


def subscripts(eq: str) -> tuple[str, str, str]:
    """Split "xs,ws->ys"."""
    operands, out = eq.split("->")
    x, w = operands.split(",")
    return x, w, out


def product(eq: str, x: Array, w: Array) -> Array:
    """einsum(eq, x, w) as one product of matrices.

    Folding the axes here keeps XLA from transposing a weight whose sum runs over two axes, which costs a second copy.
    """
    xs, ws, ys = subscripts(eq)
    inputs = "".join(c for c in ws if c not in ys)
    outputs = "".join(c for c in ws if c in ys)
    rows = xs.removesuffix(inputs)
    if rows + inputs != xs or rows + outputs != ys or ws not in (inputs + outputs, outputs + inputs):
        return jnp.einsum(eq, x, w)
    lead, size = x.shape[: len(rows)], math.prod(x.shape[len(rows) :])
    flat = x.reshape(math.prod(lead), size)
    if ws == inputs + outputs:
        return (flat @ w.reshape(size, -1)).reshape(lead + w.shape[len(inputs) :])
    y = jnp.einsum("ik,jk->ij", flat, w.reshape(-1, size))
    return y.reshape(lead + w.shape[: len(outputs)])


def decoded_products(
    scheme: Factored, weights: Sequence[dict[str, Array]], outputs: Sequence[tuple[int, ...]], x_RI: Array
) -> list[Array]:
    """x_RI times every packed row of weights that are packed alike: [R, *outputs] of each, in the dtype of x.

    weights: the parts of each, [*outputs, n], or 1 in the place of an axis where all rows share it. A CPU multiplies by
    a kernel, by all weights in one call, if there is one for them, and else decodes and multiplies a tile at a time, as
    XLA would write all of a large matrix. An accelerator decodes a weight while a single row of x is multiplied, and
    else once for all rows, or multiplies by a kernel where `kernels.pallas` is asked for.
    """
    packing = scheme.packing(weights[0])
    rounds = packing is not None and packing.rounds

    def on_cpu(x_RI: Array, weights: Sequence[dict[str, Array]]) -> list[Array]:
        each = list(zip(weights, outputs, strict=True))
        if packing is not None and all(kernels.fits(packing, parts, shape, x_RI) for parts, shape in each):
            return by_kernel(scheme, packing, outputs, x_RI, weights)
        x = rounded_runs(x_RI) if rounds else x_RI
        return [tiled(scheme, parts, shape, x) for parts, shape in each]

    def elsewhere(x_RI: Array, weights: Sequence[dict[str, Array]]) -> list[Array]:
        def one(parts: dict[str, Array], shape: tuple[int, ...]) -> Array:
            if packing is not None and pallas.fits(packing, parts, shape, x_RI):
                return by_pallas(scheme, packing, shape, x_RI, parts)
            x = rounded_runs(x_RI) if rounds else x_RI
            return multiplied(*scheme.factors(parts), x, streamed if x.shape[0] == 1 else matrix)

        return [one(parts, shape) for parts, shape in zip(weights, outputs, strict=True)]

    if pallas.interpreted():
        return elsewhere(x_RI, weights)
    return kernels.by_platform(x_RI, weights, cpu=on_cpu, default=elsewhere)


def by_pallas(
    scheme: Factored, packing: kernels.Packing, outputs: tuple[int, ...], x_RI: Array, parts: dict[str, Array]
) -> Array:
    """The product with decoded rows, by a kernel for accelerators. Its derivative is that of the plain path."""
    from forge_jax.kernels.pallas.product import product  # imports Pallas, which only few need

    def plain(x_RI: Array, parts: dict[str, Array]) -> Array:
        return multiplied(*scheme.factors(parts), x_RI, matrix)

    def fast(x_RI: Array, parts: dict[str, Array]) -> Array:
        return product(packing, parts, outputs, x_RI, partial(plain, x_RI))

    return kernels.as_plain(fast, plain)(x_RI, parts)


def by_kernel(
    scheme: Factored,
    packing: kernels.Packing,
    outputs: Sequence[tuple[int, ...]],
    x_RI: Array,
    weights: Sequence[dict[str, Array]],
) -> list[Array]:
    """`tiled` with each weight, by a kernel. Its derivative is that of `tiled`; what is rounded counts as if it were
    not.
    """

    def fast(x_RI: Array, weights: Sequence[dict[str, Array]]) -> list[Array]:
        return kernels.products(packing, weights, outputs, x_RI)

    def plain(x_RI: Array, weights: Sequence[dict[str, Array]]) -> list[Array]:
        return [tiled(scheme, parts, shape, x_RI) for parts, shape in zip(weights, outputs, strict=True)]

    return kernels.as_plain(fast, plain)(x_RI, weights)


def chosen_products(
    scheme: Factored,
    packing: kernels.Packing,
    stacks: Sequence[dict[str, Array]],
    outputs: Sequence[tuple[int, ...]],
    x_CMI: Array,
    expert_C: Array,
    used_C: Array,
) -> list[Array]:
    """`kernels.products_chosen`, with the derivative of what `tiled` gives of each block."""

    def fast(*operands: Any) -> list[Array]:
        return kernels.products_chosen(packing, operands[0], outputs, *operands[1:])

    def plain(stacks: Sequence[dict[str, Array]], *blocks: Array) -> list[Array]:
        def block(inputs: tuple[Array, Array, Array]) -> list[Array]:
            x_MI, expert, used = inputs
            chosen = [{name: part[expert] for name, part in parts.items()} for parts in stacks]
            ys = [tiled(scheme, parts, shape[1:], x_MI) for parts, shape in zip(chosen, outputs, strict=True)]
            return [jnp.where(used, y, 0) for y in ys]

        return jax.lax.map(block, blocks)

    return kernels.as_plain(fast, plain)(stacks, x_CMI, expert_C, used_C)


def tiled(scheme: Factored, parts: dict[str, Array], outputs: tuple[int, ...], x_RI: Array) -> Array:
    """`decoded_products` on a CPU, of one weight, with no more than about `TILE` numbers decoded at a time."""
    scheme, parts = scheme.apart(parts)
    rows = max(1, TILE // (math.prod(outputs[1:]) * x_RI.shape[1]))
    if rows >= outputs[0]:
        return multiplied(*scheme.factors(parts), x_RI, matrix)

    def step(tile: Array, y: Array) -> Array:
        # the last tile may begin early: what it shares with the one before is written twice
        start = jnp.minimum(tile * rows, outputs[0] - rows)
        here = {
            name: part if part.shape[0] == 1 else jax.lax.dynamic_slice_in_dim(part, start, rows)
            for name, part in parts.items()
        }
        found = multiplied(*scheme.factors(here), x_RI, matrix)
        return jax.lax.dynamic_update_slice_in_dim(y, found, start, axis=1)

    y = jax.lax.full_like(x_RI, 0, shape=(x_RI.shape[0], *outputs))
    return jax.lax.fori_loop(0, -(-outputs[0] // rows), step, y)


def multiplied(values: Array, factor: Array | None, x_RI: Array, way: Callable[[Array, Array], Array]) -> Array:
    """x_RI times rows and what they are to be multiplied by, [R, *outputs]; `way` multiplies by values [O, I]."""
    y = way(x_RI, values.reshape(-1, values.shape[-1])).reshape(x_RI.shape[0], *values.shape[:-1])
    return y if factor is None else y * factor[None].astype(x_RI.dtype)


def matrix(x_RI: Array, values_OI: Array) -> Array:
    """A product of matrices."""
    return jnp.einsum("RI,OI->RO", x_RI, values_OI.astype(x_RI.dtype))


def streamed(x_1I: Array, values_OI: Array) -> Array:
    """The same for one row, added up in float32 while the values are made, which are then never written."""
    return (values_OI.astype(jnp.float32) * x_1I.astype(jnp.float32)).sum(-1)[None].astype(x_1I.dtype)


@jax.custom_jvp
def rounded_runs(x_RI: Array) -> Array:
    """x with every run of 32 numbers rounded to multiples of its largest over 127, as blocks of 8 bits hold them.

    Its derivative is that of x.
    """
    runs = x_RI.astype(jnp.float32).reshape(x_RI.shape[0], -1, RUN)
    largest = jnp.abs(runs).max(-1, keepdims=True)
    codes = jnp.round(runs * (127 / jnp.where(largest > 0, largest, 1)))
    return (codes * (largest / 127)).reshape(x_RI.shape).astype(x_RI.dtype)


@rounded_runs.defjvp
def as_if_not_rounded(at: tuple[Array], along: tuple[Array]) -> tuple[Array, Array]:
    """The rounded numbers, and how they would change if they were not."""
    return rounded_runs(*at), along[0]


def rounded_product(eq: str, x: Array, codes: Array, factor: Array) -> Array:
    """einsum(eq, x, codes) as a product of integers, `codes` being int8 with a factor for each output.

    x is rounded to int8 for each of its places, the largest number that a sum runs over being 127 (LLM.int8,
    arXiv:2208.07339, without its outliers). Sums are int32, which 2^31 / 127^2 = 133,000 numbers do not overflow.
    """
    xs, ws, out = subscripts(eq)
    summed = "".join(c for c in ws if c not in out)
    whole, step = rounded(x, [xs.index(c) for c in summed])
    sums = jnp.einsum(eq, whole.astype(jnp.int8), codes, preferred_element_type=jnp.int32)
    places = "".join(c for c in xs if c not in summed)
    scale = step.reshape([n for c, n in zip(xs, x.shape, strict=True) if c not in summed])
    factors = jnp.einsum(f"{places},{ws.replace(summed, '')}->{out}", scale, factor)
    return (sums.astype(jnp.float32) * factors).astype(x.dtype)


def rounded(x: Array, axes: Sequence[int]) -> tuple[Array, Array]:
    """x as whole numbers up to 127, float32, and the step that they count, which is one along some axes."""
    wide = x.astype(jnp.float32)
    largest = jnp.abs(wide).max(axes, keepdims=True)
    step = jnp.where(largest > 0, largest, 1.0) / 127
    return jnp.round(wide / step), step


def rounded_products(
    scheme: Factored, weights: Sequence[tuple[Array, Any]], outputs: Sequence[tuple[int, ...]], x_RI: Array
) -> list[Array]:
    """`rounded_product` of x_RI and each of several weights, int8 [*outputs, I] with a factor for each output or all.

    A CPU, on which XLA's products of integers are slow, multiplies the same whole numbers as floats, by a kernel if it
    can: `scheme` reads rows from codes and scales, which are 1. Sums below 2^24 are exact.
    """

    codes = [values for values, _ in weights]
    factors = [jnp.broadcast_to(factor, shape) for (_, factor), shape in zip(weights, outputs, strict=True)]

    def on_cpu(x_RI: Array, codes: list[Array], factors: list[Array]) -> list[Array]:
        whole, step = rounded(x_RI, [1])
        parts = [{"codes": values, "scale": jnp.ones((1,) * values.ndim)} for values in codes]
        sums = decoded_products(scheme, parts, outputs, whole)
        scales = [(step * factor.reshape(1, -1)).reshape(-1, *factor.shape) for factor in factors]
        return [(y * scale).astype(x_RI.dtype) for y, scale in zip(sums, scales, strict=True)]

    def elsewhere(x_RI: Array, codes: list[Array], factors: list[Array]) -> list[Array]:
        pairs = [(v.reshape(-1, v.shape[-1]), f.reshape(-1)) for v, f in zip(codes, factors, strict=True)]
        ys = [rounded_product("RI,OI->RO", x_RI, values, factor) for values, factor in pairs]
        return [y.reshape(-1, *shape) for y, shape in zip(ys, outputs, strict=True)]

    return kernels.by_platform(x_RI, codes, factors, cpu=on_cpu, default=elsewhere)
