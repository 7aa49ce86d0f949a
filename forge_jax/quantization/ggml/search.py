"""The searches for scales that ggml's quantisers share, for many groups of elements at once. Knows no types.

Groups are columns: float32 [size, n] holds n groups of `size` elements, so that a step of a C loop over a group is one
operation on a contiguous row. All arithmetic is float32 in ggml's order (ggml-quants.c), so the results have its bits.
"""

import numpy as np

TINY = np.float32(1e-15)
"""Groups whose largest magnitude is below are taken as zero."""

ROUNDS = 5
"""How often `descend` goes through a group."""


def columns(blocks: np.ndarray, size: int) -> np.ndarray:
    """Blocks [n, elements] as groups of `size`: [size, n * elements / size]."""
    return np.ascontiguousarray(blocks.reshape(-1, size).T)


def rows(groups: np.ndarray, elements: int) -> np.ndarray:
    """The opposite of `columns`: [n, elements]."""
    return np.ascontiguousarray(groups.T).reshape(-1, elements)


def total(terms: np.ndarray) -> np.ndarray:
    """Sums [n] of columns, first to last. Of a single column NumPy would add pairs."""
    return np.add.reduce(terms, axis=0) if terms.shape[1] > 1 else np.add.accumulate(terms, axis=0)[-1]


def extreme(x: np.ndarray) -> np.ndarray:
    """The first element of the largest magnitude of each group [n], with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]


def nearest(x: np.ndarray, low: int, high: int, out: np.ndarray | None = None) -> np.ndarray:
    """Whole numbers between `low` and `high`, halves to even, as float32."""
    out = np.rint(x, out=out)
    np.maximum(out, np.float32(low), out=out)
    return np.minimum(out, np.float32(high), out=out)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator != 0)


def symmetric(x: np.ndarray, weights: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales [n] and codes 0 ... 2 half - 1 for x = scale * (code - half) (ggml: make_qx_quants).

    Tries 19 inverse scales that map the largest element near the most negative code; of each, the codes' own best
    scale is the weighted least-squares one. A group of zeros has the codes 0.
    """
    largest = extreme(x)
    zero = np.abs(largest) < TINY
    weighted, codes, term = weights * x, np.empty_like(x), np.empty_like(x)

    def fit(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nearest(np.multiply(x, inverse, out=codes), -half, half - 1, out=codes)
        products = total(np.multiply(weighted, codes, out=term))
        return products, total(np.multiply(np.multiply(weights, codes, out=term), codes, out=term))

    chosen = np.float32(-half) / largest
    products, squares = fit(chosen)
    scale = ratio(products, squares)
    best = scale * products
    for step in (*range(-9, 0), *range(1, 10)):
        inverse = -(np.float32(half) + np.float32(0.1) * np.float32(step)) / largest
        products, squares = fit(inverse)
        better = (squares > 0) & (products * products > best * squares)
        np.divide(products, squares, out=scale, where=better)
        np.multiply(scale, products, out=best, where=better)
        np.copyto(chosen, inverse, where=better)
    nearest(np.multiply(x, chosen, out=codes), -half, half - 1, out=codes)
    codes += np.float32(half)
    codes[:, zero] = 0
    return np.where(zero, np.float32(0), scale), codes


def affine(
    x: np.ndarray, weights: np.ndarray, top: int, start: float, step: float, steps: int, absolute: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales [n], minima [n] and codes 0 ... top for x = scale * code - minimum (make_qkx2_quants, make_qkx3_quants).

    Tries inverse scales (top + start + i * step) / range for i = 0 ... steps. Of each, scale and minimum solve the
    weighted least-squares problem of its codes; the least squared (or `absolute`) weighted error wins. The minimum is
    never negative, so that zero stays inside the range.
    """
    least, most = np.minimum(x.min(axis=0), np.float32(0)), x.max(axis=0)
    flat = most <= least
    first = least.copy()
    sum_w, sum_x = total(weights), total(weights * x)
    codes, term = np.empty_like(x), np.empty_like(x)

    def round_to_codes(inverse: np.ndarray, least: np.ndarray) -> None:
        np.multiply(np.subtract(x, least, out=codes), inverse, out=codes)
        nearest(codes, 0, top, out=codes)

    def error(scale: np.ndarray, least: np.ndarray) -> np.ndarray:
        np.add(np.multiply(codes, scale, out=term), least, out=term)
        np.subtract(term, x, out=term)
        size = np.abs(term) if absolute else np.multiply(term, term, out=term)
        return total(np.multiply(weights, size, out=term))

    chosen = (np.float32(top) / (most - least), least.copy())
    scale = np.float32(1) / chosen[0]
    round_to_codes(*chosen)
    best = error(scale, least)
    for i in range(steps + 1):
        inverse = (np.float32(start) + np.float32(step) * np.float32(i) + np.float32(top)) / (most - least)
        round_to_codes(inverse, least)
        sum_l = total(np.multiply(weights, codes, out=term))
        sum_xl = total(term * x)
        sum_l2 = total(np.multiply(term, codes, out=term))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        slope = (sum_w * sum_xl - sum_x * sum_l) / determinant
        offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = offset > 0
        np.divide(sum_xl, sum_l2, out=slope, where=above)
        offset[above] = 0
        found = error(slope, offset)
        better = (determinant > 0) & (found < best)
        for kept, new in zip((best, scale, *chosen), (found, slope, inverse, least), strict=True):
            np.copyto(kept, new, where=better)
        np.copyto(least, offset, where=better)
    round_to_codes(*chosen)
    codes[:, flat] = 0
    scale[flat] = 0
    return scale, np.where(flat, -first, -least), codes


def descend(x: np.ndarray, weights: np.ndarray, codes: np.ndarray, low: int, high: int) -> np.ndarray:
    """Improve `codes` [size, n] in place, one element at a time, and give the least-squares scales [n].

    An element's code moves to the one nearest to it under the best scale of all the others, if that brings the whole
    group closer to its codes (make_q3_quants, the end of make_qp_quants).
    """
    weighted = weights * x
    products, squares = total(weighted * codes), total(weights * codes * codes)
    for _ in range(ROUNDS):
        changed = False
        for value, w, wx, code in zip(x, weights, weighted, codes, strict=True):
            others, rest = products - wx * code, squares - w * code * code
            moved = nearest(value * rest / others, low, high)
            new_products, new_squares = others + wx * moved, rest + w * moved * moved
            better = new_products * new_products * squares > products * products * new_squares
            better &= (others > 0) & (rest > 0) & (moved != code)
            for kept, new in zip((code, products, squares), (moved, new_products, new_squares), strict=True):
                np.copyto(kept, new, where=better)
            changed |= bool(better.any())
        if not changed:
            break
    return np.where(squares > 0, products / squares, np.float32(0))


def positive(x: np.ndarray, weights: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales [n] and codes 0 ... top for numbers that are not negative, x = scale * code (make_qp_quants)."""
    most = np.maximum(x.max(axis=0), np.float32(0))
    zero = most < TINY

    def error(inverse: np.ndarray) -> np.ndarray:
        difference = x - nearest(x * inverse, 0, top) * (np.float32(1) / inverse)
        return total(weights * difference * difference)

    chosen = np.float32(top) / most
    best = error(chosen)
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        inverse = (np.float32(0.1) * np.float32(step) + np.float32(top)) / most
        found = error(inverse)
        better = found < best
        np.copyto(best, found, where=better)
        np.copyto(chosen, inverse, where=better)
    codes = nearest(x * chosen, 0, top)
    codes[:, zero] = 0
    scale = descend(x, weights, codes, 0, top)
    codes[:, zero] = 0
    return np.where(zero, np.float32(0), scale), codes
