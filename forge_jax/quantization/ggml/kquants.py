"""Decoding of the K-quants Q2_K ... Q6_K: super-blocks of 256 elements whose scales are quantised themselves.

Same contract as in `legacy`: blocks in, float32 [blocks, 256] filled, ggml's order of float operations.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from .bits import Decoder, fields, nibbles, scale_of


def _apply(out: np.ndarray, codes: np.ndarray, scales: np.ndarray, minima: np.ndarray | None = None) -> None:
    """out = scale * code - minimum, with as many equal groups as there are scales [n, groups]."""
    grouped = out.reshape(*scales.shape, -1)
    out[...] = codes
    grouped *= scales[:, :, None]
    if minima is not None:
        grouped -= minima[:, :, None]


def _q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scales = blocks["scales"]
    dl = scale_of(blocks) * (scales & 15).astype(np.float32)
    ml = scale_of(blocks, "dmin") * (scales >> 4).astype(np.float32)
    _apply(out, fields(blocks["qs"], 2, 32), dl, ml)


def _q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    # 16 scales of 6 bits: the low nibbles of all, then the high bit pairs of all.
    packed = blocks["scales"]
    scales = nibbles(packed[:, :8], 8) | fields(packed[:, 8:], 2, 4) << np.uint8(4)
    dl = scale_of(blocks) * (scales.view(np.int8) - np.int8(32)).astype(np.float32)
    codes = fields(blocks["qs"], 2, 32) | fields(blocks["hmask"], 1, 32) << np.uint8(2)
    _apply(out, codes.view(np.int8) - np.int8(4), dl)


def _six_bit_pairs(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8 scales and 8 minima of Q4_K and Q5_K, each of 6 bits, as float32 [n, 8].

    Bytes 0-3 and 4-7 hold the first four scales and minima, and in their top bits the upper parts of the last four,
    whose low nibbles fill bytes 8-11.
    """
    low, mid, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, high & 15 | low >> 2 & 48], axis=-1)
    minima = np.concatenate([mid & 63, high >> 4 | mid >> 2 & 48], axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scales, minima = _six_bit_pairs(blocks["scales"])
    _apply(out, nibbles(blocks["qs"], 32), scale_of(blocks) * scales, scale_of(blocks, "dmin") * minima)


def _q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scales, minima = _six_bit_pairs(blocks["scales"])
    codes = nibbles(blocks["qs"], 32) | fields(blocks["qh"], 1, 32) << np.uint8(4)
    _apply(out, codes, scale_of(blocks) * scales, scale_of(blocks, "dmin") * minima)


def _q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    codes = nibbles(blocks["ql"], 64) | fields(blocks["qh"], 2, 32) << np.uint8(4)
    _apply(out, codes.view(np.int8) - np.int8(32), scale_of(blocks) * blocks["scales"].astype(np.float32))


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
)
