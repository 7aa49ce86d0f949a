"""A leaf that tells what it is multiplied by."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.products import subscripts
from forge_jax.tensor import Around, contract, dense, pick, take


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

    def contract(self, eq: str, x: Array) -> Array:
        """The product, having seen x."""
        return contract(eq, seen(eq, x, self), self.base)

    def take(self, ids: Array) -> Array:
        """Rows of the base: nothing is multiplied."""
        return take(self.base, ids)

    def pick(self, index: Array) -> "Observed":
        """One of the stacked weights with its taps."""
        picked = {name: jax.lax.dynamic_index_in_dim(tap, index, 0, keepdims=False) for name, tap in self.taps.items()}
        return replace(self, base=pick(self.base, index), taps=picked, stacked=self.stacked - 1)

    def dense(self) -> Array:
        """The base."""
        return dense(self.base)


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
