"""Rows as integers of 2 to 8 bits with a scale for every group, or for the row: what `schemes.Integers` decodes.

Symmetric: value = scale * code, codes of b bits from -2^(b - 1) to 2^(b - 1) - 1 (8 bits: from -127). Asymmetric:
value = scale * (code - zero), codes and zero from 0 to 2^b - 1, so that 0 is exact. The scales of groups are bfloat16:
two bytes with float32's range, and all of its values are float16's too but for very small ones. A row's only scale is
float32.

Of several scales a group takes the one with the least squared error, elements counting by their importance: the
smallest that clips nothing, which keeps every element within half a step, and parts of one that clips. Codes of a
symmetric scheme reach further below zero than above, so that its scale is negative where the largest element is
positive (as Q4_0's is).
"""

from collections.abc import Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np

from forge_jax.quantization.streams import packed

RATIOS: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {
        2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
        3: (1.0, 0.92, 0.84, 0.76, 0.68, 0.6),
        4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75),
        5: (1.0, 0.95, 0.9, 0.85),
        6: (1.0, 0.96, 0.92),
        7: (1.0,),
        8: (),
    }
)
"""The scales that are tried, by bits, as parts of the range. With many bits clipping does not pay."""

LARGEST = np.float32(ml_dtypes.finfo(ml_dtypes.bfloat16).max)


def integers(
    rows_RN: np.ndarray, weight_N: np.ndarray | None, *, bits: int, group: int, symmetric: bool
) -> dict[str, np.ndarray]:
    """The parts of finite float32 rows: codes, scales and, where it is not symmetric, zeros.

    `group` divides N; 0 makes a row one group. `weight_N` is how much each element's squared error counts.
    """
    x = rows_RN.reshape(len(rows_RN), -1, group or rows_RN.shape[1])
    weight = None if weight_N is None else weight_N.reshape(x.shape[1:])
    half, most = 2 ** (bits - 1), 2**bits - 1
    least = (1 - half if bits == 8 else -half) if symmetric else 0
    low = x.min(-1, keepdims=True).clip(None, 0)
    high = x.max(-1, keepdims=True).clip(0)
    if symmetric:
        widest = np.maximum(high, -low) / np.float32(half - 1)
        narrow = np.where(high > -low, high, low) / np.float32(-half)
    else:
        widest = narrow = high / np.float32(most) - low / np.float32(most)

    def rounded(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes and zeros under a scale."""
        step = np.where(scale == 0, np.float32(1), scale)
        zero = np.zeros_like(low) if symmetric else np.rint(-low / step).clip(0, most)
        return (np.rint(x / step) + zero).clip(least, least + most - (symmetric and bits == 8)), zero

    def error(scale: np.ndarray) -> np.ndarray:
        """The squared error of each group under a scale."""
        codes, zero = rounded(scale)
        off = (codes - zero) * scale - x
        return np.square(off).sum(-1, keepdims=True) if weight is None else (off * off * weight).sum(-1, keepdims=True)

    best = stored(widest, group)
    found = error(best) if RATIOS[bits] else best
    for ratio in RATIOS[bits]:
        scale = stored(narrow * np.float32(ratio), group)
        other = error(scale)
        best, found = np.where(other < found, scale, best), np.minimum(found, other)
    codes, zero = rounded(best)
    parts = {"codes": as_bits(codes.reshape(rows_RN.shape), bits, symmetric), "scale": best[..., 0]}
    parts["scale"] = parts["scale"].astype(ml_dtypes.bfloat16) if group else parts["scale"]
    return parts if symmetric else parts | {"zero": zero[..., 0].astype(np.uint8)}


def as_bits(codes_RN: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """Codes as they are stored: int8 or uint8 if they have 8 bits, else a stream of unsigned ones."""
    if bits == 8:
        return codes_RN.astype(np.int8 if symmetric else np.uint8)
    return packed((codes_RN + np.float32(2 ** (bits - 1) if symmetric else 0)).astype(np.uint8), bits)


def stored(scale: np.ndarray, group: int) -> np.ndarray:
    """Scales as they are stored: float32 for whole rows, for groups the next bfloat16 away from zero."""
    if group == 0:
        return scale
    bits = scale.view(np.uint32) + np.uint32(0xFFFF) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).clip(-LARGEST, LARGEST)
