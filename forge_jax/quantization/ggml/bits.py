"""Unpacking of bit fields, shared by the decoders. Knows bytes and bits, no types."""

from collections.abc import Callable

import numpy as np

Decoder = Callable[[np.ndarray, np.ndarray], None]
"""(blocks of the type's struct [n], out float32 [n, elements]) -> None: fills `out`."""


def fields(packed: np.ndarray, width: int, group: int) -> np.ndarray:
    """Codes of `width` bits, uint8 [n, 8 / width * bytes].

    Bytes come in groups of `group`; the lowest bits of a whole group come first, then the next higher ones, and so
    on. So element i of a 4-bit group of 16 is the low half of byte i, element 16 + i its high half.
    """
    count = 8 // width
    n, nbytes = packed.shape
    source = packed.reshape(n, nbytes // group, group)
    out = np.empty((n, nbytes // group, count, group), np.uint8)
    for i in range(count):
        np.right_shift(source, np.uint8(i * width), out=out[:, :, i])
    out &= np.uint8((1 << width) - 1)
    return out.reshape(n, -1)


def nibbles(packed: np.ndarray, group: int) -> np.ndarray:
    """4-bit codes, see `fields`."""
    return fields(packed, 4, group)


def bits32(words: np.ndarray) -> np.ndarray:
    """The 32 bits of each little-endian word, lowest first: uint8 [n, 32] of 0 and 1."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8).reshape(-1, 4), axis=-1, bitorder="little")


def scale_of(blocks: np.ndarray, name: str = "d") -> np.ndarray:
    """A float field of the struct as float32 [n, 1]."""
    return blocks[name].astype(np.float32)[:, None]
