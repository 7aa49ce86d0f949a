"""Packed rows whose numbers were put in the order of their groups, for kernels, which want these one after another.

Products give their inputs the same order. Whoever else reads such rows sees them as they were.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax import Array

from forge_jax import kernels
from forge_jax.quantization.base import Rows
from forge_jax.quantization.schemes import Integers
from forge_jax.quantization.streams import moved
from forge_jax.tensor import QTensor, Scheme

ORDER = "order"


@dataclass(frozen=True)
class Ordered(Rows):
    """Rows of another scheme, and part "order" int32 [..., n]: which number of a row as it was stands in each place.

    bits, group: of the integers that the rows are, or that lie in tiles.
    """

    rows: Scheme
    bits: int
    group: int

    @property
    def name(self) -> str:
        """What people call it."""
        return self.rows.name

    def size(self, parts: Mapping[str, Any]) -> int:
        """How many numbers a row has."""
        return parts[ORDER].shape[-1]

    def products(
        self, weights: Sequence[dict[str, Array]], outputs: Sequence[tuple[int, ...]], x_RI: Array
    ) -> list[Array]:
        """The products with rows beneath, each weight by itself: another one has another order."""
        if any(parts[ORDER].size != x_RI.shape[1] for parts in weights):  # not one order for all rows
            return super().products(weights, outputs, x_RI)
        return [
            self.rows.products([without(parts)], [shape], arranged(x_RI, parts[ORDER]))[0]
            for parts, shape in zip(weights, outputs, strict=True)
        ]

    def apart(self, parts: Mapping[str, Any]) -> tuple[Scheme, dict[str, Any]]:
        """The rows as they were, each by itself, with the group of each number."""
        place = parts[ORDER].__array_namespace__().argsort(parts[ORDER], axis=-1)
        scheme, found = self.rows.apart(without(parts))
        codes = moved(found["codes"], self.bits, place)
        return scheme, found | {"codes": codes, "index": (place // self.group).astype(np.int32)}

    def chosen(self, parts: Mapping[str, Any], ids: Any) -> tuple["Ordered", dict[str, Any]]:
        """The rows of these numbers, in the order that they have."""
        scheme, found = self.rows.chosen(without(parts), ids)
        return replace(self, rows=scheme), found | super().chosen({ORDER: parts[ORDER]}, ids)[1]

    def decode(self, parts: Mapping[str, Any]) -> Any:
        """The rows as they were, float32 [..., size]."""
        scheme, parts = self.apart(parts)
        return scheme.decode(parts)

    def factors(self, parts: Mapping[str, Any]) -> tuple[Any, None]:
        """The rows as they were; no factor is common to one."""
        return self.decode(parts), None


def without(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the rows beneath."""
    return {name: part for name, part in parts.items() if name != ORDER}


def arranged(x_RI: Array, order: Array) -> Array:
    """Inputs in the order of rows."""
    return x_RI.at[:, order.reshape(-1)].get(mode="promise_in_bounds", unique_indices=True)


def in_order(leaf: QTensor, lay: Callable[[QTensor], QTensor] = lambda leaf: leaf) -> QTensor:
    """A host leaf in the order of its groups, where a kernel can read it then, and others as they are; both as `lay`
    lays them.

    Groups that are not of one size, and rows that differ in theirs, stay as they are.
    """
    match leaf:
        case QTensor({"index": index, **rest}, Integers(bits=bits, group=group) as scheme) if group:
            order = np.argsort(index, axis=-1, kind="stable").astype(np.int32)
            n, packing = order.shape[-1], scheme.packing(rest)
            in_turn = np.array_equal(index.reshape(-1)[order.reshape(-1)], np.arange(n) // group)
            if packing is None or not in_turn or not kernels.known(packing, rest, leaf.outputs, n):
                return lay(leaf)
            laid = lay(replace(leaf, parts=rest | {"codes": moved(rest["codes"], bits, order)}))
            return replace(laid, parts=laid.parts | {ORDER: order}, scheme=Ordered(laid.scheme, bits, group))
        case _:
            return lay(leaf)
