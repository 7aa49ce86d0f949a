"""Decoding of the 4-bit floating-point formats MXFP4 and NVFP4, the ternary TQ1_0 and TQ2_0, and the 4-bit tables.

Same contract as in `legacy`. IQ4_NL and IQ4_XS belong here: their codes index a table of 16 values, as E2M1 codes do.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from forge_jax.quantization.ggml.bits import (
    Blocks,
    Decoder,
    codes_of,
    look_up,
    nibbles,
    scale_of,
    scaled,
    signed,
)
from forge_jax.quantization.streams import looked_up, shifted

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


def _mxfp4(blocks: Blocks) -> Any:
    return looked_up(E2M1_DOUBLED, nibbles(blocks["qs"], 16)) * look_up(HALF_E8M0, blocks["e"])[..., None]


def _nvfp4(blocks: Blocks) -> Any:
    return scaled(looked_up(E2M1_DOUBLED, nibbles(blocks["qs"], 8)), look_up(HALF_UE4M3, blocks["d"]))


def _iq4_nl(blocks: Blocks) -> Any:
    return looked_up(IQ4_VALUES, nibbles(blocks["qs"], 16)) * scale_of(blocks)


def _iq4_xs(blocks: Blocks) -> Any:
    high = shifted(blocks["scales_h"], np.arange(0, 16, 2, dtype=np.uint16)) & 3
    scales = nibbles(blocks["scales_l"], 1) | high.astype(np.uint8) << 4
    return scaled(looked_up(IQ4_VALUES, nibbles(blocks["qs"], 16)), scale_of(blocks) * signed(scales, 32))


def _trits(packed: Any, count: int) -> Any:
    """`count` base-3 digits per byte, the highest of all bytes first: uint8 [..., count * bytes].

    A byte is the fraction 0.ddddd in base 3, in 256ths, so multiplying by 3^i modulo 256 brings digit i to the front.
    """
    powers = np.array([3**i for i in range(count)], np.uint8).reshape((1,) * (packed.ndim - 1) + (-1, 1))
    front = packed[..., None, :] * powers
    digits = (front.astype(np.uint16) * np.uint16(3) >> 8).astype(np.uint8)
    return digits.reshape(*packed.shape[:-1], -1)


def _tq1_0(blocks: Blocks) -> Any:
    qs = blocks["qs"]
    digits = [_trits(qs[..., :32], 5), _trits(qs[..., 32:], 5), _trits(blocks["qh"], 4)]
    return signed(qs.__array_namespace__().concatenate(digits, axis=-1), 1) * scale_of(blocks)


def _tq2_0(blocks: Blocks) -> Any:
    return signed(codes_of(blocks["qs"], 2, 32), 1) * scale_of(blocks)


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
