"""Unpacking of bit fields, shared by the decoders. Knows bytes and bits, no types.

Everything here works on NumPy arrays and on jax's alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from forge_jax.quantization.streams import shifted

Blocks = Mapping[str, Any]
"""The fields of n blocks of one type: [..., n] for single values, [..., n, count] for several."""

Decoder = Callable[[Blocks], Any]
"""Blocks to numbers, float32 [..., n, elements]."""


def codes_of(packed: Any, width: int, group: int) -> Any:
    """Codes of `width` bits, uint8 [..., 8 / width * bytes], from uint8 [..., bytes].

    Bytes come in groups of `group`; the lowest bits of a whole group come first, then the next higher ones, and so
    on. So element i of a 4-bit group of 16 is the low half of byte i, element 16 + i its high half.
    """
    *lead, nbytes = packed.shape
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape((1,) * packed.ndim + (-1, 1))
    grouped = packed.reshape(*lead, nbytes // group, 1, group)
    return (grouped >> shifts & np.uint8((1 << width) - 1)).reshape(*lead, -1)


def nibbles(packed: Any, group: int) -> Any:
    """4-bit codes, see `codes_of`."""
    return codes_of(packed, 4, group)


def bits32(words: Any) -> Any:
    """The 32 bits of each word, lowest first: uint8 [..., 32] of 0 and 1."""
    return (shifted(words, np.arange(32, dtype=np.uint32)) & np.uint32(1)).astype(np.uint8)


def look_up(table: np.ndarray, codes: Any) -> Any:
    """table[codes], where the table is a constant."""
    return codes.__array_namespace__().asarray(table)[codes]


def float32(values: Any) -> Any:
    """The values in float32."""
    return values.astype(np.float32)


def signed(codes: Any, zero: int) -> Any:
    """codes - zero, in float32; exact, since both are small integers."""
    return float32(codes) - np.float32(zero)


def scaled(codes: Any, scales: Any) -> Any:
    """scale * code, with as many equal groups of codes [..., elements] as there are scales [..., groups]."""
    grouped = codes.reshape(*scales.shape, -1)
    return (grouped * scales[..., None]).reshape(codes.shape)


def scale_of(blocks: Blocks, name: str = "d") -> Any:
    """A float field as float32 [..., 1]."""
    return float32(blocks[name])[..., None]
