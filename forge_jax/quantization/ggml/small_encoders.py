"""Encoding of types of one to four bits without a search: Q1_0, Q2_0, TQ1_0, TQ2_0, MXFP4, NVFP4, as ggml does.

Each function takes float32 blocks [n, elements] and fills `out`, an array of the type's struct [n]; what an element
weighs changes nothing.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from forge_jax.quantization.ggml.encoders import round_away
from forge_jax.quantization.ggml.packing import Encoder, pack
from forge_jax.quantization.ggml.search import columns, ratio, total
from forge_jax.quantization.ggml.small_floats import E2M1_DOUBLED, HALF_E8M0, HALF_UE4M3


def _q1_0(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    out["d"] = total(np.abs(columns(blocks, 128))) / np.float32(128)
    out["qs"] = np.packbits(blocks >= 0, axis=-1, bitorder="little")


def _ternary(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest magnitude [n], and 0, 1, 2 for each element: -1, 0 or 1 times that."""
    d = np.abs(blocks).max(axis=-1)
    return d, (round_away(blocks * ratio(np.ones_like(d), d)[:, None]) + 1).astype(np.uint8)


def _q2_0(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    out["d"], codes = _ternary(blocks)
    out["qs"] = pack(codes, 2, 1)


def _tq2_0(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    out["d"], codes = _ternary(blocks)
    out["qs"] = pack(codes, 2, 32)


def _trits(codes: np.ndarray, count: int) -> np.ndarray:
    """`count` base-3 digits to a byte, the highest of all bytes first: the fraction 0.ddddd in 256ths, rounded up."""
    digits = codes.reshape(len(codes), count, -1).astype(np.uint16)
    weights = 3 ** np.arange(4, 4 - count, -1, dtype=np.uint16)
    number = (digits * weights[:, None]).sum(axis=1, dtype=np.uint16)
    return ((number * np.uint32(256) + np.uint32(242)) // np.uint32(243)).astype(np.uint8)


def _tq1_0(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    out["d"], codes = _ternary(blocks)
    out["qs"] = np.concatenate([_trits(codes[:, :160], 5), _trits(codes[:, 160:240], 5)], axis=-1)
    out["qh"] = _trits(codes[:, 240:], 4)


def _e2m1(x: np.ndarray, halved: np.ndarray) -> np.ndarray:
    """Codes of the 4-bit floats nearest to x / (2 halved), ties to the smaller, as uint8 of the shape of x."""
    size = np.abs(x)
    codes, error = np.zeros(x.shape, np.uint8), size.copy()
    for code in range(1, 8):
        found = np.abs(E2M1_DOUBLED[code] * halved - size)
        np.copyto(codes, np.uint8(code), where=found < error)
        np.minimum(error, found, out=error)
    return np.where((x < 0) & (codes > 0), codes + np.uint8(8), codes)


def _mxfp4(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    most = np.abs(blocks).max(axis=-1)
    # The exponent of the largest element becomes that of 4, one below the largest code's. The logarithm is C's log2f.
    exponent = np.floor(np.log2(most.astype(np.float64)).astype(np.float32)) + np.float32(125)
    out["e"] = np.where(most > 0, np.maximum(exponent, np.float32(0)), np.float32(0))
    out["qs"] = pack(_e2m1(blocks, HALF_E8M0[out["e"]][:, None]), 4, 16)


def _ue4m3(x: np.ndarray) -> np.ndarray:
    """The bytes nearest to numbers that are not negative; all from 256 up become the largest, 448, as in ggml."""
    fraction, exponent = np.frexp(x)
    mantissa = np.floor(fraction * np.float32(16) + np.float32(0.5))  # 8 ... 16
    normal = (exponent + 6) * 8 + mantissa - 8
    subnormal = np.minimum(np.floor(x * np.float32(512) + np.float32(0.5)), np.float32(7))
    normal[normal >= 15 * 8] = 0x7E
    return np.where((exponent + 6 <= 0) | (x == 0), subnormal, normal).astype(np.uint8)


def _nvfp4(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    x = blocks.reshape(-1, 4, 16)
    out["d"] = _ue4m3(np.abs(x).max(axis=-1) / np.float32(6))
    codes = _e2m1(x, HALF_UE4M3[out["d"]][:, :, None])
    out["qs"] = pack(codes.reshape(-1, 64), 4, 8)


ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {"Q1_0": _q1_0, "Q2_0": _q2_0, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0, "MXFP4": _mxfp4, "NVFP4": _nvfp4}
)
