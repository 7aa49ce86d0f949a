"""Weights, plain or not, and the only three functions that multiply by them: `contract`, `take`, `dense`.

A leaf of a parameter tree is a jax.Array, a `QTensor` (packed rows that a `Scheme` decodes), a `Lora` (any leaf plus a
low-rank update) or an `Observed` (any leaf that tells what it is multiplied by). Everything else in the library treats
leaves as opaque.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.products import decoded_product, product, rounded_product, subscripts


class Scheme(Protocol):
    """How rows of numbers are packed into parts: data that is hashed and compared, never traced.

    A part is [..., n]: the axes before the last one are those of the rows, each of its size or 1. Decoding works on
    NumPy arrays and on jax's. `whole` names the parts whose last axis does not run along the row (tables).
    """

    @property
    def name(self) -> str:
        """What people call it: "int8", "nf4", "Q4_K", ..."""
        ...

    @property
    def whole(self) -> tuple[str, ...]:
        """The parts whose last axis does not run along the row."""
        ...

    @property
    def rounds(self) -> bool:
        """Whether products round their inputs to int8 as well, see `rounded_product`; `factors` are then int8."""
        ...

    def size(self, parts: Mapping[str, Any]) -> int:
        """How many numbers a row has."""
        ...

    def decode(self, parts: Mapping[str, Any]) -> Any:
        """The rows, float32 [..., size]."""
        ...

    def finer(self, parts: Mapping[str, Any], group: int) -> "tuple[Scheme, dict[str, Any]]":
        """The same rows with a scale for every `group` numbers, a divisor of now; as they are if that cannot be."""
        ...

    def factors(self, parts: Mapping[str, Any]) -> tuple[Any, Any | None]:
        """The rows as values [..., size] and one factor a row [...] that a product can be multiplied by instead; None
        where `values` are the numbers themselves."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QTensor:
    """A weight that stays packed: rows along the axes that a product sums over, one row for each of its outputs.

    The shape it stands for is [*leading, *summed, *trailing]. Every part is [*leading, *trailing, n], what `scheme`
    makes of a row, or has 1 in the place of an axis where all rows share it.

    inner: the sizes of the summed axes after the first, whose size follows from the length of a row. trailing: how many
    axes come after the summed ones. dtype: of what `dense` and `take` give.
    """

    parts: dict[str, Any]
    scheme: Scheme = field(metadata={"static": True})
    inner: tuple[int, ...] = field(metadata={"static": True}, default=())
    trailing: int = field(metadata={"static": True}, default=0)
    dtype: str = field(metadata={"static": True}, default="float32")

    @property
    def outputs(self) -> tuple[int, ...]:
        """The sizes of the axes that rows are numbered by."""
        shapes = [part.shape[:-1] for part in self.parts.values()]
        return tuple(max(sizes) for sizes in zip(*shapes, strict=True))

    @property
    def summed(self) -> tuple[int, ...]:
        """The sizes of the axes that a row covers."""
        return (self.scheme.size(self.parts) // math.prod(self.inner), *self.inner)

    @property
    def first(self) -> int:
        """Where the summed axes begin."""
        return next(iter(self.parts.values())).ndim - 1 - self.trailing

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        outputs = self.outputs
        return (*outputs[: self.first], *self.summed, *outputs[self.first :])

    @property
    def ndim(self) -> int:
        """The rank of the weight it stands for."""
        return len(self.outputs) + 1 + len(self.inner)

    @property
    def size(self) -> int:
        """How many numbers it stands for."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of its parts."""
        return sum(part.nbytes for part in self.parts.values())

    def every_row(self, name: str) -> Any:
        """A part [*outputs, n] on the host, for every row."""
        part = self.parts[name]
        return np.broadcast_to(part, (*self.outputs, part.shape[-1]))

    def rows(self) -> Any:
        """The numbers, float32 [*outputs, *summed]."""
        return self.scheme.decode(self.parts).reshape(*self.outputs, *self.summed)

    def dense(self) -> Any:
        """The whole weight in `dtype`."""
        rows, first = self.rows().astype(self.dtype), self.first
        axes = tuple(range(rows.ndim))
        summed = axes[len(self.outputs) :]
        return rows.transpose(*axes[:first], *summed, *axes[first : len(self.outputs)])


class Around:
    """What leaves around another leaf, `base`, have in common."""

    base: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        """The rank of the weight it stands for."""
        return self.base.ndim

    @property
    def dtype(self) -> Any:
        """The dtype of the weight it stands for."""
        return self.base.dtype


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lora(Around):
    """A low-rank update beside a weight that is not touched: value = base + scale * (a @ b).

    a is [*leading axes of base, R], b is [R, *trailing axes of base]; `contract` sums over all of one side.
    """

    base: Any
    a: Array
    b: Array
    scale: float = field(metadata={"static": True}, default=1.0)

    def dense(self) -> Array:
        """The merged weight."""
        base = dense(self.base)
        update = jnp.tensordot(self.a, self.b, axes=1)
        return base + (self.scale * update).astype(base.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observed(Around):
    """A weight that tells what it is multiplied by, without any side effect.

    The gradient with respect to `taps`, which are zeros, of whatever depends on its products are sums over all rows x
    [n] that it was multiplied by: "gram" [n, n] of x x^T, "square" [n] of x^2, "absolute" [n] of |x|, "count" [] of
    rows that are not all zero. They hold through loops and branches, and for each of the `stacked` weights by itself
    where one is picked: every tap begins with those axes. The `inputs` axes after them are those that rows run along.
    """

    base: Any
    taps: dict[str, Array]
    stacked: int = field(metadata={"static": True}, default=0)
    inputs: int = field(metadata={"static": True}, default=1)


Weight = Array | QTensor | Lora | Observed


def dense(w: Weight) -> Array:
    """The plain array that a leaf stands for."""
    match w:
        case Observed():
            return dense(w.base)
        case QTensor() | Lora():
            return w.dense()
        case _:
            return w


def unpacked(tree: Any) -> Any:
    """A tree of parameters with its packed leaves decoded: what gradients and other tools of plain arrays need."""
    return jax.tree.map(
        lambda leaf: leaf.dense() if isinstance(leaf, QTensor) else leaf, tree, is_leaf=lambda x: isinstance(x, QTensor)
    )


def contract(eq: str, x: Array, w: Weight) -> Array:
    """einsum(eq, x, w) for any kind of weight, in the dtype of `x`.

    The second operand is always the weight. Axes of `w` that `eq` does not sum over keep their order in the result.
    """
    match w:
        case Lora(base, a, b, scale):
            into, out, (first, second) = lora_equations(eq, a, b)
            return contract(eq, x, base) + scale * contract(out, contract(into, x, first), second)
        case Observed(base):
            return contract(eq, seen(eq, x, w), base)
        case QTensor() if rows_fit(eq, w):
            return packed_product(eq, x, w)
        case QTensor():
            return product(eq, x, w.dense().astype(x.dtype))
        case _:
            return product(eq, x, w.astype(x.dtype))


def rows_fit(eq: str, w: QTensor) -> bool:
    """Whether an equation sums over exactly what the rows of a weight cover."""
    _, axes, out = subscripts(eq)
    covered = axes[w.first : w.first + len(w.summed)]
    return set(covered) == {axis for axis in axes if axis not in out}


def packed_product(eq: str, x: Array, w: QTensor) -> Array:
    """The product with a packed weight whose rows are what it sums over.

    The weight is tied to `x`: XLA would otherwise decode it before a loop and keep a copy of all layers in floats.
    """
    xs, axes, out = subscripts(eq)
    x, parts = jax.lax.optimization_barrier((x, w.parts))
    summed = axes[w.first : w.first + len(w.summed)]
    outputs = axes.replace(summed, "")
    batch = xs.removesuffix(summed)
    values, factor = w.scheme.factors(parts) if w.scheme.rounds else (None, None)
    if values is not None and factor is not None:
        codes, factor = values.reshape(*w.outputs, *w.summed), jnp.broadcast_to(factor, w.outputs)
        return rounded_product(f"{xs},{outputs}{summed}->{out}", x, codes, factor)
    if batch + summed != xs or batch + outputs != out:
        rows = replace(w, parts=parts).rows().astype(x.dtype)
        return jnp.einsum(f"{xs},{outputs}{summed}->{out}", x, rows)
    y = decoded_product(w.scheme, parts, w.outputs, x.reshape(-1, w.scheme.size(parts)))
    return y.reshape(*x.shape[: len(batch)], *w.outputs)


def take(w: Weight, ids: Array) -> Array:
    """Rows of a table: w[ids]."""
    match w:
        case QTensor(parts) if w.first > 0:
            chosen = {name: part[jnp.minimum(ids, part.shape[0] - 1)] for name, part in parts.items()}
            return replace(w, parts=chosen).dense()
        case QTensor():
            return w.dense()[ids]
        case Lora(base, a, b, scale):
            return take(base, ids) + scale * jnp.tensordot(a[ids], b, axes=1)
        case Observed(base):
            return take(base, ids)
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
        case Observed(base, taps):
            picked = {name: jax.lax.dynamic_index_in_dim(tap, index, 0, keepdims=False) for name, tap in taps.items()}
            return replace(w, base=pick(base, index), taps=picked, stacked=w.stacked - 1)
        case _:
            return jax.tree.map(slice_of, w)


def seen(eq: str, x: Array, w: Observed) -> Array:
    """x, whose rows join the gradient of the taps of `w` if the equation sums over what they run along."""
    xs, axes, out = subscripts(eq)
    stacked, inputs = axes[: w.stacked], axes[w.stacked : w.stacked + w.inputs]
    if any(axis not in xs or axis in out for axis in inputs):
        return x
    lead = [axis for axis in stacked if axis in xs]
    batch = [axis for axis in xs if axis not in stacked + inputs]
    rows = x.transpose([xs.index(axis) for axis in (*lead, *batch, *inputs)])
    rows = rows.reshape(*(x.shape[xs.index(axis)] for axis in lead), -1, math.prod(w.shape[w.stacked :][: w.inputs]))
    rows = jnp.expand_dims(rows, [i for i, axis in enumerate(stacked) if axis not in xs])
    return tapped(x, rows, w.taps)


@jax.custom_vjp
def tapped(x: Array, rows: Array, taps: dict[str, Array]) -> Array:
    """x; the gradient of `taps` is a sum over `rows` [*stacked or 1, R, n]."""
    return x


def sums(x: Array, rows: Array, taps: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """x, and what the taps are to get."""
    rows = rows.astype(jnp.float32)
    total = {
        "gram": lambda: jnp.einsum("...ri,...rj->...ij", rows, rows, precision="highest"),
        "square": lambda: jnp.square(rows).sum(-2),
        "absolute": lambda: jnp.abs(rows).sum(-2),
        "count": lambda: (rows != 0).any(-1).astype(jnp.float32).sum(-1),
    }
    return x, {name: jnp.broadcast_to(total[name](), tap.shape) for name, tap in taps.items()}


tapped.defvjp(sums, lambda total, x: (x, None, total))


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
