"""Decoding of the formats with one scale for a short block: Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q8_K.

Each function takes blocks (an array of the type's struct) and fills `out`, float32 [blocks, elements]. The order of
the float operations is ggml's, so the results are the same bits.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from .bits import Decoder, bits32, fields, nibbles, scale_of


def _q1_0(blocks: np.ndarray, out: np.ndarray) -> None:
    ones = np.unpackbits(blocks["qs"], axis=-1, bitorder="little").astype(bool)
    d = scale_of(blocks)
    np.copyto(out, np.where(ones, d, -d))


def _q2_0(blocks: np.ndarray, out: np.ndarray) -> None:
    # Four consecutive elements share a byte, unlike in every other 2-bit type.
    codes = fields(blocks["qs"], 2, 1)
    out[...] = codes.view(np.int8) - np.int8(1)
    out *= scale_of(blocks)


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    out[...] = nibbles(blocks["qs"], 16).view(np.int8) - np.int8(8)
    out *= scale_of(blocks)


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    out[...] = nibbles(blocks["qs"], 16)
    out *= scale_of(blocks)
    out += scale_of(blocks, "m")


def _five_bits(blocks: np.ndarray) -> np.ndarray:
    return nibbles(blocks["qs"], 16) | bits32(blocks["qh"]) << np.uint8(4)


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    out[...] = _five_bits(blocks).view(np.int8) - np.int8(16)
    out *= scale_of(blocks)


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    out[...] = _five_bits(blocks)
    out *= scale_of(blocks)
    out += scale_of(blocks, "m")


def _q8(blocks: np.ndarray, out: np.ndarray) -> None:
    # Q8_1 and Q8_K also store sums of the codes, which only dot products need.
    out[...] = blocks["qs"]
    out *= scale_of(blocks)


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "Q1_0": _q1_0,
        "Q2_0": _q2_0,
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8,
        "Q8_1": _q8,
        "Q8_K": _q8,
    }
)
