"""Weights, plain or not, and the only three functions that multiply by them: `contract`, `take`, `dense`.

A leaf of a parameter tree is a jax.Array, a `QTensor` (integer codes with scales) or a `Lora` (any leaf plus a
low-rank update). Everything else in the library treats leaves as opaque.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QTensor:
    """An int8 weight: value = codes * scale, each scale covering a tile of codes.

    Invariants: scale.ndim == codes.ndim, and codes.shape[i] is a multiple of scale.shape[i] for every i.
    """

    codes: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        return self.codes.shape

    @property
    def ndim(self) -> int:
        """The rank of the weight it stands for."""
        return self.codes.ndim

    def dense(self) -> Array:
        """The whole weight in the dtype of the scales."""
        scale = self.scale
        for axis, (big, small) in enumerate(zip(self.codes.shape, self.scale.shape, strict=True)):
            if small not in (1, big):
                scale = jnp.repeat(scale, big // small, axis)
        return self.codes.astype(scale.dtype) * scale


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lora:
    """A low-rank update beside a weight that is not touched: value = base + scale * (a @ b).

    a is [*leading axes of base, R], b is [R, *trailing axes of base]; `contract` sums over all of one side.
    """

    base: Any
    a: Array
    b: Array
    scale: float = field(metadata={"static": True}, default=1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        """The rank of the weight it stands for."""
        return self.base.ndim

    def dense(self) -> Array:
        """The merged weight."""
        base = dense(self.base)
        update = jnp.tensordot(self.a, self.b, axes=1)
        return base + (self.scale * update).astype(base.dtype)


Weight = Array | QTensor | Lora


def dense(w: Weight) -> Array:
    """The plain array that a leaf stands for."""
    return w.dense() if isinstance(w, QTensor | Lora) else w


def contract(eq: str, x: Array, w: Weight) -> Array:
    """einsum(eq, x, w) for any kind of weight, in the dtype of `x`.

    The second operand is always the weight. Axes of `w` that `eq` does not sum over keep their order in the result.
    """
    match w:
        case Lora(base, a, b, scale):
            into, out, (first, second) = lora_equations(eq, a, b)
            return contract(eq, x, base) + scale * contract(out, contract(into, x, first), second)
        case QTensor(codes, scale) if per_output(eq, codes.shape, scale.shape):
            # one scale an output feature: multiply the product, not the weight
            y = product(eq, x, codes.astype(x.dtype))
            outputs = tuple(n for n, s in zip(scale.shape, subscripts(eq)[1], strict=True) if s in subscripts(eq)[2])
            factor = scale.reshape((1,) * (y.ndim - len(outputs)) + outputs)
            return y * factor.astype(x.dtype)
        case QTensor():
            return product(eq, x, w.dense().astype(x.dtype))
        case _:
            return product(eq, x, w.astype(x.dtype))


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


def take(w: Weight, ids: Array) -> Array:
    """Rows of a table: w[ids]."""
    match w:
        case QTensor(codes, scale) if scale.shape[0] == codes.shape[0]:
            rows = QTensor(codes[ids].reshape(-1, *codes.shape[1:]), scale[ids].reshape(-1, *scale.shape[1:]))
            return rows.dense().reshape(*ids.shape, *codes.shape[1:])
        case QTensor():
            return w.dense()[ids]
        case Lora(base, a, b, scale):
            return take(base, ids) + scale * jnp.tensordot(a[ids], b, axes=1)
        case _:
            return w[ids]


def pick(w: Weight, index: Array) -> Weight:
    """One of the weights that are stacked along the leading axis, of the same kind."""

    def slice_of(leaf: Array) -> Array:
        # a scale may be one for all
        at = jnp.minimum(index, leaf.shape[0] - 1)
        return jax.lax.dynamic_index_in_dim(leaf, at, 0, keepdims=False)

    match w:
        case Lora():
            raise NotImplementedError("low-rank updates of stacked weights are not implemented yet")
        case _:
            return jax.tree.map(slice_of, w)


def subscripts(eq: str) -> tuple[str, str, str]:
    """Split "xs,ws->ys"."""
    operands, out = eq.split("->")
    x, w = operands.split(",")
    return x, w, out


def per_output(eq: str, codes: tuple[int, ...], scale: tuple[int, ...]) -> bool:
    """Whether a scale differs only along axes that survive the contraction, and those trail in the result."""
    _, w, out = subscripts(eq)
    kept = "".join(c for c in w if c in out)
    whole = all(s == n if c in out else s == 1 for c, n, s in zip(w, codes, scale, strict=True))
    return whole and out.endswith(kept)


def lora_equations(eq: str, a: Array, b: Array) -> tuple[str, str, tuple[Array, Array]]:
    """The two einsums of the low-rank path, into rank R and out of it, and the factor that each multiplies by.

    Raises:
        ValueError: the sum runs over a part of one factor's axes.
    """
    x, w, out = subscripts(eq)
    inputs = "".join(c for c in w if c not in out)
    outputs = "".join(c for c in w if c in out)
    low = "".join(c for c in out if c not in outputs) + "r"
    leading, trailing = w[: a.ndim - 1], w[a.ndim - 1 :]
    if leading == inputs:
        return f"{x},{leading}r->{low}", f"{low},r{trailing}->{out}", (a, b)
    if trailing == inputs:  # a tied head reads the embedding the other way round
        return f"{x},r{trailing}->{low}", f"{low},{leading}r->{out}", (b, a)
    raise ValueError(f"Lora: {eq} sums over {inputs!r}, but a covers {leading!r} and b {trailing!r}")
