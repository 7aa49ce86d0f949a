"""Weights, plain or not, and the only functions that multiply by them: `contract`, `contract_all`, `take`, `dense`.

A leaf of a parameter tree is a jax.Array, a `QTensor` (packed rows that a `Scheme` decodes) or an `Around`: another
leaf and something about it, such as an update (`forge_jax.lora`) or what it is multiplied by (`forge_jax.calibration`).
Everything else in the library treats leaves as opaque.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from forge_jax.kernels import Packing, fits_chosen
from forge_jax.products import chosen_products, product, rounded_product, subscripts


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

    def apart(self, parts: Mapping[str, Any]) -> "tuple[Scheme, dict[str, Any]]":
        """The same rows, each by itself and in its own order, where they lie otherwise."""
        ...

    def chosen(self, parts: Mapping[str, Any], ids: Any) -> "tuple[Scheme, dict[str, Any]]":
        """The rows of these numbers, of a table [rows, ...]; each by itself."""
        ...

    def products(
        self, weights: Sequence[dict[str, Array]], outputs: Sequence[tuple[int, ...]], x_RI: Array
    ) -> list[Array]:
        """x_RI times every row of several weights, see `decoded_products`."""
        ...

    def finer(self, parts: Mapping[str, Any], group: int) -> "tuple[Scheme, dict[str, Any]]":
        """The same rows with a scale for every `group` numbers, a divisor of now; as they are if that cannot be."""
        ...

    def factors(self, parts: Mapping[str, Any]) -> tuple[Any, Any | None]:
        """The rows as values [..., size] and one factor a row [...] that a product can be multiplied by instead; None
        where `values` are the numbers themselves."""
        ...

    def packing(self, parts: Mapping[str, Any]) -> Packing | None:
        """What `forge_jax.kernels` calls rows of these parts; None where it has no name for them."""
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


class Around(ABC):
    """A leaf around another one, `base`. What kind it is shows only in how it multiplies."""

    base: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        """The rank of the weight it stands for."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the weight it stands for."""
        return self.base.dtype

    @abstractmethod
    def contract(self, eq: str, x: Array) -> Array:
        """einsum(eq, x, this weight), see `contract`."""

    def take(self, ids: Array) -> Array:
        """Rows of this table, see `take`. NotImplementedError for a kind of leaf that is on no table."""
        raise NotImplementedError(f"{type(self).__name__}: a weight of this kind is no table; merge it first")

    def pick(self, index: Array) -> "Weight":
        """One of the weights stacked in this one, see `pick`. NotImplementedError for a kind that holds no stack."""
        raise NotImplementedError(f"{type(self).__name__}: a weight of this kind is not stacked; merge it first")

    @abstractmethod
    def dense(self) -> Array:
        """The plain array it stands for."""

    def by_row(self) -> Array:
        """The plain array of each row of a batch, or with an axis of 1 the one of all: [B or 1, ...], see `beside`."""
        return self.dense()[None]

    def astype(self, dtype: DTypeLike) -> Array:
        """The plain array it stands for, in another dtype: what ops ask of parameters that multiply nothing."""
        return self.dense().astype(dtype)


Weight = Array | QTensor | Around


def dense(w: Weight) -> Array:
    """The plain array that a leaf stands for."""
    match w:
        case QTensor() | Around():
            return w.dense()
        case _:
            return w


def beside(w: Weight, ndim: int, dtype: DTypeLike) -> Array:
    """A parameter with the last axes of activations of rank `ndim`, to be added to them or multiplied with them.

    It broadcasts by intent and not by promotion: [1, ..., *shape], or with a first axis B where each row has its own.
    """
    values = (w.by_row() if isinstance(w, Around) else dense(w)[None]).astype(dtype)
    lead = values.shape[:1] if ndim >= values.ndim else ()
    return values.reshape(*lead, *(1,) * (ndim - values.ndim), *values.shape[1:])


def unpacked(tree: Any) -> Any:
    """A tree of parameters with its packed leaves decoded: what gradients and other tools of plain arrays need."""
    return jax.tree.map(
        lambda leaf: leaf.dense() if isinstance(leaf, QTensor) else leaf, tree, is_leaf=lambda x: isinstance(x, QTensor)
    )


def has_packed(tree: Any) -> bool:
    """Whether a tree of parameters has packed leaves, by themselves or inside others."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, QTensor))
    return any(isinstance(leaf, QTensor) for leaf in leaves)


def contract(eq: str, x: Array, w: Weight) -> Array:
    """einsum(eq, x, w) for any kind of weight, in the dtype of `x`.

    The second operand is always the weight. Axes of `w` that `eq` does not sum over keep their order in the result.
    """
    match w:
        case Around():
            return w.contract(eq, x)
        case QTensor() if rows_fit(eq, w):
            return packed_products(eq, x, [w])[0]
        case QTensor():
            return product(eq, x, w.dense().astype(x.dtype))
        case _:
            return product(eq, x, w.astype(x.dtype))


def rows_fit(eq: str, w: QTensor) -> bool:
    """Whether an equation sums over exactly what the rows of a weight cover."""
    _, axes, out = subscripts(eq)
    covered = axes[w.first : w.first + len(w.summed)]
    return set(covered) == {axis for axis in axes if axis not in out}


def contract_all(eq: str, x: Array, weights: Sequence[Weight]) -> list[Array]:
    """`contract` with each of several weights. Those that are packed alike are multiplied by in one call of a kernel,
    where there is one.
    """
    alike: dict[Any, list[QTensor]] = {}
    for w in weights:
        if isinstance(w, QTensor) and rows_fit(eq, w):
            alike.setdefault(kind(w), []).append(w)
    made = {id(w): y for some in alike.values() for w, y in zip(some, packed_products(eq, x, some), strict=True)}
    return [made[id(w)] if id(w) in made else contract(eq, x, w) for w in weights]


def kind(w: QTensor) -> Any:
    """What weights share that one call of a kernel can multiply by: scheme, parts and their dtypes."""
    return (w.scheme, *sorted((name, str(part.dtype)) for name, part in w.parts.items()))


def packed_products(eq: str, x: Array, weights: Sequence[QTensor]) -> list[Array]:
    """The products with weights that are packed alike, whose rows are what it sums over.

    They are tied to `x`: XLA would otherwise decode them before a loop and keep a copy of all layers in floats.
    """
    xs, axes, out = subscripts(eq)
    x, parts = jax.lax.optimization_barrier((x, [w.parts for w in weights]))
    weights = [replace(w, parts=own) for w, own in zip(weights, parts, strict=True)]
    one = weights[0]
    summed = axes[one.first : one.first + len(one.summed)]
    outputs = axes.replace(summed, "")
    batch = xs.removesuffix(summed)
    if batch + summed != xs or batch + outputs != out:
        return [product_of_rows(f"{xs},{outputs}{summed}->{out}", x, w) for w in weights]
    flat = x.reshape(-1, one.scheme.size(one.parts))
    ys = one.scheme.products(parts, [w.outputs for w in weights], flat)
    return [y.reshape(*x.shape[: len(batch)], *w.outputs) for y, w in zip(ys, weights, strict=True)]


def product_of_rows(eq: str, x: Array, w: QTensor) -> Array:
    """A product in which axes come in any order, or of integers; the equation has the weight as [*outputs, *summed]."""
    values, factor = w.scheme.factors(w.parts) if w.scheme.rounds else (None, None)
    if values is not None and factor is not None:
        codes, factor = values.reshape(*w.outputs, *w.summed), jnp.broadcast_to(factor, w.outputs)
        return rounded_product(eq, x, codes, factor)
    return jnp.einsum(eq, x, w.rows().astype(x.dtype))


def chosen_in_place(x_CMI: Array | jax.ShapeDtypeStruct, stacks: Sequence[Weight]) -> bool:
    """Whether `contract_chosen` can read the weights that blocks of such rows choose of these stacks [E, I, O]."""

    def apt(w: QTensor) -> bool:
        packing = w.scheme.packing(w.parts) if (w.first, w.trailing) == (1, 1) else None
        return packing is not None and fits_chosen(packing, w.parts, w.outputs, x_CMI)

    packed = [w for w in stacks if isinstance(w, QTensor) and apt(w)]
    return len(packed) == len(stacks) and len({kind(w) for w in packed}) == 1


def contract_chosen(x_CMI: Array, stacks: Sequence[QTensor], expert_C: Array, used_C: Array) -> list[Array]:
    """Each block of rows times the weight of its expert, of each of the stacks; only on a CPU, and where these are
    `chosen_in_place`. The products of blocks that are not used are zero.
    """
    # as in `packed_products`
    x_CMI, parts = jax.lax.optimization_barrier((x_CMI, [w.parts for w in stacks]))
    scheme = stacks[0].scheme
    packing = scheme.packing(parts[0])
    if packing is None:
        raise ValueError(f"{scheme.name}: there is no kernel for stacks of these rows")
    return chosen_products(scheme, packing, parts, [w.outputs for w in stacks], x_CMI, expert_C, used_C)


def take(w: Weight, ids: Array) -> Array:
    """Rows of a table: w[ids]."""
    match w:
        case QTensor(parts) if w.first > 0:
            scheme, chosen = w.scheme.chosen(parts, ids)
            return replace(w, parts=chosen, scheme=scheme).dense()
        case QTensor():
            return w.dense()[ids]
        case Around():
            return w.take(ids)
        case _:
            return w[ids]


def pick(w: Weight, index: Array) -> Weight:
    """One of the weights that are stacked along the leading axis, of the same kind."""

    def slice_of(leaf: Array) -> Array:
        # a scale may be one for all
        at = jnp.minimum(index, leaf.shape[0] - 1)
        return jax.lax.dynamic_index_in_dim(leaf, at, 0, keepdims=False)

    match w:
        case Around():
            return w.pick(index)
        case _:
            return jax.tree.map(slice_of, w)
