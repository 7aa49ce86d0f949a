"""Decoding of the 4-bit floating-point formats MXFP4 and NVFP4, the ternary TQ1_0 and TQ2_0, and the 4-bit tables.

Same contract as in `legacy`. IQ4_NL and IQ4_XS belong here: their codes index a table of 16 values, as E2M1 codes do.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from .bits import Decoder, fields, nibbles, scale_of

E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""The 4-bit floats of the OCP microscaling formats, times two; the scales are halved to match. Has no -0, as ggml."""

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The non-linear 4-bit code book of IQ4_NL and IQ4_XS (kvalues_iq4nl of ggml-common.h)."""


def _half_e8m0() -> np.ndarray:
    """Half the value of each E8M0 byte, 2^(e - 128), of which the smallest two are subnormal float32."""
    exponents = np.arange(256, dtype=np.uint32)
    bits = np.where(exponents < 2, np.uint32(1 << 21) << exponents, (exponents - np.uint32(1)) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32)


def _half_ue4m3() -> np.ndarray:
    """Half the value of each unsigned E4M3 byte: bias 7, subnormals, 0x7F is zero, the top bit is ignored."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    values[0x7F] = 0
    return (values / 2).astype(np.float32)


HALF_E8M0 = _half_e8m0()
HALF_UE4M3 = _half_ue4m3()


def _mxfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    out[...] = E2M1_DOUBLED[nibbles(blocks["qs"], 16)]
    out *= HALF_E8M0[blocks["e"]][:, None]


def _nvfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    out[...] = E2M1_DOUBLED[nibbles(blocks["qs"], 8)]
    grouped = out.reshape(-1, 4, 16)
    grouped *= HALF_UE4M3[blocks["d"]][:, :, None]


def _iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    out[...] = IQ4_VALUES[nibbles(blocks["qs"], 16)]
    out *= scale_of(blocks)


def _iq4_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    high = blocks["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = nibbles(blocks["scales_l"], 1) | high.astype(np.uint8) << np.uint8(4)
    out[...] = IQ4_VALUES[nibbles(blocks["qs"], 16)]
    grouped = out.reshape(-1, 8, 32)
    grouped *= (scale_of(blocks) * (scales.view(np.int8) - np.int8(32)).astype(np.float32))[:, :, None]


def _trits(packed: np.ndarray, count: int) -> np.ndarray:
    """`count` base-3 digits per byte, the highest of all bytes first: uint8 [n, count * bytes].

    A byte is the fraction 0.ddddd in base 3, in 256ths, so multiplying by 3^i modulo 256 brings digit i to the front.
    """
    powers = np.array([3**i for i in range(count)], np.uint8)[:, None]
    shifted = packed[:, None, :] * powers
    return (shifted.astype(np.uint16) * np.uint16(3) >> 8).astype(np.uint8).reshape(len(packed), -1)


def _tq1_0(blocks: np.ndarray, out: np.ndarray) -> None:
    qs = blocks["qs"]
    codes = np.concatenate([_trits(qs[:, :32], 5), _trits(qs[:, 32:], 5), _trits(blocks["qh"], 4)], axis=-1)
    out[...] = codes.view(np.int8) - np.int8(1)
    out *= scale_of(blocks)


def _tq2_0(blocks: np.ndarray, out: np.ndarray) -> None:
    out[...] = fields(blocks["qs"], 2, 32).view(np.int8) - np.int8(1)
    out *= scale_of(blocks)


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "MXFP4": _mxfp4,
        "NVFP4": _nvfp4,
        "IQ4_NL": _iq4_nl,
        "IQ4_XS": _iq4_xs,
        "TQ1_0": _tq1_0,
        "TQ2_0": _tq2_0,
    }
)
