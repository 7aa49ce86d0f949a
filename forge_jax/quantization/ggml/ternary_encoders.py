"""Encoding of IQ1_S and IQ1_M: words of -1, 0 and 1, shifted up or down by an eighth, as ggml does.

With three values the best split of a group is found exactly: its elements in order are cut in two places, and of every
pair of cuts the least-squares scale follows from running sums. Same contract as in `kencoders`; IQ1_S needs weights.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from forge_jax.quantization.ggml.code_books import code_book
from forge_jax.quantization.ggml.grid_encoders import by_words, required
from forge_jax.quantization.ggml.packing import Encoder, pack
from forge_jax.quantization.ggml.search import columns, nearest, ratio, rows, total
from forge_jax.quantization.ggml.types import K

DELTA = np.float32(0.125)
UP, DOWN = (np.array([-1, 0, 1], np.float32) + shift for shift in (DELTA, -DELTA))
"""The values of a word, shifted."""


def _running(terms: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... elements, [size + 1, n]."""
    return np.concatenate([np.zeros_like(terms[:1]), np.add.accumulate(terms, axis=0)])


class _Best:
    """The best scale [n] so far, where its cuts are, and which of the choices of shifts it is with."""

    def __init__(self, n: int) -> None:
        self.score = np.full(n, np.finfo(np.float32).min)
        self.scale = np.zeros(n, np.float32)
        self.found = np.full((3, n), -1, np.int16)

    def offer(self, products: np.ndarray, squares: np.ndarray, *what: int) -> None:
        """Keep `what`, two cuts and a choice, where its sums are better."""
        better = (squares > 0) & (products * products > self.score * squares)
        np.divide(products, squares, out=self.scale, where=better)
        np.multiply(self.scale, products, out=self.score, where=better)
        for kept, new in zip(self.found, what, strict=True):
            np.copyto(kept, np.int16(new), where=better)


def _cut_whole(x: np.ndarray, weights: np.ndarray) -> _Best:
    """Cuts of groups that are shifted as a whole; both arrays are in the order of x. Choices: up, down."""
    size, best = len(x), _Best(x.shape[1])
    sx, sw = _running(weights * x), _running(weights)
    for i in range(size + 1):
        for j in range(i, size + 1):
            parts_x = (sx[i] - sx[0], sx[j] - sx[i], sx[size] - sx[j])
            parts_w = (sw[i] - sw[0], sw[j] - sw[i], sw[size] - sw[j])
            for choice, (a, b, c) in enumerate((UP, DOWN)):
                products = parts_x[0] * a + parts_x[1] * b + parts_x[2] * c
                best.offer(products, parts_w[0] * a * a + parts_w[1] * b * b + parts_w[2] * c * c, i, j, choice)
    return best


def _cut_halves(x: np.ndarray, weights: np.ndarray, second: np.ndarray) -> _Best:
    """Cuts of groups whose halves are shifted apart. Choices: 0 both up, 1 the second down, 2 the first, 3 both.

    `second` tells which elements, in the order of x, are of the second half.
    """
    size, best = len(x), _Best(x.shape[1])
    halves = [np.where(second == h, weights, np.float32(0)) for h in (False, True)]
    sums = [(_running(w * x), _running(w)) for w in halves]
    for i in range(size + 1):
        for j in range(i, size + 1):
            found = []
            for sx, sw in sums:
                cut = sx[i] + sx[j]
                found.append(
                    [
                        (
                            sx[size] * v[2] - cut,
                            sw[size] * v[2] * v[2]
                            + sw[i] * (v[0] * v[0] - v[1] * v[1])
                            + sw[j] * (v[1] * v[1] - v[2] * v[2]),
                        )
                        for v in (UP, DOWN)
                    ]
                )
            for choice in range(4):
                first, last = found[0][choice >> 1], found[1][choice & 1]
                best.offer(first[0] + last[0], first[1] + last[1], i, j, choice)
    return best


def _groups(x: np.ndarray, weights: np.ndarray, halves: bool, tiny: float) -> tuple[np.ndarray, ...]:
    """Scales [n], words [words of a group, n] and whether they are shifted down, of the same shape."""
    book, count = code_book("IQ1"), x.shape[0] // 8
    order = x.argsort(axis=0, kind="stable")
    sorted_x, sorted_w = (np.take_along_axis(part, order, axis=0) for part in (x, weights))
    best = _cut_halves(sorted_x, sorted_w, order >= 8) if halves else _cut_whole(sorted_x, sorted_w)
    (i, j, choice), scale = best.found, best.scale
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(x))[:, None], axis=0)
    codes = (rank >= i).astype(np.int16) + (rank >= j)
    negative = scale < 0
    codes = np.where(negative, 2 - codes, codes)
    down = np.stack([choice >> 1, choice & 1] if halves else [choice] * count) > 0
    down ^= negative
    scale = np.abs(scale)
    powers = (book.levels ** np.arange(8))[:, None]
    points = (codes.reshape(count, 8, -1) * powers).sum(axis=1)
    shift = np.where(down, -DELTA, DELTA)
    words = book.find(
        points.reshape(-1),
        by_words(x, 8),
        by_words(weights, 8),
        np.tile(scale, count),
        book.codes - 1,
        shift.reshape(-1),
    ).reshape(points.shape)
    products, squares = (total(part) for part in _terms(x, weights, words, shift))
    moved = (book.index[points] < 0).any(axis=0) & (products > 0) & (squares > 0)
    np.divide(products, squares, out=scale, where=moved)
    zero = (np.abs(x).max(axis=0) < np.float32(tiny)) | (choice < 0)
    words[:, zero], down[:, zero] = 0, False
    return np.where(zero, np.float32(0), scale), words, down


def _terms(
    x: np.ndarray, weights: np.ndarray, words: np.ndarray, shift: np.ndarray, factor: np.ndarray | float = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted products of elements with words times `factor` [n], and squares of those, [size, n]."""
    values = (code_book("IQ1").codes.T - 1)[words].transpose(0, 2, 1) + shift[:, None]
    values = values.reshape(x.shape) * np.float32(factor)
    weighed = weights * values
    return weighed * x, weighed * values


def _scale_codes(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A fifteenth of a block's largest scale [n], and codes l for the scales [groups, n], 2 l + 1 of those."""
    d = groups.max(axis=0) / np.float32(15)
    return d, nearest(np.float32(0.5) * (groups * ratio(np.ones_like(d), d) - np.float32(1)), 0, 7)


def _iq1_s(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    weights = required("IQ1_S", weights)
    scale, words, down = _groups(columns(blocks, 32), columns(weights, 32), False, 1e-12)
    d, codes = _scale_codes(columns(scale, 8))
    index = rows(words, 32).reshape(-1, 8, 4).astype(np.uint16)
    high = np.bitwise_or.reduce(index >> 8 << np.array([0, 3, 6, 9], np.uint16), axis=-1)
    scales = codes.T.astype(np.uint16) | down[0].reshape(-1, 8).astype(np.uint16) << 3
    kept = (d > 0)[:, None]
    out["d"], out["qs"] = d * np.float32(1.125), index.reshape(-1, 32) & 255
    out["qh"] = high | np.where(kept, scales, np.uint16(0)) << 12


def _iq1_m(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    x = columns(blocks, 16)
    w = x * x if weights is None else columns(weights, 16)
    scale, words, down = _groups(x, w, True, 1e-7)
    d, codes = _scale_codes(columns(scale, 16))
    factor = 2 * rows(codes, 1)[:, 0] + 1
    parts = _terms(x, w, words, np.where(down, -DELTA, DELTA), factor)
    products, squares = (total(columns(rows(part, K), K)) for part in parts)
    best = np.where(squares > 0, products / squares, d) * np.float32(1.1125)
    stored = np.where(d > 0, best, np.float32(0)).astype(np.float16)
    bits = stored.view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
    whole = codes.T.astype(np.uint16).reshape(-1, 4, 4) << np.array([0, 3, 6, 9], np.uint16)
    index = rows(words, 32).astype(np.uint16)
    out["scales"] = np.bitwise_or.reduce(whole, axis=-1) | bits << 12
    out["qs"], out["qh"] = index & 255, pack(index >> 8 | rows(down, 32).astype(np.uint16) << 3, 4, 1)


ENCODERS: Mapping[str, Encoder] = MappingProxyType({"IQ1_S": _iq1_s, "IQ1_M": _iq1_m})
