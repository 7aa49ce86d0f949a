"""Rows of ggml blocks in tiles of 16, as the kernels that round inputs read them (`kernels/native/tiles.h`).

Of every part, units of 16 rows below each other follow each other: four codes of each row, or one of anything else.
They are the bytes of those rows in another order, so a part has the shape that it has in `Ggml`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from forge_jax.kernels.formats import TOGETHER, Packing
from forge_jax.quantization.ggml.scheme import Ggml, counts
from forge_jax.tensor import QTensor

FOURS = frozenset({"qs", "ql", "qh", "scales", "scales_l"})
"""The fields of which a unit is four numbers, but for those of `ONES` and `BITS`."""
ONES = frozenset({("Q6_K", "scales")})
BITS = frozenset({("Q5_0", "qh"), ("Q5_1", "qh")})
"""Words of a bit for each number: of which a unit is four bits."""
WORD = np.arange(8, dtype=np.uint32) * 4  # where four bits begin


@dataclass(frozen=True)
class Tiles:
    """Rows of blocks of one type, such as Q4_K, 16 among each other; products round their inputs to int8, 32 at a time
    (`forge_jax.products.rounded_runs`)."""

    name: str

    @property
    def rows(self) -> Ggml:
        """The scheme of the same rows, each by itself."""
        return Ggml(self.name)

    @property
    def whole(self) -> tuple[str, ...]:
        """Every part runs along the rows."""
        return ()

    @property
    def rounds(self) -> bool:
        """Products are none of whole rows of integers."""
        return False

    def size(self, parts: Mapping[str, Any]) -> int:
        """How many numbers a row has."""
        return self.rows.size(parts)

    def apart(self, parts: Mapping[str, Any]) -> tuple[Ggml, dict[str, Any]]:
        """The same rows, each by itself."""
        outputs = next(iter(parts.values())).shape[:-1]
        flat = {name: part.reshape(-1, part.shape[-1]) for name, part in parts.items()}
        scheme, found = self.chosen(flat, np.arange(prod(outputs)))
        return scheme, {name: part.reshape(*outputs, -1) for name, part in found.items()}

    def chosen(self, parts: Mapping[str, Any], ids: Any) -> tuple[Ggml, dict[str, Any]]:
        """The rows of these numbers, of parts [rows, n]: [*ids.shape, n]."""
        return self.rows, {name: taken(part, unit(self.name, name), ids) for name, part in parts.items()}

    def decode(self, parts: Mapping[str, Any]) -> Any:
        """The rows, float32 [..., size]."""
        scheme, parts = self.apart(parts)
        return scheme.decode(parts)

    def finer(self, parts: Mapping[str, Any], group: int) -> "tuple[Tiles, dict[str, Any]]":
        """As they are: a block is not cut."""
        return self, dict(parts)

    def factors(self, parts: Mapping[str, Any]) -> tuple[Any, None]:
        """The rows; no factor is common to one."""
        return self.decode(parts), None

    def packing(self, parts: Mapping[str, Any]) -> Packing:
        """Tiles by the name of their type, the fields in their order."""
        return Packing(self.name, tuple(counts(self.rows.kind)), rounds=True)


def unit(name: str, field: str) -> int:
    """How many numbers of a field lie side by side in a tile of a type; 0 for four bits."""
    if (name, field) in BITS:
        return 0
    return 4 if field in FOURS and (name, field) not in ONES else 1


def taken(part: Any, unit: int, ids: Any) -> Any:
    """Rows of a part [rows, n] of tiles: [*ids.shape, n]."""
    tile, row, lead = ids // TOGETHER, ids % TOGETHER, ids.shape
    if unit:
        return part.reshape(part.shape[0] // TOGETHER, -1, TOGETHER, unit)[tile, :, row].reshape(*lead, -1)
    words = part.reshape(part.shape[0] // TOGETHER, -1, 8, 2)[tile, :, :, row // 8]
    bits = words >> (row % 8 * 4).astype(np.uint32).reshape(*lead, 1, 1) & np.uint32(15)
    return (bits << WORD.reshape((1,) * (bits.ndim - 1) + (8,))).sum(-1, dtype=np.uint32)


def together(part: np.ndarray, unit: int) -> np.ndarray:
    """Rows [..., n] with those of 16 among each other: the inverse of `taken`, in the same shape."""
    rows = part.reshape(-1, TOGETHER, part.shape[-1])
    if unit:
        # as numbers of 1, 2 or 4 bytes, since whole ones are moved faster
        units = np.ascontiguousarray(rows).view(f"u{rows.itemsize * unit}")
        return np.ascontiguousarray(units.swapaxes(1, 2)).view(part.dtype).reshape(part.shape)
    bits = (rows[..., None] >> WORD & np.uint32(15)).transpose(0, 2, 3, 1)  # [tiles, words, 8, 16]
    return (bits.reshape(*bits.shape[:-1], 2, 8) << WORD).sum(-1, dtype=np.uint32).reshape(part.shape)


def tiled(leaf: QTensor) -> QTensor:
    """A host leaf of `Ggml` rows in tiles; as it is where its rows are no whole number of tiles."""
    if leaf.outputs[-1] % TOGETHER:
        return leaf
    name = leaf.scheme.name
    parts = {field: together(np.asarray(part), unit(name, field)) for field, part in leaf.parts.items()}
    return replace(leaf, parts=parts, scheme=Tiles(name))


def untiled(leaf: Any) -> Any:
    """A leaf of tiles as one of rows, and any other as it is."""
    match leaf:
        case QTensor(scheme=Tiles() as scheme):
            rows, parts = scheme.apart(leaf.parts)
            return replace(leaf, parts=parts, scheme=rows)
        case _:
            return leaf
