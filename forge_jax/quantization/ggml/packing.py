"""Codes into bit fields, the opposite of `bits`. Knows bytes and bits, no types."""

from collections.abc import Callable

import numpy as np

Encoder = Callable[[np.ndarray, np.ndarray | None, np.ndarray], None]
"""(float32 blocks [n, elements], weights of the same shape or None, out struct [n]) -> None: fills `out`."""


def pack(codes: np.ndarray, width: int, group: int) -> np.ndarray:
    """Codes [n, elements], whole numbers below 2 ** width, in the order of `bits.fields`: uint8 [n, bytes].

    Bytes come in groups of `group`; the first `group` elements fill the lowest bits of theirs, the next the bits above.
    """
    count = 8 // width
    parts = codes.astype(np.uint8).reshape(len(codes), -1, count, group)
    out = parts[:, :, 0].copy()
    for i in range(1, count):
        out |= parts[:, :, i] << np.uint8(i * width)
    return out.reshape(len(codes), -1)
