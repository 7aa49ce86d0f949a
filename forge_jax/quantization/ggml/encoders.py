"""Packing of float32 into Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, with the rounding of ggml's reference quantisers.

Each function takes float32 blocks [n, 32] and fills `out`, an array of the type's struct [n].
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

Encoder = Callable[[np.ndarray, np.ndarray], None]


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 where d is 0."""
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _signed(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and codes for a symmetric type: the largest value maps to the most negative code."""
    half = 1 << bits - 1
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    d = largest / np.float32(-half)
    return d, _truncate(blocks * _inverse(d) + np.float32(half + 0.5), bits)


def _ranged(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, minimum and codes for a type whose codes span the block's range."""
    least = blocks.min(axis=-1, keepdims=True)
    d = (blocks.max(axis=-1, keepdims=True) - least) / np.float32((1 << bits) - 1)
    return d, least, _truncate((blocks - least) * _inverse(d) + np.float32(0.5), bits)


def _truncate(values: np.ndarray, bits: int) -> np.ndarray:
    return values.astype(np.uint8).clip(0, (1 << bits) - 1)


def _store_codes(codes: np.ndarray, out: np.ndarray) -> None:
    out["qs"] = codes[:, :16] & 15 | codes[:, 16:] << 4


def _store_high_bits(codes: np.ndarray, out: np.ndarray) -> None:
    out["qh"] = np.packbits(codes >> 4, axis=-1, bitorder="little").view("<u4")[:, 0]


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    d, codes = _signed(blocks, 4)
    out["d"] = d[:, 0]
    _store_codes(codes, out)


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    d, least, codes = _ranged(blocks, 4)
    out["d"], out["m"] = d[:, 0], least[:, 0]
    _store_codes(codes, out)


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    d, codes = _signed(blocks, 5)
    out["d"] = d[:, 0]
    _store_codes(codes, out)
    _store_high_bits(codes, out)


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    d, least, codes = _ranged(blocks, 5)
    out["d"], out["m"] = d[:, 0], least[:, 0]
    _store_codes(codes, out)
    _store_high_bits(codes, out)


def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    d = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(d)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    # C's roundf: halves go away from zero, unlike np.round.
    rounded = np.sign(scaled) * (whole + np.floor(2 * (magnitude - whole)))
    out["d"], out["qs"] = d[:, 0], rounded.astype(np.int8)


ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0}
)
