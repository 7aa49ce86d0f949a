"""Decoding of IQ1_S ... IQ3_S: groups of 4 or 8 elements index a code book, signs are stored apart.

Same contract as in `legacy`: blocks in, float32 [blocks, 256] filled, ggml's order of float operations. IQ4_NL and
IQ4_XS, which quantise single elements, are in `small_floats`.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from .bits import Decoder, fields, nibbles, scale_of
from .grids import IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID

SIGNS = 1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1).astype(np.float32)
"""A byte of sign bits, lowest first -> 8 factors of 1 and -1."""

EVEN_SIGNS = SIGNS[[code | (code.bit_count() & 1) << 7 for code in range(128)]]
"""7 stored sign bits; the eighth makes the number of minus signs even (ksigns_iq2xs of ggml-common.h)."""

SIGN_SHIFTS = np.array([0, 7, 14, 21], np.uint32)
IQ1_DELTA = np.float32(0.125)


def _fill(out: np.ndarray, words: np.ndarray, signs: np.ndarray, scales: np.ndarray) -> None:
    """out = scale * code word * signs; words and signs in any shape, scales [n, groups]."""
    out[...] = words.reshape(out.shape)
    grouped = out.reshape(*scales.shape, -1)
    grouped *= scales[:, :, None]
    out *= signs.reshape(out.shape)


def _scales(blocks: np.ndarray, codes: np.ndarray, half: float) -> np.ndarray:
    return scale_of(blocks) * (np.float32(0.5) + codes.astype(np.float32)) * np.float32(half)


def _iq2_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    # Pairs of words: four indices of a byte; four signs of 7 bits and a scale of 4 bits.
    pairs = blocks["qs"].reshape(-1, 8, 2)
    words = IQ2_XXS_GRID[np.ascontiguousarray(pairs[:, :, 0]).view(np.uint8)]
    signs = EVEN_SIGNS[pairs[:, :, 1, None] >> SIGN_SHIFTS & 127]
    _fill(out, words, signs, _scales(blocks, pairs[:, :, 1] >> 28, 0.25))


def _iq2_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    qs = blocks["qs"]
    scales = _scales(blocks, nibbles(blocks["scales"], 1), 0.25)
    _fill(out, IQ2_XS_GRID[qs & 511], EVEN_SIGNS[qs >> 9], scales)


def _iq2_s(blocks: np.ndarray, out: np.ndarray) -> None:
    index = blocks["qs"] | fields(blocks["qh"], 2, 1).astype(np.uint16) << 8
    scales = _scales(blocks, nibbles(blocks["scales"], 1), 0.25)
    _fill(out, IQ2_S_GRID[index], SIGNS[blocks["signs"]], scales)


def _iq3_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    packed = blocks["signs"]
    signs = EVEN_SIGNS[packed[:, :, None] >> SIGN_SHIFTS & 127]
    _fill(out, IQ3_XXS_GRID[blocks["qs"]], signs, _scales(blocks, packed >> 28, 0.5))


def _iq3_s(blocks: np.ndarray, out: np.ndarray) -> None:
    index = blocks["qs"] | fields(blocks["qh"], 1, 1).astype(np.uint16) << 8
    scales = scale_of(blocks) * (1 + 2 * nibbles(blocks["scales"], 1)).astype(np.float32)
    _fill(out, IQ3_S_GRID[index], SIGNS[blocks["signs"]], scales)


def _fill_shifted(out: np.ndarray, index: np.ndarray, minus: np.ndarray, scales: np.ndarray) -> None:
    """out = scale * (code word + delta), delta negative where `minus`; all [n, some number of equal groups]."""
    out[...] = IQ1_GRID[index].reshape(out.shape)
    shifted = out.reshape(*minus.shape, -1)
    shifted += np.where(minus, -IQ1_DELTA, IQ1_DELTA)[:, :, None]
    grouped = out.reshape(*scales.shape, -1)
    grouped *= scales[:, :, None]


def _iq1_s(blocks: np.ndarray, out: np.ndarray) -> None:
    # A word of qh: four times 3 upper index bits, a scale of 3 bits, the sign of the shift.
    qh = blocks["qh"]
    high = qh[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    index = blocks["qs"] | high.reshape(-1, 32) << 8
    _fill_shifted(out, index, qh >> 15 != 0, scale_of(blocks) * (2 * (qh >> 12 & 7) + 1).astype(np.float32))


def _iq1_m(blocks: np.ndarray, out: np.ndarray) -> None:
    # The float16 scale is spread over the top nibbles of four words, whose other bits are 16 scales of 3 bits.
    packed = blocks["scales"]
    spread = packed >> 12 << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(spread, axis=-1, keepdims=True).view(np.float16).astype(np.float32)
    codes = packed[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    qh = nibbles(blocks["qh"], 1)
    index = blocks["qs"] | (qh & 7).astype(np.uint16) << 8
    _fill_shifted(out, index, qh & 8 != 0, d * (2 * codes.reshape(-1, 16) + 1).astype(np.float32))


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "IQ1_S": _iq1_s,
        "IQ1_M": _iq1_m,
        "IQ2_XXS": _iq2_xxs,
        "IQ2_XS": _iq2_xs,
        "IQ2_S": _iq2_s,
        "IQ3_XXS": _iq3_xxs,
        "IQ3_S": _iq3_s,
    }
)
