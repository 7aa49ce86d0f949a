"""Decoding of IQ1_S ... IQ3_S: groups of 4 or 8 elements index a code book, signs are stored apart.

Same contract as in `legacy`: fields in, float32 [..., blocks, 256] out, ggml's order of float operations. IQ4_NL and
IQ4_XS, which quantise single elements, are in `small_floats`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from forge_jax.quantization.ggml.bits import (
    Blocks,
    Decoder,
    codes_of,
    float32,
    look_up,
    nibbles,
    scale_of,
    scaled,
)
from forge_jax.quantization.ggml.grids import IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID
from forge_jax.quantization.streams import shifted

SIGNS = 1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1).astype(np.float32)
"""A byte of sign bits, lowest first -> 8 factors of 1 and -1."""

EVEN_SIGNS = SIGNS[[code | (code.bit_count() & 1) << 7 for code in range(128)]]
"""7 stored sign bits; the eighth makes the number of minus signs even (ksigns_iq2xs of ggml-common.h)."""

SIGN_SHIFTS = np.array([0, 7, 14, 21], np.uint32)
IQ1_DELTA = np.float32(0.125)


def _scales(blocks: Blocks, codes: Any, half: float) -> Any:
    return scale_of(blocks) * (np.float32(0.5) + float32(codes)) * np.float32(half)


def _signed_words(table: np.ndarray, index: Any, signs: Any, scales: Any) -> Any:
    """scale * code word * signs; [..., blocks, 256] from indices and signs in any grouping, scales [..., groups]."""
    shape = (*scales.shape[:-1], -1)
    words = look_up(table, index).reshape(shape)
    return scaled(words, scales) * signs.reshape(shape)


def _bytes(words: Any) -> Any:
    """The four bytes of each 32-bit word, lowest first: uint8 [..., 4]."""
    return (shifted(words, np.array([0, 8, 16, 24], np.uint32)) & np.uint32(255)).astype(np.uint8)


def _even_signs(words: Any) -> Any:
    """The signs of four groups of 8 elements from the lower 28 bits of words: float32 [..., 4, 8]."""
    return look_up(EVEN_SIGNS, shifted(words, SIGN_SHIFTS) & np.uint32(127))


def _iq2_xxs(blocks: Blocks) -> Any:
    # Pairs of words: four indices of a byte; four signs of 7 bits and a scale of 4 bits.
    index, packed = blocks["qs"][..., ::2], blocks["qs"][..., 1::2]
    scales = _scales(blocks, packed >> np.uint32(28), 0.25)
    return _signed_words(IQ2_XXS_GRID, _bytes(index), _even_signs(packed), scales)


def _iq2_xs(blocks: Blocks) -> Any:
    qs = blocks["qs"]
    scales = _scales(blocks, nibbles(blocks["scales"], 1), 0.25)
    return _signed_words(IQ2_XS_GRID, qs & 511, look_up(EVEN_SIGNS, qs >> 9), scales)


def _iq2_s(blocks: Blocks) -> Any:
    index = blocks["qs"].astype(np.uint16) | codes_of(blocks["qh"], 2, 1).astype(np.uint16) << 8
    scales = _scales(blocks, nibbles(blocks["scales"], 1), 0.25)
    return _signed_words(IQ2_S_GRID, index, look_up(SIGNS, blocks["signs"]), scales)


def _iq3_xxs(blocks: Blocks) -> Any:
    packed = blocks["signs"]
    scales = _scales(blocks, packed >> np.uint32(28), 0.5)
    return _signed_words(IQ3_XXS_GRID, blocks["qs"], _even_signs(packed), scales)


def _iq3_s(blocks: Blocks) -> Any:
    index = blocks["qs"].astype(np.uint16) | codes_of(blocks["qh"], 1, 1).astype(np.uint16) << 8
    scales = scale_of(blocks) * float32(1 + 2 * nibbles(blocks["scales"], 1))
    return _signed_words(IQ3_S_GRID, index, look_up(SIGNS, blocks["signs"]), scales)


def _shifted_words(index: Any, minus: Any, scales: Any) -> Any:
    """scale * (code word + delta), delta negative where `minus`; all [..., some number of equal groups]."""
    delta = minus.__array_namespace__().where(minus, -IQ1_DELTA, IQ1_DELTA)
    words = look_up(IQ1_GRID, index).reshape(*minus.shape, -1) + delta[..., None]
    return scaled(words.reshape(*scales.shape[:-1], -1), scales)


def _iq1_s(blocks: Blocks) -> Any:
    # A word of qh: four times 3 upper index bits, a scale of 3 bits, the sign of the shift.
    qh = blocks["qh"]
    high = shifted(qh, np.array([0, 3, 6, 9], np.uint16)) & 7
    index = blocks["qs"].astype(np.uint16) | high.reshape(*qh.shape[:-1], 32) << 8
    return _shifted_words(index, qh >> 15 != 0, scale_of(blocks) * float32(2 * (qh >> 12 & 7) + 1))


def _iq1_m(blocks: Blocks) -> Any:
    # The float16 scale is spread over the top nibbles of four words, whose other bits are 16 scales of 3 bits.
    packed = blocks["scales"]
    tops = packed >> 12
    d = tops[..., 0] | tops[..., 1] << 4 | tops[..., 2] << 8 | tops[..., 3] << 12
    codes = shifted(packed, np.array([0, 3, 6, 9], np.uint16)) & 7
    scales = float32(d.view(np.float16))[..., None] * float32(2 * codes.reshape(*packed.shape[:-1], 16) + 1)
    qh = nibbles(blocks["qh"], 1)
    index = blocks["qs"].astype(np.uint16) | (qh & 7).astype(np.uint16) << 8
    return _shifted_words(index, qh & 8 != 0, scales)


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
