"""Rows as small floats or codes of a table: what `schemes.Floats` and `schemes.Codebook` decode.

fp8: E4M3 with a float32 scale a row, or for every 128 x 128 block: largest / 448 (DeepSeek-V3, arXiv:2412.19437).
mxfp4: E2M1 with a power of two for 32 numbers, 2^(floor(log2 largest) - 2) (OCP MX specification 1.0).
nvfp4: E2M1 with an E4M3 scale for 16 numbers, largest / 6 times one number for the matrix, 6 * 448 over its largest.
nf4, fp4: the nearest of a table's 16 values times the largest of 64 numbers (arXiv:2305.14314, and bitsandbytes).
"""

import ml_dtypes
import numpy as np

E4M3, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
LARGEST_E4M3, LARGEST_E2M1 = np.float32(448), np.float32(6)

NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""Quantiles of a normal distribution, of which the largest is 1."""

FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12)
"""Floats of a sign, two bits of an exponent and one of a mantissa, over the largest; the least is 1 / 192."""


def fp8(rows_RN: np.ndarray) -> dict[str, np.ndarray]:
    """E4M3 with a scale a row."""
    scale = np.abs(rows_RN).max(-1, keepdims=True) / LARGEST_E4M3
    return {"codes": eight(rows_RN, scale), "scale": scale}


def fp8_blocks(rows_RN: np.ndarray, *, block: int) -> dict[str, np.ndarray]:
    """E4M3 with a scale for every block of rows and columns; the last ones may be cut off."""
    _, columns = rows_RN.shape
    starts = np.arange(0, columns, block)
    largest = np.maximum.reduceat(np.abs(rows_RN), starts, axis=1)
    largest = np.maximum.reduceat(largest, np.arange(0, len(rows_RN), block), axis=0)
    scale = np.repeat(largest / LARGEST_E4M3, block, axis=0)[: len(rows_RN)]
    return {"codes": eight(rows_RN, np.repeat(scale, block, axis=1)[:, :columns]), "scale": scale}


def mxfp4(rows_RN: np.ndarray, *, group: int) -> dict[str, np.ndarray]:
    """E2M1 with a power of two for each group."""
    x = rows_RN.reshape(len(rows_RN), -1, group)
    largest = np.abs(x).max(-1, keepdims=True)
    power = np.where(largest > 0, np.frexp(largest)[1] - 3, -127).clip(-127, 127)  # frexp's fraction is below 1
    return {"codes": four(np.ldexp(x, -power), rows_RN.shape), "scale": (power[..., 0] + 127).astype(np.uint8)}


def nvfp4(rows_RN: np.ndarray, *, group: int, divisor: np.ndarray) -> dict[str, np.ndarray]:
    """E2M1 with an E4M3 scale for each group, over `divisor`."""
    x = rows_RN.reshape(len(rows_RN), -1, group)
    largest = np.abs(x).max(-1, keepdims=True)
    scale = (largest / LARGEST_E2M1 * divisor).clip(None, LARGEST_E4M3).astype(E4M3)
    step = scale.astype(np.float32) / divisor
    return {"codes": four(x / positive(step), rows_RN.shape), "scale": scale[..., 0]}


def divisor_of(rows_RN: np.ndarray) -> np.ndarray:
    """What brings the largest scale of a matrix to E4M3's largest number, float32 []."""
    largest = max(np.abs(rows_RN).max(), np.finfo(np.float32).tiny * np.float32(1e6))
    return np.asarray(LARGEST_E4M3 * LARGEST_E2M1 / largest, np.float32)


def coded(rows_RN: np.ndarray, *, group: int, table: np.ndarray) -> dict[str, np.ndarray]:
    """The nearest of the table's values, relative to the largest number of each group; two codes in a byte."""
    x = rows_RN.reshape(len(rows_RN), -1, group)
    scale = np.abs(x).max(-1, keepdims=True)
    order = np.argsort(table, kind="stable").astype(np.uint8)
    values = table[order]
    codes = order[np.searchsorted((values[1:] + values[:-1]) / 2, x / positive(scale))].reshape(rows_RN.shape)
    return {"codes": codes[:, ::2] << 4 | codes[:, 1::2], "scale": scale[..., 0]}


def positive(scale: np.ndarray) -> np.ndarray:
    """Scales to divide by: 1 where there is nothing but zeros."""
    return np.where(scale > 0, scale, np.float32(1))


def eight(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """E4M3 of x / scale."""
    return (x / positive(scale)).clip(-LARGEST_E4M3, LARGEST_E4M3).astype(E4M3)


def four(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """E2M1 of numbers, two codes in a byte, the first in the low half: uint8 [R, N / 2] for a `shape` [R, N]."""
    codes = x.clip(-LARGEST_E2M1, LARGEST_E2M1).astype(E2M1).view(np.uint8).reshape(shape)
    return codes[:, ::2] | codes[:, 1::2] << 4
