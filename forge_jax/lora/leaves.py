"""The kinds of leaves that an adapted model has in the place of its weights.

`Lora` is a low-rank update beside a weight, `Replaced` a table with other rows for some ids, `Apart` a tied embedding
whose two uses were adapted apart, `Turned` a table read the other way, `Chosen` a parameter that each row of a batch
chooses among several. They multiply as any weight does, so no op knows of them.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.products import product, subscripts
from forge_jax.tensor import Around, Weight, contract, dense, pick, take

NONE = -1  # the adapter of a row that has none


def along(out: str, axes: str, values: Array) -> Array:
    """Values with the axes named, a part of those of `out` in any order, with axes of 1 for all others of `out`."""
    found = [c for c in out if c in axes]
    values = values.transpose([axes.index(c) for c in found])
    sizes = dict(zip(found, values.shape, strict=True))
    return values.reshape([sizes.get(c, 1) for c in out])


def row_axis(eq: str, what: str) -> None:
    """Raise ValueError unless an equation keeps the axis B, the rows of a batch."""
    x, _, out = subscripts(eq)
    if "B" not in x or "B" not in out:
        raise ValueError(
            f"adapters by row: {eq} mixes the rows of a batch (experts do), so {what} cannot differ from row to row; "
            "run the rows with each adapter by themselves, or leave this weight out of the adapter"
        )


def turned(eq: str) -> str:
    """The equation for the transposed weight."""
    xs, ws, out = subscripts(eq)
    return f"{xs},{ws[::-1]}->{out}"


def rows_of(row_B: Array, count: int) -> Array:
    """The number of each row's choice; one that stands for all is repeated."""
    return jnp.broadcast_to(row_B, (count,))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lora(Around):
    """A low-rank update beside a weight that is not touched: (base + a b) * gain, and a bias added to the product.

    a is [*stacked, *leading, R] and b [*stacked, R, *trailing] for a base [*stacked, *leading, *trailing]; products sum
    over all of one side. gain (of DoRA) and bias are [*stacked, *trailing].
    With `row_B`, all of these have an axis before them that numbers adapters, the last of which changes nothing; row i
    of a batch has the one of number row_B[i], -1 being none.
    """

    base: Any
    a: Array
    b: Array
    gain: Array | None = None
    bias: Array | None = None
    row_B: Array | None = None
    stacked: int = field(metadata={"static": True}, default=0)

    def own(self, rows: int) -> tuple[Array, Array, Array | None, Array | None]:
        """a, b, gain and bias: the only ones, or those of each of so many rows, with an axis B before the others."""
        if self.row_B is None:
            return self.a, self.b, self.gain, self.bias
        row_B = rows_of(self.row_B, rows)
        gain, bias = (None if part is None else part[row_B] for part in (self.gain, self.bias))
        return self.a[row_B], self.b[row_B], gain, bias

    def contract(self, eq: str, x: Array) -> Array:
        """The product with the base and, beside it, that with the factors."""
        xs, ws, out = subscripts(eq)
        row, stacked = "" if self.row_B is None else "B", ws[: self.stacked]
        if row:
            row_axis(eq, "an update of it")
        leading, trailing, forward = self.sides(eq)
        outputs = stacked + trailing
        if (self.gain is not None or self.bias is not None) and not (forward and set(outputs) <= set(out)):
            if row or self.bias is not None:
                raise ValueError(f"Lora: {eq} sums over axes that the gain or the bias of its outputs has")
            return product(eq, x, self.dense().astype(x.dtype))
        a, b, gain, bias = self.own(x.shape[xs.index("B")] if row else 1)
        low = "".join(c for c in out if c not in leading + trailing)
        low += "".join(c for c in stacked if c not in low) + "r"
        factors = [(f"{row}{stacked}{leading}r", a), (f"{row}{stacked}r{trailing}", b)]
        (first, into), (second, back) = factors if forward else factors[::-1]
        low_x = product(f"{xs},{first}->{low}", x, into.astype(x.dtype))
        y = contract(eq, x, self.base) + product(f"{low},{second}->{out}", low_x, back.astype(x.dtype))
        y = y if gain is None else y * along(out, row + outputs, gain).astype(y.dtype)
        return y if bias is None else y + along(out, row + outputs, bias).astype(y.dtype)

    def sides(self, eq: str) -> tuple[str, str, bool]:
        """The axes of a, those of b, and whether a product sums over the former; else it does over the latter.

        Raises:
            ValueError: the sum runs over a part of one factor's axes.
        """
        _, ws, out = subscripts(eq)
        axes, size = ws[self.stacked :], self.a.ndim - 1 - self.stacked - (self.row_B is not None)
        leading, trailing = axes[:size], axes[size:]
        summed = {c for c in axes if c not in out}
        if summed in (set(leading), set(trailing)):  # a tied head reads the embedding the other way round
            return leading, trailing, set(leading) == summed
        raise ValueError(f"Lora: {eq} sums over {sorted(summed)}, but a covers {leading!r} and b {trailing!r}")

    def take(self, ids: Array) -> Array:
        """Rows of the updated table; of stacked weights those numbered."""
        if self.stacked:
            return replace(self.of(ids), base=take(self.base, ids)).dense()
        if self.row_B is None:
            y = jnp.tensordot(self.a[ids], self.b, axes=1)
            gain = None if self.gain is None else self.gain[None]
        else:
            row_B = rows_of(self.row_B, ids.shape[0])
            a = self.a[row_B.reshape(-1, *(1,) * (ids.ndim - 1)), ids]
            y = jnp.einsum("b...r,brd->b...d", a, self.b[row_B])
            gain = None if self.gain is None else self.gain[row_B]
        y = take(self.base, ids) + y.astype(self.dtype)
        if gain is None:
            return y
        return y * gain.astype(y.dtype).reshape(gain.shape[0], *(1,) * (y.ndim - gain.ndim), *gain.shape[1:])

    def of(self, index: Array) -> "Lora":
        """The updates of some of the stacked weights, the base left as it is."""
        if self.row_B is not None:
            raise ValueError(
                "adapters by row: experts take tokens of all rows together, so an update of them cannot differ from "
                "row to row; run the rows with each adapter by themselves"
            )
        gain, bias = (None if part is None else part[index] for part in (self.gain, self.bias))
        return replace(self, a=self.a[index], b=self.b[index], gain=gain, bias=bias)

    def pick(self, index: Array) -> "Lora":
        """One of the stacked weights with its update."""
        return replace(self.of(index), base=pick(self.base, index), stacked=self.stacked - 1)

    def delta(self) -> Array:
        """The product of the factors, [*stacked, *leading, *trailing], in the dtype of the factors."""
        s, size = self.stacked, self.a.ndim - 1 - self.stacked
        stacked, leading, trailing = "uvw"[:s], "abcde"[:size], "ijklm"[: self.ndim - s - size]
        return jnp.einsum(f"{stacked}{leading}r,{stacked}r{trailing}->{stacked}{leading}{trailing}", self.a, self.b)

    def dense(self) -> Array:
        """The merged weight.

        Raises:
            ValueError: rows have different ones, or a bias would be lost.
        """
        if self.row_B is not None:
            raise ValueError("adapters by row: a weight whose update differs from row to row has no one value here")
        if self.bias is not None:
            raise ValueError("Lora: the update has a bias of its own, which a merged weight has no place for")
        base = dense(self.base)
        merged = base.astype(jnp.float32) + self.delta().astype(jnp.float32)
        if self.gain is None:
            return merged.astype(base.dtype)
        leading = self.a.ndim - 1 - self.stacked
        gain = self.gain.reshape(*self.gain.shape[: self.stacked], *(1,) * leading, *self.gain.shape[self.stacked :])
        return (merged * gain).astype(base.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Replaced(Around):
    """A table [V, D] in which some ids have other rows: id v has rows[which[v] - 1], or its own where which[v] is 0.

    which is [V], rows [K, D]. With `row_B`, both have an axis before them that numbers adapters, as in `Lora`.
    """

    base: Any
    which: Array
    rows: Array
    row_B: Array | None = None

    def contract(self, eq: str, x: Array) -> Array:
        """The product with the table, and in the places of some of its columns that with the other rows."""
        xs, ws, out = subscripts(eq)
        which, rows, row = self.which, self.rows, ""
        if self.row_B is not None:
            row_axis(eq, "its rows")
            row_B, row = rows_of(self.row_B, x.shape[xs.index("B")]), "B"
            which, rows = which[row_B], rows[row_B]
        y = contract(eq, x, self.base)
        other = product(f"{xs},{row}k{ws[1]}->{out.replace(ws[0], 'k')}", x, rows.astype(x.dtype))
        which = along(out, row + ws[0], which)
        other = jnp.take_along_axis(other, jnp.maximum(which - 1, 0), axis=out.index(ws[0]))
        return jnp.where(which > 0, other.astype(y.dtype), y)

    def take(self, ids: Array) -> Array:
        """Rows of the table."""
        if self.row_B is None:
            which, rows = self.which[ids], self.rows[jnp.maximum(self.which[ids] - 1, 0)]
        else:
            row_B = rows_of(self.row_B, ids.shape[0]).reshape(-1, *(1,) * (ids.ndim - 1))
            which = self.which[row_B, ids]
            rows = self.rows[row_B, jnp.maximum(which - 1, 0)]
        return jnp.where((which > 0)[..., None], rows.astype(self.dtype), take(self.base, ids))

    def dense(self) -> Array:
        """The table with the other rows in it.

        Raises:
            ValueError: the rows of a batch have different ones.
        """
        if self.row_B is not None:
            raise ValueError("adapters by row: a table some of whose rows differ from row to row has no one value here")
        base = dense(self.base)
        return jnp.where((self.which > 0)[:, None], self.rows[jnp.maximum(self.which - 1, 0)].astype(base.dtype), base)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Turned(Around):
    """A table [V, D] read the other way, [D, V]: what a tied head is."""

    base: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Both axes exchanged."""
        return self.base.shape[::-1]

    def contract(self, eq: str, x: Array) -> Array:
        """The product with the table."""
        return contract(turned(eq), x, self.base)

    def dense(self) -> Array:
        """The transposed table."""
        return dense(self.base).T


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Apart(Around):
    """A tied embedding whose uses were adapted apart: `base` [V, D] is looked up, `head` [D, V] reads out."""

    base: Any
    head: Any

    def contract(self, eq: str, x: Array) -> Array:
        """The product with the head."""
        return contract(turned(eq), x, self.head)

    def take(self, ids: Array) -> Array:
        """Rows of the table."""
        return take(self.base, ids)

    def dense(self) -> Array:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError("an embedding that is adapted apart from its tied head has no one value; untie the head first")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chosen(Around):
    """A parameter of which each row of a batch has one of several: row i has options[table[row_B[i]]].

    options: leaves of one shape, the first the base. table: the option of each adapter, the last entry that of none.
    """

    options: tuple[Any, ...]
    table: Array
    row_B: Array

    @property
    def base(self) -> Any:
        """What rows without an adapter have."""
        return self.options[0]

    def choice(self, rows: int) -> Array:
        """The option of each row."""
        return self.table[rows_of(self.row_B, rows)]

    def among(self, results: list[Array], axis: int) -> Array:
        """From what each option gives, each row's along an axis."""
        y = results[0]
        choice = self.choice(y.shape[axis])
        for i, result in enumerate(results[1:], 1):
            mine = (choice == i).reshape([-1 if at == axis else 1 for at in range(y.ndim)])
            y = jnp.where(mine, result, y)
        return y

    def contract(self, eq: str, x: Array) -> Array:
        """The product with every option; each row takes its own."""
        row_axis(eq, "it")
        return self.among([contract(eq, x, option) for option in self.options], subscripts(eq)[2].index("B"))

    def take(self, ids: Array) -> Array:
        """Rows of each row's own table."""
        return self.among([take(option, ids) for option in self.options], 0)

    def by_row(self) -> Array:
        """The value of each row, [B, ...], or [1, ...] where none has chosen."""
        return jnp.stack([dense(option) for option in self.options])[self.choice(self.row_B.shape[0])]

    def dense(self) -> Array:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"adapters by row: a parameter of shape {list(self.shape)} differs from row to row, which the op that "
            "reads it does not provide for; run the rows with each adapter by themselves"
        )


def mapped(leaf: Weight, row_B: Array) -> Weight:
    """A leaf whose choices are those of other rows."""
    match leaf:
        case Lora() | Replaced():
            row = None if leaf.row_B is None else row_B
            return replace(leaf, base=mapped(leaf.base, row_B), row_B=row)
        case Turned():
            return Turned(mapped(leaf.base, row_B))
        case Apart():
            return Apart(mapped(leaf.base, row_B), mapped(leaf.head, row_B))
        case Chosen():
            return replace(leaf, options=tuple(mapped(option, row_B) for option in leaf.options), row_B=row_B)
        case _:
            return leaf
