"""Packing of float32 into Q4_0, Q4_1, Q5_0, Q5_1 and the 8-bit types, with the results of ggml's quantisers.

Each function takes float32 blocks [n, elements], the weights of the elements or None, and fills `out`, an array of the
type's struct [n]. The 8-bit types round every element for itself and use no weights.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from forge_jax.quantization.ggml.packing import Encoder, pack
from forge_jax.quantization.ggml.search import affine, columns, extreme, nearest, ratio, rows, symmetric

WEIGHTED = (-0.9, 0.05, 36)
"""First offset, step and number of steps of the search for scale and minimum where elements have given weights."""


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 where d is 0."""
    return ratio(np.ones_like(d), d)


def round_away(values: np.ndarray) -> np.ndarray:
    """Nearest whole numbers, halves away from zero: C's roundf, unlike np.round."""
    magnitude = np.abs(values)
    whole = np.floor(magnitude)
    return np.sign(values) * (whole + np.floor(2 * (magnitude - whole)))


def _signed(blocks: np.ndarray, weights: np.ndarray | None, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale [n] and codes for a symmetric type; without weights the largest value has the most negative code."""
    half = 1 << bits - 1
    if weights is not None:
        d, codes = symmetric(columns(blocks, 32), columns(weights, 32), half)
        return d, rows(codes, 32).astype(np.uint8)
    d = extreme(blocks.T) / np.float32(-half)
    return d, _truncate(blocks * _inverse(d)[:, None] + np.float32(half + 0.5), bits)


def _ranged(blocks: np.ndarray, weights: np.ndarray | None, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale [n], minimum [n] and codes for a type whose codes, without weights, span the block's range."""
    if weights is not None:
        d, minimum, codes = affine(columns(blocks, 32), columns(weights, 32), (1 << bits) - 1, *WEIGHTED)
        return d, -minimum, rows(codes, 32).astype(np.uint8)
    least = blocks.min(axis=-1)
    d = (blocks.max(axis=-1) - least) / np.float32((1 << bits) - 1)
    return d, least, _truncate((blocks - least[:, None]) * _inverse(d)[:, None] + np.float32(0.5), bits)


def _truncate(values: np.ndarray, bits: int) -> np.ndarray:
    return values.astype(np.uint8).clip(0, (1 << bits) - 1)


def _q4_0(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    out["d"], codes = _signed(blocks, weights, 4)
    out["qs"] = pack(codes, 4, 16)


def _q4_1(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    out["d"], out["m"], codes = _ranged(blocks, weights, 4)
    out["qs"] = pack(codes, 4, 16)


def _q5_0(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    out["d"], codes = _signed(blocks, weights, 5)
    out["qs"], out["qh"] = _five_bits(codes)


def _q5_1(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    out["d"], out["m"], codes = _ranged(blocks, weights, 5)
    out["qs"], out["qh"] = _five_bits(codes)


def _five_bits(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The low halves of codes below 32 as bytes [n, 16], and their high bits as words [n]."""
    high = np.packbits(codes >> 4, axis=-1, bitorder="little")
    return pack(codes & 15, 4, 16), high.view("<u4")[:, 0]


def _q8_codes(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale [n] and codes -127 ... 127 of the 8-bit types."""
    d = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    return d[:, 0], round_away(blocks * _inverse(d)).astype(np.int8)


def _q8_0(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    out["d"], out["qs"] = _q8_codes(blocks)


def _q8_1(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    d, codes = _q8_codes(blocks)
    out["d"], out["qs"], out["s"] = d, codes, codes.sum(axis=-1, dtype=np.float32) * d


def _q8_k(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    largest = extreme(blocks.T)
    inverse = ratio(np.full_like(largest, -127), largest)
    codes = nearest(blocks * inverse[:, None], -128, 127).astype(np.int8)
    out["d"], out["qs"] = _inverse(inverse), codes
    out["bsums"] = codes.reshape(len(codes), 16, 16).sum(axis=-1, dtype=np.int16)


ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q8_1": _q8_1,
        "Q8_K": _q8_k,
    }
)
