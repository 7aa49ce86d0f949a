"""Encoding of the K-quants Q2_K ... Q6_K, bit for bit as ggml's quantisers do (ggml-quants.c).

Each function takes blocks [n, 256], the weights of their elements [n, 256] or None for the type's own weighting, and
fills `out`, an array of the type's struct [n]. First the scale of every group of 16 or 32 is searched, then the scales
of a block are quantised, then the elements are rounded under the scales as they are stored.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from forge_jax.quantization.ggml.encoders import WEIGHTED
from forge_jax.quantization.ggml.packing import Encoder, pack
from forge_jax.quantization.ggml.search import (
    TINY,
    affine,
    columns,
    descend,
    extreme,
    nearest,
    positive,
    ratio,
    rows,
    symmetric,
    total,
)
from forge_jax.quantization.ggml.types import K


def _quantised(values: np.ndarray, weights: np.ndarray | None, top: int) -> tuple[np.ndarray, np.ndarray]:
    """What a block shares [n] and codes 0 ... top for its groups' scales or minima [groups, n], none negative.

    Without weights the largest one has the largest code.
    """
    if weights is not None:
        return positive(values, weights, top)
    most = np.maximum(values.max(axis=0), np.float32(0))
    return most / np.float32(top), nearest(values * ratio(np.full_like(most, top), most), 0, top)


def _rounded(
    x: np.ndarray, found: np.ndarray, scales: np.ndarray, minima: np.ndarray | None, low: int, high: int
) -> np.ndarray:
    """Codes [n, 256] counted from `low` under the stored scales and minima [groups of all blocks].

    Where the stored scale is 0 all codes mean the same, and those that the search `found` stay.
    """
    codes = nearest((x if minima is None else x + minima) / scales, low, high) - np.float32(low)
    return rows(np.where(scales != 0, codes, found), K)


def _ranged(
    blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray, size: int, tops: tuple[int, int], plan: tuple
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [n, 256] and the codes of scales and minima [n, groups] of Q2_K, Q4_K and Q5_K; fills d and dmin.

    `tops` are the largest code of an element and of a scale, `plan` is that of the search without given weights.
    """
    x, groups = columns(blocks, size), K // size
    if weights is None:
        w = np.abs(x)
        if size == 32:
            w += np.sqrt(total(x * x) / np.float32(size))
        scales, minima, found = affine(x, w, tops[0], *plan)
        shares = None
    else:
        w = columns(weights, size)
        scales, minima, found = affine(x, w, tops[0], *WEIGHTED)
        shares = columns(total(w), groups)
    out["d"], ls = _quantised(columns(scales, groups), shares, tops[1])
    out["dmin"], lm = _quantised(columns(minima, groups), shares, tops[1])
    d, dmin = (rows(out[name].astype(np.float32) * codes, 1)[:, 0] for name, codes in (("d", ls), ("dmin", lm)))
    return _rounded(x, found, d, dmin, 0, tops[0]), ls.T, lm.T


def _q2_k(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    codes, ls, lm = _ranged(blocks, weights, out, 16, (3, 15), (-0.5, 0.1, 15, True))
    out["scales"] = ls.astype(np.uint8) | lm.astype(np.uint8) << 4
    out["qs"] = pack(codes, 2, 32)


def _six_bit_pairs(ls: np.ndarray, lm: np.ndarray) -> np.ndarray:
    """8 scales and 8 minima of 6 bits in 12 bytes: the upper bits of the last four stand above the first eight."""
    ls, lm = ls.astype(np.uint8), lm.astype(np.uint8)
    low, mid = (s[:, :4] | s[:, 4:] >> 4 << 6 for s in (ls, lm))
    return np.concatenate([low, mid, ls[:, 4:] & 15 | lm[:, 4:] << 4], axis=-1)


def _q4_k(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    codes, ls, lm = _ranged(blocks, weights, out, 32, (15, 63), (-1.0, 0.1, 20))
    out["scales"], out["qs"] = _six_bit_pairs(ls, lm), pack(codes, 4, 32)


def _q5_k(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    codes, ls, lm = _ranged(blocks, weights, out, 32, (31, 63), (-0.5, 0.1, 15))
    whole = codes.astype(np.uint8)
    out["scales"], out["qs"], out["qh"] = _six_bit_pairs(ls, lm), pack(whole & 15, 4, 32), pack(whole >> 4, 1, 32)


def _q3_k(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    x = columns(blocks, 16)
    if weights is None:
        largest = extreme(x)
        zero = np.abs(largest) < TINY
        x[:, zero] = 0
        found = nearest(x * (np.float32(-4) / largest), -4, 3)
        found[:, zero] = -4
        scales = columns(descend(x, x * x, found, -4, 3), 16)
        found += np.float32(4)
        largest = extreme(scales)
        inverse = ratio(np.full_like(largest, -32), largest)
        ls = np.where(inverse != 0, nearest(inverse * scales, -32, 31) + np.float32(32), np.float32(0))
        out["d"] = ratio(np.ones_like(inverse), inverse)
    else:
        w = columns(weights, 16)
        scales, found = symmetric(x, w, 4)
        out["d"], ls = symmetric(columns(scales, 16), columns(total(w), 16), 32)
    d = rows(out["d"].astype(np.float32) * (ls - np.float32(32)), 1)[:, 0]
    codes = _rounded(x, found, d, None, -4, 3).astype(np.uint8)
    whole = ls.T.astype(np.uint8)
    out["scales"] = np.concatenate([pack(whole & 15, 4, 8), pack(whole >> 4, 2, 4)], axis=-1)
    out["qs"], out["hmask"] = pack(codes & 3, 2, 32), pack(codes >> 2, 1, 32)


def _q6_k(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    x = columns(blocks, 16)
    scales, found = symmetric(x, x * x if weights is None else columns(weights, 16), 32)
    scales = columns(scales, 16)
    largest = extreme(scales)
    inverse = ratio(np.full_like(largest, -128), np.where(np.abs(largest) < TINY, np.float32(0), largest))
    out["d"] = ratio(np.ones_like(inverse), inverse)
    ls = nearest(inverse * scales, -128, 127)
    d = rows(out["d"].astype(np.float32) * ls, 1)[:, 0]
    codes = _rounded(x, found, d, None, -32, 31).astype(np.uint8)
    out["ql"], out["qh"], out["scales"] = pack(codes & 15, 4, 64), pack(codes >> 4, 2, 32), ls.T


ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
)
