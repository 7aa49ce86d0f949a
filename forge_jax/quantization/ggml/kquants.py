"""Decoding of the K-quants Q2_K ... Q6_K: super-blocks of 256 elements whose scales are quantised themselves.

Same contract as in `legacy`: fields in, float32 [..., blocks, 256] out, ggml's order of float operations.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from forge_jax.quantization.ggml.bits import Blocks, Decoder, codes_of, float32, nibbles, scale_of, scaled, signed


def _ranged(codes: Any, scales: Any, minima: Any) -> Any:
    """scale * code - minimum, in as many equal groups as there are scales [..., groups]."""
    grouped = float32(codes).reshape(*scales.shape, -1)
    return (grouped * scales[..., None] - minima[..., None]).reshape(codes.shape)


def _q2_k(blocks: Blocks) -> Any:
    scales = blocks["scales"]
    dl = scale_of(blocks) * float32(scales & 15)
    ml = scale_of(blocks, "dmin") * float32(scales >> 4)
    return _ranged(codes_of(blocks["qs"], 2, 32), dl, ml)


def _q3_k(blocks: Blocks) -> Any:
    # 16 scales of 6 bits: the low nibbles of all, then the high bit pairs of all.
    packed = blocks["scales"]
    scales = nibbles(packed[..., :8], 8) | codes_of(packed[..., 8:], 2, 4) << 4
    codes = codes_of(blocks["qs"], 2, 32) | codes_of(blocks["hmask"], 1, 32) << 2
    return scaled(signed(codes, 4), scale_of(blocks) * signed(scales, 32))


def _six_bit_pairs(packed: Any) -> tuple[Any, Any]:
    """The 8 scales and 8 minima of Q4_K and Q5_K, each of 6 bits, as float32 [..., 8].

    Bytes 0-3 and 4-7 hold the first four scales and minima, and in their top bits the upper parts of the last four,
    whose low nibbles fill bytes 8-11.
    """
    low, mid, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    concatenate = packed.__array_namespace__().concatenate
    scales = concatenate([low & 63, high & 15 | low >> 2 & 48], axis=-1)
    minima = concatenate([mid & 63, high >> 4 | mid >> 2 & 48], axis=-1)
    return float32(scales), float32(minima)


def _q4_k(blocks: Blocks) -> Any:
    scales, minima = _six_bit_pairs(blocks["scales"])
    return _ranged(nibbles(blocks["qs"], 32), scale_of(blocks) * scales, scale_of(blocks, "dmin") * minima)


def _q5_k(blocks: Blocks) -> Any:
    scales, minima = _six_bit_pairs(blocks["scales"])
    codes = nibbles(blocks["qs"], 32) | codes_of(blocks["qh"], 1, 32) << 4
    return _ranged(codes, scale_of(blocks) * scales, scale_of(blocks, "dmin") * minima)


def _q6_k(blocks: Blocks) -> Any:
    codes = nibbles(blocks["ql"], 64) | codes_of(blocks["qh"], 2, 32) << 4
    return scaled(signed(codes, 32), scale_of(blocks) * float32(blocks["scales"]))


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
)
