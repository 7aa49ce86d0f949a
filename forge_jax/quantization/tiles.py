"""Packed rows in tiles of 16, as the kernels that round inputs read them (`forge_jax/kernels/native/tiles.h`).

Of every part, units of 16 rows below each other follow each other: four codes of each row, or one of anything else. A
part has the shape that it has without tiles, and its bytes, but for what is said at `tiled`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from forge_jax.kernels.formats import ROUNDED, TOGETHER, Packing
from forge_jax.products import RUN
from forge_jax.quantization.base import Rows
from forge_jax.quantization.ggml.scheme import Ggml, counts
from forge_jax.quantization.schemes import Integers
from forge_jax.quantization.streams import joined, nibbles
from forge_jax.tensor import QTensor

FOURS = frozenset({"qs", "ql", "qh", "scales", "scales_l", "codes"})
"""The parts of which a unit is four numbers, but for those of `ONES` and `BITS`."""
ONES = frozenset({("Q6_K", "scales")})
BITS = frozenset({("Q5_0", "qh"), ("Q5_1", "qh")})
"""Words of a bit for each number: of which a unit is four bits."""
WORD = np.arange(8, dtype=np.uint32) * 4  # where four bits begin


@dataclass(frozen=True)
class Tiles(Rows):
    """Rows of another scheme, 16 among each other; products round their inputs to int8, 32 at a time
    (`forge_jax.products.rounded_runs`).

    stored: dtypes that parts have in rows by themselves.
    """

    rows: Ggml | Integers
    stored: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """What people call it."""
        return self.rows.name

    def size(self, parts: Mapping[str, Any]) -> int:
        """How many numbers a row has."""
        return self.rows.size(parts)

    def apart(self, parts: Mapping[str, Any]) -> tuple[Ggml | Integers, dict[str, Any]]:
        """The same rows, each by itself."""
        outputs = next(iter(parts.values())).shape[:-1]
        flat = {name: part.reshape(-1, part.shape[-1]) for name, part in parts.items()}
        found = self.alone(flat, np.arange(prod(outputs)))
        return self.rows, {name: part.reshape(*outputs, -1) for name, part in found.items()}

    def chosen(self, parts: Mapping[str, Any], ids: Any) -> "tuple[Tiles | Ggml | Integers, dict[str, Any]]":
        """The rows of these numbers, of parts [rows, n]: [*ids.shape, n]. Of stacks, whole tiles."""
        if any(part.ndim > 2 for part in parts.values()):
            return self, {name: part[ids] for name, part in parts.items()}
        return self.rows, self.alone(parts, ids)

    def alone(self, parts: Mapping[str, Any], ids: Any) -> dict[str, Any]:
        """Parts [*ids.shape, n] of rows by themselves, of parts [rows, n] of tiles."""
        found = {name: taken(part, unit(self.name, name), ids) for name, part in parts.items()}
        if isinstance(self.rows, Integers) and self.rows.bits == 4:
            found["codes"] = as_stream(found["codes"])
        return found | {name: found[name].astype(dtype) for name, dtype in self.stored}

    def decode(self, parts: Mapping[str, Any]) -> Any:
        """The rows, float32 [..., size]."""
        scheme, parts = self.apart(parts)
        return scheme.decode(parts)

    def factors(self, parts: Mapping[str, Any]) -> tuple[Any, Any | None]:
        """The rows, and a factor of each where they have one."""
        scheme, parts = self.apart(parts)
        return scheme.factors(parts)

    def packing(self, parts: Mapping[str, Any]) -> Packing:
        """Tiles by the name of their format."""
        if isinstance(self.rows, Ggml):
            return Packing(self.name, tuple(counts(self.rows.kind)), rounds=True)
        names = ("scale", *(("zero",) if "zero" in parts else ()), "codes")
        return Packing(f"I{self.rows.bits}" + ("_ZERO" if "zero" in parts else ""), names, rounds=True)


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


def as_halves(stream: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, the second half of each run in the high halves of bytes, from neighbours in a byte."""
    low, high = np.moveaxis(nibbles(stream).reshape(*stream.shape[:-1], -1, 2, RUN // 2), -2, 0)
    return (low | high << 4).reshape(stream.shape)


def as_stream(halves: Any) -> Any:
    """The inverse of `as_halves`."""
    runs = halves.reshape(*halves.shape[:-1], -1, RUN // 2)
    return joined(halves.__array_namespace__().concatenate([runs & 15, runs >> 4], -1), 4).reshape(halves.shape)


def tiled(leaf: QTensor) -> QTensor:
    """A host leaf in tiles, where its format has a kernel and its rows fill tiles; others as they are.

    Scales and zeros of integers are float32 in tiles, and codes of 4 bits lie as `as_halves` says.
    """
    if leaf.outputs[-1] % TOGETHER:
        return leaf
    match leaf.scheme:
        case Ggml(name=name) as scheme if name in ROUNDED:
            return in_tiles(leaf, scheme, {field: np.asarray(part) for field, part in leaf.parts.items()})
        case Integers(bits=4 | 8 as bits, over=1, dynamic=False, middle=middle) as scheme:
            codes, size = leaf.every_row("codes"), scheme.size(leaf.parts)
            group, signed = scheme.group or size, codes.dtype == np.int8
            if not {*leaf.parts} <= {"codes", "scale", "zero"} or size % group or group % RUN:
                return leaf
            wide = {name: leaf.every_row(name).astype(np.float32) for name in ("scale", "zero") if name in leaf.parts}
            if "zero" not in wide and middle != (0 if signed else 8 if bits == 4 else None):
                return leaf
            if "zero" in wide and signed:
                return leaf
            stored = tuple((name, str(leaf.parts[name].dtype)) for name in wide)
            return in_tiles(leaf, scheme, wide | {"codes": as_halves(codes) if bits == 4 else codes}, stored)
        case _:
            return leaf


def in_tiles(
    leaf: QTensor, scheme: Ggml | Integers, parts: Mapping[str, np.ndarray], stored: tuple[tuple[str, str], ...] = ()
) -> QTensor:
    """A leaf in tiles, from parts that have a row for each output."""
    among = {field: together(part, unit(scheme.name, field)) for field, part in parts.items()}
    return replace(leaf, parts=among, scheme=Tiles(scheme, stored))
