"""The formats of packed rows that kernels multiply by."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Steps:
    """Rows of whole numbers: value = scale / over * (code - zero), with `middle` for zero where no part says it.

    bits: of a code; those of less than 8 lie in bytes, the first one in the lowest bits. group: numbers of a row that
    share a scale, 0 for all of them.
    """

    bits: int
    group: int
    middle: int
    over: int


@dataclass(frozen=True)
class Packing:
    """How rows are packed, in the words of the kernels: a format of theirs, and which parts of a leaf it takes.

    rounds: rows in tiles of `TOGETHER`, with which products round what they are multiplied by to int8, see
    `forge_jax.products.rounded_runs`. steps: what is to be known of rows of whole numbers, which accelerators have
    kernels for (`forge_jax.kernels.pallas`).
    """

    format: str
    parts: tuple[str, ...]
    rounds: bool = False
    steps: Steps | None = None


SHORT: tuple[str, ...] = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4", "BF16", "F16")
LONG: tuple[str, ...] = ("Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
STEPPED: tuple[str, ...] = ("Stream4", "Signed8", "Unsigned8")

FORMATS: Mapping[str, int] = MappingProxyType({name: 256 if name in LONG else 32 for name in (*SHORT, *LONG, *STEPPED)})
"""Each format and how many numbers its blocks have, as native/formats.h, superblocks.h and integers.h say too."""

ROUNDED: Mapping[str, int] = MappingProxyType(
    {name: block for name, block in FORMATS.items() if name not in ("BF16", "F16", *STEPPED)}
    | {name: 32 for name in ("I4", "I4_ZERO", "I8", "I8_ZERO")}
)
"""Formats of whole numbers times scales for some of them, which can be multiplied by whole numbers; with their blocks,
as native/integers.h has those that are none of `FORMATS`."""

TOGETHER = 16
"""Rows of a tile, as native/tiles.h has them."""
