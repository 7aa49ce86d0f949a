"""Decoding of the formats with one scale for a short block: Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q8_K.

Each function takes the fields of blocks and gives float32 [..., blocks, elements]. The order of the float operations
is ggml's, so the results are the same bits.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from forge_jax.quantization.ggml.bits import (
    Blocks,
    Decoder,
    bits32,
    codes_of,
    float32,
    nibbles,
    scale_of,
    signed,
)


def _q1_0(blocks: Blocks) -> Any:
    d = scale_of(blocks)
    return d.__array_namespace__().where(codes_of(blocks["qs"], 1, 1) > 0, d, -d)


def _q2_0(blocks: Blocks) -> Any:
    # Four consecutive elements share a byte, unlike in every other 2-bit type.
    return signed(codes_of(blocks["qs"], 2, 1), 1) * scale_of(blocks)


def _q4_0(blocks: Blocks) -> Any:
    return signed(nibbles(blocks["qs"], 16), 8) * scale_of(blocks)


def _q4_1(blocks: Blocks) -> Any:
    return float32(nibbles(blocks["qs"], 16)) * scale_of(blocks) + scale_of(blocks, "m")


def _five_bits(blocks: Blocks) -> Any:
    return nibbles(blocks["qs"], 16) | bits32(blocks["qh"]) << 4


def _q5_0(blocks: Blocks) -> Any:
    return signed(_five_bits(blocks), 16) * scale_of(blocks)


def _q5_1(blocks: Blocks) -> Any:
    return float32(_five_bits(blocks)) * scale_of(blocks) + scale_of(blocks, "m")


def _q8(blocks: Blocks) -> Any:
    # Q8_1 and Q8_K also store sums of the codes, which only dot products need.
    return float32(blocks["qs"]) * scale_of(blocks)


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
