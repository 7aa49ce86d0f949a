"""Encoding of IQ4_NL and IQ4_XS, whose codes index a table of 16 levels, bit for bit as ggml does.

Same contract as in `kencoders`.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from forge_jax.quantization.ggml.packing import Encoder, pack
from forge_jax.quantization.ggml.search import TINY, columns, extreme, nearest, ratio, rows, total
from forge_jax.quantization.ggml.small_floats import IQ4_VALUES
from forge_jax.quantization.ggml.types import K

TRIES = 7
"""How many levels to either side of the first the search puts the largest element's place."""

HALVES = 256
"""Where 0 stands in the tables by half steps, which cover -128 ... 127.5: all levels and the middles between them."""


def _codes_by_halves() -> np.ndarray:
    """The nearest level's code of all numbers from i / 2 - 128 up to the next half: the middles are whole halves."""
    middles = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2
    return np.searchsorted(middles, np.arange(-HALVES, HALVES) / 2, side="right")


CODES = _codes_by_halves().astype(np.uint8)
LEVELS = IQ4_VALUES[CODES]


def _halves(x: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Where x * inverse stands in the tables by half steps."""
    places = np.floor(x * (inverse * np.float32(2)))
    np.maximum(places, np.float32(-HALVES), out=places)
    np.minimum(places, np.float32(HALVES - 1), out=places)
    return places.astype(np.int16) + np.int16(HALVES)


def _scales(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The best scales [n] of groups [32, n] for the levels: 16 tries, each with its codes' least-squares scale."""
    largest = extreme(x)

    def fit(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        levels = LEVELS.take(_halves(x, inverse))
        weighed = weights * levels
        return total(weighed * x), total(weighed * levels)

    products, squares = fit(np.float32(1) / (-largest / IQ4_VALUES[0]))
    scale = ratio(products, squares)
    best = scale * products
    for step in range(-TRIES, TRIES + 1):
        products, squares = fit((np.float32(step) + IQ4_VALUES[0]) / largest)
        better = (squares > 0) & (products * products > best * squares)
        np.divide(products, squares, out=scale, where=better)
        np.multiply(scale, products, out=best, where=better)
    return np.where(np.abs(largest) < TINY, np.float32(0), scale)


def _codes(x: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The code of the level nearest to each element [32, n] of groups with these scales [n]."""
    return CODES[_halves(x, ratio(np.ones_like(scales), scales))]


def _iq4_nl(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    x = columns(blocks, 32)
    scales = _scales(x, x * x if weights is None else columns(weights, 32))
    out["d"], out["qs"] = scales, pack(rows(_codes(x, scales), 32), 4, 16)


def _iq4_xs(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    x = columns(blocks, 32)
    scales = columns(_scales(x, x * x if weights is None else columns(weights, 32)), K // 32)
    d = -extreme(scales) / np.float32(32)
    ls = nearest(ratio(np.ones_like(d), d) * scales, -32, 31)
    codes = _codes(x, rows(d * ls, 1)[:, 0])  # ggml rounds with d as it is before it becomes float16
    whole = (ls.T + np.float32(32)).astype(np.uint8)
    high = whole.astype(np.uint16) >> 4 << np.arange(0, 16, 2, dtype=np.uint16)
    out["d"], out["qs"] = d, pack(rows(codes, K), 4, 16)
    out["scales_l"], out["scales_h"] = pack(whole & 15, 4, 1), np.bitwise_or.reduce(high, axis=-1)


ENCODERS: Mapping[str, Encoder] = MappingProxyType({"IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs})
